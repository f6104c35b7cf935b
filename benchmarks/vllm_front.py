"""What it costs to put HTTP in front of vLLM: `vllm serve` alone, and Headrace's proxy and replica, in turns.

    python benchmarks/vllm_front.py [--streams 64] [--tokens 128] [--rounds 5] [--output FILE]

Both run a Llama of two layers with random weights on the CPU, and give the same streams the same number of tokens.
Counted is the CPU time of the process that serves HTTP (vLLM's API server; Headrace's proxy and its replica's own
process), not that of vLLM's engine processes, which are the same. vLLM for the CPU is installed on first use, in the
environment that `make test-vllm` has too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from peers import environments, report
from peers.environments import Absent, Environment
from peers.generator import Answers, Failed, Generator, Load
from peers.measure import machine, quantile
from peers.meter import sample
from peers.ours import system
from peers.processes import DidNotStart, end_on_term, free_port, logged, wait_until_it_answers
from peers.targets import TEXT

import headrace

MODEL = "small"
TARGET = 0.45
START_S = 300.0
ENGINE = {"dtype": "float32", "enforce_eager": True, "kv_cache_memory_bytes": 2**28, "load_format": "dummy"}
# A head of 32, which vLLM needs on a CPU.
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 128, "intermediate_size": 256,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-05, "hidden_act": "silu", "tie_word_embeddings": False, "torch_dtype": "float32",
}  # fmt: skip


@dataclass(frozen=True)
class Front:
    """`parts`: what is counted, by name."""

    name: str
    port: int
    parts: dict[str, list[psutil.Process]]


def make_model(folder: Path) -> Path:
    """A folder without weights: with load_format=dummy nothing reads them, but Headrace wants to see some."""
    demo = Path(headrace.__file__).parent / "data" / "demo"
    vocab = json.loads((demo / "config.json").read_text())["vocab_size"]
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA | {"vocab_size": vocab, "bos_token_id": 1, "eos_token_id": 2}))
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).write_bytes((demo / name).read_bytes())
    (folder / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    return folder


@contextmanager
def bare(model: Path, has: Environment, folder: Path) -> Iterator[Front]:
    """`vllm serve`, by its module: some distributions of vLLM lack the command."""
    port, log = free_port(), folder / "bare.log"
    argv = [has.python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--port", str(port)]
    argv += ["--host", "127.0.0.1", "--served-model-name", MODEL]
    for name, value in ENGINE.items():
        argv += [f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)])
    env = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    with logged(argv, log, env) as child:
        wait_until_it_answers(child, port, "/health", log, START_S)
        yield Front("vllm serve", port, {"API server": [psutil.Process(child.pid)]})


@contextmanager
def ours(model: Path, has: Environment, folder: Path) -> Iterator[Front]:
    entry = {"source": str(model), "engine": "vllm", "engine_args": ENGINE, "resources": {"cpus": 2}}
    with system({MODEL: entry}, 1, [], folder / "headrace", has.python) as s:
        yield Front("headrace", s.port, {"proxy": [s.proxy], "replica's front end": list(s.replicas)})


def measure(front: Front, generator: Generator, streams: int, tokens: int) -> dict[str, float]:
    asked = {
        "model": MODEL,
        "messages": [{"role": "user", "content": TEXT}],
        "max_tokens": tokens,
        "temperature": 0.0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    before = {name: sample(processes) for name, processes in front.parts.items()}
    generator.send(Load(front.port, json.dumps(asked).encode(), streams, tokens, ramp_s=0.5))
    after = before
    while isinstance(said := generator.next(), str):
        after = {name: sample(processes) for name, processes in front.parts.items()}
    assert isinstance(said, Answers)
    costs = {name: (after[name] - before[name]).cpu_s / said.tokens * 1e6 for name in front.parts}
    return costs | {
        "us": sum(costs.values()),
        "tokens_s": said.tokens / (said.ended_at - said.begun_at),
        "events_per_token": len(said.token_at) / said.tokens,
        "itl_p50_ms": quantile(said.gap_s, 0.5) * 1e3,
        "itl_p99_ms": quantile(said.gap_s, 0.99) * 1e3,
    }


def show(rows: dict[str, list[dict[str, float]]]) -> str:
    keys = ("us", "API server", "proxy", "replica's front end", "tokens_s", "events_per_token", "itl_p99_ms")
    head = ["", "CPU µs per token", *keys[1:4], "tokens/s", "events per token", "ITL p99, ms"]
    digits = {"tokens_s": 0, "events_per_token": 2}
    shown = [
        [name, *(report.show([r[k] for r in found if k in r], digits.get(k, 1)) for k in keys)]
        for name, found in rows.items()
    ]
    return report.table("The processes in front of vLLM's engine", head, shown)


def ratio(rows: dict[str, list[dict[str, float]]]) -> str:
    bare_us = statistics.median(r["us"] for r in rows["vllm serve"])
    each = report.show([r["us"] / bare_us for r in rows["headrace"]], 2)
    return f"Headrace in front of vLLM / vllm serve: {each} (target {TARGET})"


def run(has: Environment, streams: int, tokens: int, rounds: int) -> dict[str, list[dict[str, float]]]:
    rows: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as made, Generator() as generator, ExitStack() as stack:
        folder = Path(made)
        model = make_model(folder / "model")
        fronts: Sequence[Front] = [stack.enter_context(start(model, has, folder)) for start in (bare, ours)]
        for number in range(rounds + 1):
            for front in fronts if number % 2 == 0 else reversed(fronts):
                row = measure(front, generator, streams, tokens if number else 16)
                if number:  # the first one warms
                    rows.setdefault(front.name, []).append(row)
                    print(f"  round {number}: {front.name}: {row['us']:.1f}", file=sys.stderr, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("streams", 64), ("tokens", 128), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--output", type=Path, help="JSON; without it results/vllm_front-TIME.json")
    args = parser.parse_args()
    end_on_term()
    try:
        has = environments.vllm()
        rows = run(has, args.streams, args.tokens, args.rounds)
    except Absent as e:
        print(f"absent: vLLM for the CPU: {e}")
        return
    except (DidNotStart, Failed) as e:
        raise SystemExit(str(e)) from e
    result = {"machine": machine(), "vllm": has.version, "headrace": headrace.__version__, "rows": rows}
    output = args.output or Path("results") / time.strftime("vllm_front-%Y%m%d-%H%M%S.json")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result | {"streams": args.streams, "tokens": args.tokens}, indent=1))
    print(f"vLLM {has.version}, {args.streams} streams of {args.tokens} tokens, {args.rounds} rounds")
    print(f"{show(rows)}\n\n{ratio(rows)}")


if __name__ == "__main__":
    main()
