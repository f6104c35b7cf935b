"""Routing with real engines: what prefix affinity brings, beside other policies and the peers' cache-aware routers.

    python benchmarks/routing.py [--engine openvino|vllm] [--replicas 4] [--rounds 3] [--without smg …] [--output FILE]

Every policy routes to the same replicas of a small Llama, on the CPU, one after the other and round by round. Ours are
four proxies with --routing; the peers stand in front of proxies that know one replica each, so that they have the same
engines behind them. Prompts are new in every turn, so that nobody profits from what another left in the caches.

chat: conversations of five turns over one of four system prompts, as many at a time as the machine bears.
shared: one of twelve long system prompts (Zipf) and a short question, at a fixed rate.

The hit rate is the engine's own word; OpenVINO does not say, so there it is what the CPU time of the replicas shows.
"""

# ruff: noqa: E402  (the doubles of heads are the tests' own)
from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "integration")]

import httpx
import psutil
from authority_fixtures import STATE
from integration.proxy_fixtures import Head
from integration.replica_fixtures import RunningReplica, a_spec, running
from peers import environments
from peers.environments import Absent
from peers.make_llama import KV_TOKEN_VALUES
from peers.processes import DidNotStart, free_port, logged, wait_until_it_answers

from headrace.core.affinity import Policy
from headrace.core.phase import Phase
from headrace.core.types import Endpoint, ReplicaId, Route, RouteState

MODEL = "small"
START_S = 400.0  # of a replica
ROUTER_S = 60.0
KV_TOKENS = 12_000  # of a replica: not all conversations fit into one
WORDS = [
    "a", "headrace", "brings", "water", "under", "control", "to", "every", "wheel", "of", "one", "mill", "head", "many",
    "the", "quick", "brown", "fox", "jumps", "dog",
]  # fmt: skip
CONVERSATIONS, TURNS, THINK_S = 12, 5, 0.5
SHARED_PROMPTS, SHARED_REQUESTS = 12, 60


def text(random: Random, size: int) -> str:
    """So many bytes that nobody has seen."""
    words: list[str] = []
    while size > 0:
        words.append(random.choice(WORDS) + random.choice(("", "", f" {random.randrange(1000)}")))
        size -= len(words[-1]) + 1
    return " ".join(words)


@dataclass
class Seen:
    """What one turn of one policy brought. Tokens of prompts; seconds."""

    ttft_s: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    where: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    failed: int = 0
    cpu_s: float = 0.0
    took_s: float = 0.0

    def row(self) -> dict[str, float]:
        ttft = sorted(self.ttft_s)
        n = len(ttft)
        return {
            "ttft_p50_s": ttft[n // 2],
            "ttft_p99_s": ttft[min(n - 1, int(n * 0.99))],
            "hit_rate": self.cached_tokens / max(1, self.prompt_tokens),
            "cpu_s_per_request": self.cpu_s / n,
            "requests": n,
            "failed": self.failed,
            "took_s": self.took_s,
            "by_prefix": self.reasons["prefix"] / n,
        }


Message = dict[str, str]
Started = tuple[subprocess.Popen[bytes], int, Path]  # with its port and its log


async def ask(client: httpx.AsyncClient, messages: Sequence[Message], tokens: int, seen: Seen) -> str:
    """One streamed answer, all of it."""
    body = {"model": MODEL, "messages": messages, "max_tokens": tokens, "stream": True, "ignore_eos": True}
    body |= {"stream_options": {"include_usage": True}, "temperature": 0}
    begin, first, said = time.monotonic(), 0.0, ""
    async with client.stream("POST", "/v1/chat/completions", json=body) as r:
        if r.status_code != 200:
            seen.failed += 1
            await r.aread()
            return ""
        async for line in r.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line[6:])
            if event["choices"] and (piece := event["choices"][0]["delta"].get("content")):
                first = first or time.monotonic()
                said += piece
            if usage := event.get("usage"):
                seen.prompt_tokens += usage["prompt_tokens"]
                seen.cached_tokens += (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    seen.ttft_s.append((first or time.monotonic()) - begin)
    seen.where[r.headers.get("x-headrace-replica", "?")] += 1
    seen.reasons[r.headers.get("x-headrace-route-reason", "?").partition(";")[0]] += 1
    return said


async def chat(client: httpx.AsyncClient, seed: int, at_once: int, seen: Seen) -> None:
    random = Random(seed)
    systems = [text(random, 1500) for _ in range(4)]
    waiting = [Random(random.random()) for _ in range(CONVERSATIONS)]

    async def client_of_many() -> None:
        while waiting:
            r = waiting.pop()
            messages: list[Message] = [{"role": "system", "content": r.choice(systems)}]
            for _ in range(TURNS):
                messages.append({"role": "user", "content": text(r, 300)})
                said = await ask(client, messages, 24, seen)
                messages.append({"role": "assistant", "content": said})
                await asyncio.sleep(r.expovariate(1 / THINK_S))

    async with asyncio.TaskGroup() as tasks:
        for _ in range(at_once):
            tasks.create_task(client_of_many())


async def shared(client: httpx.AsyncClient, seed: int, rate: float, seen: Seen) -> None:
    random = Random(seed)
    systems = [text(random, 3500) for _ in range(SHARED_PROMPTS)]
    weights = [1 / (i + 1) for i in range(SHARED_PROMPTS)]
    begin, due = time.monotonic(), 0.0
    async with asyncio.TaskGroup() as tasks:
        for _ in range(SHARED_REQUESTS):
            due += random.expovariate(rate)
            system = random.choices(systems, weights)[0]
            messages = [{"role": "system", "content": system}, {"role": "user", "content": text(random, 120)}]
            await asyncio.sleep(max(0.0, begin + due - time.monotonic()))
            tasks.create_task(ask(client, messages, 16, seen))


def cpu_s(replicas: Sequence[RunningReplica]) -> float:
    total = 0.0
    for r in replicas:
        root = psutil.Process(r.child.pid)
        for p in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                times = p.cpu_times()
                total += times.user + times.system
    return total


def wait_for(child: subprocess.Popen[bytes], port: int, log: Path) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Go on."}], "max_tokens": 1}
    wait_until_it_answers(child, port, "/v1/chat/completions", log, ROUTER_S, json.dumps(body).encode())


def proxy(
    stack: ExitStack, head: Head, policy: str, folder: Path, name: str
) -> tuple[subprocess.Popen[bytes], int, Path]:
    port, log = free_port(), folder / f"{name}.log"
    argv = [sys.executable, "-m", "headrace", "proxy", f"--head_address={head.address}", f"--http_port={port}"]
    argv.append(f"--state_dir={STATE}")
    return stack.enter_context(logged([*argv, f"--routing={policy}", f"--proxy_id={name}"], log)), port, log


PEERS = {
    "smg": ["smg", "launch", "--policy", "cache_aware", "--max-concurrent-requests", "-1"],
    "vllm-router": [
        "vllm-router",
        "--policy",
        "cache_aware",
        "--max-concurrent-requests",
        "16384",
        "--worker-startup-check-interval",
        "1",
    ],
}


def peer(stack: ExitStack, name: str, urls: Sequence[str], folder: Path) -> Started:
    has = environments.environment(name)
    port, log = free_port(), folder / f"{name}.log"
    program, *flags = PEERS[name]
    at = ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(free_port())]
    at += ["--prometheus-host", "127.0.0.1", "--log-level", "error", "--worker-urls", *urls]
    return stack.enter_context(logged([str(has.bin / program), *flags, *at], log)), port, log


def shims(stack: ExitStack, urls: Sequence[str], folder: Path) -> list[str]:
    """The same, without what Headrace's proxy refuses (see peers/routing_shim.py)."""
    ports = {free_port(): url.rpartition(":")[2] for url in urls}
    argv = [sys.executable, str(ROOT / "benchmarks" / "peers" / "routing_shim.py")]
    stack.enter_context(logged([*argv, *(str(p) for pair in ports.items() for p in pair)], folder / "shim.log"))
    return [f"http://127.0.0.1:{port}" for port in ports]


@contextlib.asynccontextmanager
async def replicas_of(o: argparse.Namespace, model: Path, folder: Path) -> AsyncIterator[list[RunningReplica]]:
    if o.engine == "vllm":
        options: dict[str, object] = {"dtype": "float32", "enforce_eager": True, "max_num_batched_tokens": 1024}
        options |= {"kv_cache_memory_bytes": KV_TOKENS * KV_TOKEN_VALUES * 4}
    elif o.engine == "simulated":
        options = {"kv_tokens": KV_TOKENS, "step_s": 0.02, "prefill_chunk": 256}
    else:
        options = {"kv_cache_mib": KV_TOKENS * KV_TOKEN_VALUES * 2 // 2**20}
    async with AsyncExitStack() as stack:
        found: list[RunningReplica] = []
        for i in range(o.replicas):
            more = {"context_tokens": 4096} if o.engine == "vllm" else {}
            spec = a_spec(engine=o.engine, source=str(model), options=options, **more)
            spec = replace(spec, replica_id=ReplicaId(f"r{i}"))
            r = await stack.enter_async_context(running(spec, folder / f"r{i}", model.parent / "cache"))
            status = await r.status_when(lambda s: s.phase in (Phase.READY, Phase.FAILED), START_S)
            if status.phase is not Phase.READY:
                raise DidNotStart(status.reason)
            print(f"r{i} is ready", file=sys.stderr, flush=True)
            found.append(r)
        yield found


async def head_of(stack: AsyncExitStack, replicas: Sequence[RunningReplica]) -> Head:
    """A head that says nothing but where these replicas are."""
    head = await Head().start()
    stack.push_async_callback(head.die)
    endpoints = tuple(Endpoint(ReplicaId(r.replica_id), r.address) for r in replicas)
    head.show(Route(MODEL, RouteState.READY, "", endpoints, 0, 4096))
    return head


async def one_turn(kind: str, port: int, seed: int, o: argparse.Namespace, seen: Seen) -> None:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=120, limits=limits) as client:
        if kind == "chat":
            await chat(client, seed, o.at_once, seen)
        else:
            await shared(client, seed, o.rate, seen)


async def measure(o: argparse.Namespace, model: Path, folder: Path) -> dict[tuple[str, str], list[dict[str, float]]]:
    rows: dict[tuple[str, str], list[dict[str, float]]] = {}
    async with AsyncExitStack() as stack, replicas_of(o, model, folder) as replicas:
        processes = stack.enter_context(ExitStack())
        all_ = await head_of(stack, replicas)
        started = {p.value: proxy(processes, all_, p.value, folder, p.value) for p in Policy}
        urls: list[str] = []
        for r in replicas:
            one = await head_of(stack, [r])
            child, port, log = proxy(processes, one, "auto", folder, f"only-{r.replica_id}")
            await asyncio.to_thread(wait_for, child, port, log)
            urls.append(f"http://127.0.0.1:{port}")
        for name in PEERS.keys() - set(o.without):
            try:
                at = shims(processes, urls, folder) if name == "vllm-router" else urls
                started[name] = peer(processes, name, at, folder)
            except Absent as e:
                print(f"{name} is absent: {e}", file=sys.stderr)
        for name, (child, port, log) in list(started.items()):
            print(f"waiting for {name}", file=sys.stderr, flush=True)
            try:
                await asyncio.to_thread(wait_for, child, port, log)
            except DidNotStart as e:
                print(f"{name} did not start: {e}", file=sys.stderr)
                del started[name]
        order = Random(o.seed)
        for kind in ("chat", "shared"):  # engines are slow with what is new to them
            await one_turn(kind, started["round-robin"][1], order.randrange(2**32), o, Seen())
        for round_ in range(o.rounds):
            for kind in ("chat", "shared"):
                names = list(started)
                order.shuffle(names)
                for name in names:
                    seen, before, begin = Seen(), cpu_s(replicas), time.monotonic()
                    seed = order.randrange(2**32)
                    await one_turn(kind, started[name][1], seed, o, seen)
                    seen.took_s, seen.cpu_s = time.monotonic() - begin, cpu_s(replicas) - before
                    rows.setdefault((kind, name), []).append(seen.row())
                    print(f"{round_} {kind} {name}: {json.dumps(seen.row())}", file=sys.stderr, flush=True)
    return rows


def table(rows: dict[tuple[str, str], list[dict[str, float]]], engine: str) -> None:
    print(f"{'workload':10}{'policy':14}{'TTFT p50 (range)':>22}{'TTFT p99 (range)':>22}{'hits':>7}{'CPU/request':>13}")

    def ms(name: str, outcomes: list[dict[str, float]]) -> str:
        values = [1000 * x[name] for x in outcomes]
        return f"{statistics.median(values):.0f} ({min(values):.0f}–{max(values):.0f}) ms"

    for (kind, name), outcomes in sorted(rows.items()):
        hits = statistics.median(x["hit_rate"] for x in outcomes)
        said = "–" if engine == "openvino" else f"{100 * hits:.0f} %"
        cpu = 1000 * statistics.median(x["cpu_s_per_request"] for x in outcomes)
        print(
            f"{kind:10}{name:14}{ms('ttft_p50_s', outcomes):>22}{ms('ttft_p99_s', outcomes):>22}{said:>7}{cpu:10.0f} ms"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("openvino", "vllm", "simulated"), default="openvino")
    parser.add_argument("--replicas", type=int, default=0, help="0: 4 of OpenVINO, 2 of vLLM")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--at-once", type=int, default=0, help="conversations; 0: 8, 4 with vLLM")
    parser.add_argument("--rate", type=float, default=0.0, help="of shared prompts, a second; 0: 4, 2 with vLLM")
    parser.add_argument("--without", nargs="*", default=[], choices=tuple(PEERS), help="peers to leave out")
    parser.add_argument("--models", type=Path, help="keep the model and what is converted of it in this folder")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--add", action="store_true", help="to the rounds of the output that is there")
    parser.add_argument("--output", type=Path, default=None)
    o = parser.parse_args()
    # What two cores bear: beyond it all wait for all, and no policy shows.
    o.replicas = o.replicas or (2 if o.engine == "vllm" else 4)
    o.at_once = o.at_once or (4 if o.engine == "vllm" else 8)
    o.rate = o.rate or (2.0 if o.engine == "vllm" else 4.0)
    if o.engine == "vllm":
        python = environments.vllm().python
        if os.path.realpath(sys.prefix) != os.path.realpath(Path(python).parent.parent):
            os.execv(python, [python, *sys.argv])
    with tempfile.TemporaryDirectory() as folder:
        kept = (o.models or Path(folder)).absolute()
        model = kept / "model"
        if not model.exists():
            subprocess.run(
                [sys.executable, str(ROOT / "benchmarks" / "peers" / "make_llama.py"), str(model)], check=True
            )
        rows = asyncio.run(measure(o, model, Path(folder)))
    output = o.output or ROOT / "results" / f"routing_{o.engine}.json"
    if o.add and output.exists():
        for row in json.loads(output.read_text())["rows"]:
            rows.setdefault((row["workload"], row["policy"]), []).extend(row["rounds"])
    table(rows, o.engine)
    said = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "arguments": {k: str(v) for k, v in vars(o).items()},
        "rows": [{"workload": k, "policy": p, "rounds": x} for (k, p), x in sorted(rows.items())],
    }
    output.parent.mkdir(exist_ok=True)
    output.write_text(json.dumps(said, indent=1))
    print(f"written: {output}")


if __name__ == "__main__":
    main()
