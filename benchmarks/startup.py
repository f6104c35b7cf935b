"""How long a replica takes from its start to its first token, part by part, for each engine that is installed.

    python benchmarks/startup.py [--rounds 3] [--deploy] [--vllm_model DIR] [--output FILE]

Parts: the process until it listens; then each thing that the replica says it does, for as long as it does it; then one
token over a session. vLLM runs twice, in turns: as Headrace starts it, and "stock", where each of vLLM's processes is
started anew and imports for itself, as vLLM's own server does. vLLM's model is made here (two layers of a Llama) unless
one is named: a start is mostly imports, not weights. --deploy measures through an idle cluster instead, from `deploy`
to the first token through HTTP. Wall time on an otherwise idle machine; medians of the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import deploying

from headrace.core.phase import Phase
from headrace.core.specfile import dump_spec
from headrace.core.streams import Sampling, Submit, TokenPrompt
from headrace.core.types import ModelSpec, ReplicaId, ReplicaSpec, ReplicaStatus, Resources
from headrace.engines_here import installed
from headrace.process import Child, child_env
from headrace.rpc import convert, convert_streams
from headrace.rpc.channel import open_channel
from headrace.rpc.credentials import CREDENTIAL_ENV, keep
from headrace.rpc.finding import from_state
from headrace.rpc.roles import Role
from headrace.rpc.v1 import replica_pb2, replica_pb2_grpc
from headrace.settings import TlsSettings

REPLICA = ("-m", "headrace.replica")
# The replica with what Headrace adds to vLLM's start taken away.
STOCK = (
    "-c",
    "import sys; from headrace.replica.engines import vllm_processes as p;"
    "p.start_server = p.fork_engines_from_server = lambda *a, **k: None;"
    "import headrace.replica.__main__",
)
LIMIT_S = 300.0


def a_spec(engine: str, source: str) -> ReplicaSpec:
    args = {"kv_cache_memory_bytes": 2**28, "dtype": "float32"} if engine == "vllm" else {}
    model = ModelSpec(source=source, engine=engine, engine_args_json=json.dumps(args))
    return ReplicaSpec(ReplicaId("bench-1"), "bench", 1, model, Resources(cpus=float(os.cpu_count() or 1)))


async def measure(spec: ReplicaSpec, command: tuple[str, ...]) -> dict[str, float]:
    """Seconds of each part, in order; "total" last."""
    folder = Path(tempfile.mkdtemp(prefix="headrace-startup-"))
    (folder / "spec.json").write_text(dump_spec(spec, host="127.0.0.1", cache_dir=str(folder / "cache")))
    begun = time.monotonic()
    argv = [sys.executable, *command, str(folder)]
    mine = {r: from_state(folder, r, "bench", TlsSettings()) for r in (Role.NODE, Role.PROXY)}
    kept = keep(folder / "credential.json", mine[Role.NODE].current())
    env = child_env({CREDENTIAL_ENV: str(kept.path)})
    child = Child.spawn(argv, env=env, output=folder / "replica.log")
    try:
        async with asyncio.timeout(LIMIT_S):
            address = await listening(folder, child)
            parts = {"process": time.monotonic() - begun}
            async with (
                open_channel(address, mine[Role.NODE], Role.NODE) as channel,
                open_channel(address, mine[Role.PROXY], Role.NODE) as proxy,
            ):
                stub = replica_pb2_grpc.ReplicaServiceStub(channel)
                since, doing = time.monotonic(), ""
                async with aclosing(watch(stub, spec.replica_id)) as news:
                    async for activity, is_ready in news:
                        now = time.monotonic()
                        if doing and activity != doing:
                            parts[doing] = parts.get(doing, 0.0) + now - since
                        if activity != doing:
                            since, doing = now, activity
                        if is_ready:
                            break
                since = time.monotonic()
                await first_token(replica_pb2_grpc.ReplicaServiceStub(proxy), spec.replica_id)
                parts["first token"] = time.monotonic() - since
        parts["total"] = time.monotonic() - begun
        return parts
    finally:
        await child.stop()
        shutil.rmtree(folder, ignore_errors=True)


async def watch(stub: replica_pb2_grpc.ReplicaServiceStub, replica_id: str) -> AsyncGenerator[tuple[str, bool]]:
    """What a replica says it does, and whether it is READY."""
    async with aclosing(statuses(stub, replica_id)) as news:
        async for status in news:
            if status.phase is Phase.FAILED:
                raise SystemExit(status.reason)
            yield status.activity, status.phase is Phase.READY


async def listening(folder: Path, child: Child) -> str:
    path = folder / "endpoint.json"
    while not path.exists():
        if not child.alive():
            raise SystemExit((folder / "replica.log").read_text()[-2000:])
        await asyncio.sleep(0.005)
    return json.loads(path.read_text())["address"]


async def statuses(stub: replica_pb2_grpc.ReplicaServiceStub, replica_id: str) -> AsyncGenerator[ReplicaStatus]:
    call = stub.Watch(replica_pb2.WatchReplicaRequest(replica_id=replica_id))
    try:
        async for message in call:
            yield convert.replica_status_from_pb(message)
    finally:
        call.cancel()


@asynccontextmanager
async def session(stub: replica_pb2_grpc.ReplicaServiceStub, replica_id: str) -> AsyncIterator[object]:
    call = stub.Session()
    try:
        hello = replica_pb2.SessionHello(proxy_id="bench", replica_id=replica_id)
        await call.write(replica_pb2.SessionRequest(hello=hello))
        yield call
    finally:
        call.cancel()


async def first_token(stub: replica_pb2_grpc.ReplicaServiceStub, replica_id: str) -> None:
    async with session(stub, replica_id) as call:
        submit = Submit(1, "r", TokenPrompt([5, 6, 7]), Sampling(temperature=0.0, ignore_eos=True), 1)
        await call.write(convert_streams.submit_to_pb(submit))  # type: ignore[attr-defined]
        async for frame in call:  # type: ignore[attr-defined]
            if frame.token_id:
                return


def make_llama(folder: Path) -> None:
    """A small Llama with random weights, and the demo model's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    import headrace

    torch.manual_seed(0)
    demo = Path(headrace.__file__).parent / "data" / "demo"
    vocab = json.loads((demo / "config.json").read_text())["vocab_size"]
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (demo / name).exists():
            shutil.copy2(demo / name, folder / name)


def table(results: dict[str, list[dict[str, float]]]) -> str:
    lines = []
    for name, rounds in results.items():
        parts = {part: statistics.median(r.get(part, 0.0) for r in rounds) for part in rounds[0]}
        lines.append(f"{name}: {parts.pop('total'):.2f} s")
        lines += [f"    {part:<40} {seconds:6.2f} s" for part, seconds in parts.items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--deploy", action="store_true", help="through a cluster: from deploy to HTTP")
    parser.add_argument("--vllm_model", type=Path)
    parser.add_argument("--output", type=Path, help="write all figures as JSON")
    args = parser.parse_args()
    here = installed()
    results: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as made:
        runs: list[tuple[str, ReplicaSpec, tuple[str, ...]]] = []
        if "openvino" in here:
            runs.append(("openvino, the demo model", a_spec("openvino", "builtin:demo"), REPLICA))
        if "vllm" in here:
            model = args.vllm_model or Path(made) / "llama"
            if args.vllm_model is None:
                make_llama(model)
            spec = a_spec("vllm", str(model.absolute()))
            runs += [("vllm, stock", spec, STOCK), ("vllm", spec, REPLICA)]
        for _ in range(args.rounds):
            for name, spec, command in runs:
                if args.deploy and command is STOCK:
                    continue
                run = deploying.measure(spec, watch) if args.deploy else measure(spec, command)
                results.setdefault(name, []).append(asyncio.run(run))
    print(f"{os.cpu_count()} CPUs, Python {platform.python_version()}, {platform.machine()}; {args.rounds} rounds")
    print(table(results))
    if args.output:
        args.output.write_text(json.dumps({"cpus": os.cpu_count(), "results": results}, indent=1))


if __name__ == "__main__":
    main()
