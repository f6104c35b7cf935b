"""Which HTTP server costs a proxy least: one tiny app that streams a token per event, on each of them in turns.

    python benchmarks/http_servers.py [--streams 256] [--tokens 300] [--rounds 3] [--output FILE]

The app (peers/server_app.py) ticks in one task and writes an event to every stream, as the proxy's frame reader does:
with ASGI's `send` driven by hand from that task ("driven"); as ordinary apps do, with a task per stream that is woken
("tasks"); and, where a server lets one reach the connection, past its `send` ("past"). CPU time of all the server's
processes over tokens delivered. Servers are installed on first use, in an environment of their own.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from peers import report, server_app
from peers.environments import REQUIREMENTS, Absent, Environment, environment
from peers.generator import Answers, Failed, Generator, Load
from peers.measure import machine, quantile
from peers.meter import family, sample
from peers.processes import DidNotStart, end_on_term, free_port, logged, wait_until_it_answers

APP = Path(server_app.__file__)
BODY = b'{"max_tokens":%d}'


@dataclass(frozen=True)
class Server:
    name: str
    port: int
    members: Sequence[psutil.Process]


def commands(has: Environment, port: int) -> dict[str, tuple[list[str], tuple[str, ...]]]:
    """Each server's command line, and the ways of writing that it is measured with."""
    at = ["--host", "127.0.0.1", "--port", str(port)]
    bin, both = has.bin, ("driven", "tasks")
    granian = [f"{bin}/granian", "--interface", "asginl", *at, "--loop", "uvloop", "--log-level", "error"]
    return {
        "uvicorn": ([has.python, str(APP), "uvicorn", str(port)], ("past", *both)),
        "granian": ([*granian, "server_app:app"], both),
        "hypercorn": ([f"{bin}/hypercorn", "--bind", f"127.0.0.1:{port}", "-k", "uvloop", "server_app:app"], both),
        "aiohttp": ([has.python, str(APP), "aiohttp", str(port)], ("past", *both)),
    }


@contextmanager
def server(name: str, how: str, folder: Path, step_s: float) -> Iterator[Server]:
    port = free_port()
    argv = commands(environment("servers"), port)[name][0]
    env = {"HOW": how, "STEP_S": str(step_s), "PYTHONPATH": str(APP.parent)}
    log = folder / f"{name}-{how}.log"
    with logged(argv, log, env) as child:
        wait_until_it_answers(child, port, "/v1/chat/completions", log, 60, BODY % 1)
        yield Server(f"{name}, {how}", port, family(psutil.Process(child.pid)))


def measure(s: Server, generator: Generator, streams: int, tokens: int) -> dict[str, float]:
    before = sample(s.members)
    generator.send(Load(s.port, BODY % tokens, streams, tokens, server_app.text(tokens)))
    after = before
    while isinstance(said := generator.next(), str):
        after = sample(s.members)
    assert isinstance(said, Answers)
    cost = after - before
    user = cost.user_s / (cost.user_s + cost.system_s or 1.0)
    us = cost.cpu_s / said.tokens * 1e6
    gaps = {f"itl_p{q}_ms": quantile(said.gap_s, q / 100) * 1e3 for q in (50, 99)}
    return {"us": us, "user_us": us * user, "system_us": us * (1 - user), **gaps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("streams", 256), ("tokens", 300), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--step_s", type=float, default=0.02)
    parser.add_argument("--output", type=Path, help="JSON; without it results/http_servers-TIME.json")
    args = parser.parse_args()
    end_on_term()
    rows: dict[str, list[dict[str, float]]] = {}
    absent: list[str] = []
    with (
        tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder,
        Generator() as generator,
        ExitStack() as stack,
    ):
        servers: list[Server] = []
        try:
            known = commands(environment("servers"), 0)
        except Absent as e:
            raise SystemExit(f"The servers cannot be installed: {e}") from e
        for name, (_, hows) in known.items():
            for how in hows:
                try:
                    servers.append(stack.enter_context(server(name, how, Path(folder), args.step_s)))
                except DidNotStart as e:
                    absent.append(f"absent: {name}, {how}: {e}")
        for number in range(args.rounds + 1):
            for s in servers if number % 2 == 0 else reversed(servers):
                try:
                    row = measure(s, generator, args.streams, args.tokens if number else 20)
                except Failed as e:
                    absent.append(f"error: {s.name}: {e}")
                    continue
                if number:  # the first one warms
                    rows.setdefault(s.name, []).append(row)
                    print(f"  round {number}: {s.name}: {row['us']:.1f}", file=sys.stderr, flush=True)
    result: dict[str, Any] = {
        "machine": machine(),
        "versions": REQUIREMENTS["servers"],
        "args": vars(args),
        "rows": rows,
    }
    output = args.output or Path("results") / time.strftime("http_servers-%Y%m%d-%H%M%S.json")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=1, default=str))
    keys = ("us", "user_us", "system_us", "itl_p50_ms", "itl_p99_ms")
    shown = [[name, *(report.show([r[k] for r in found]) for k in keys)] for name, found in rows.items()]
    title = f"CPU µs per token; {', '.join(REQUIREMENTS['servers'])}; {args.streams} streams of {args.tokens} tokens"
    head = ["", "in all", "user", "system", "ITL p50, ms", "ITL p99, ms"]
    print(report.table(title, head, shown))
    print("\n".join(absent))


if __name__ == "__main__":
    main()
