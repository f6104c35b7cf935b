"""Open-loop load at once and at five times what a replica can take: what is completed, and how fast others are refused.

    python benchmarks/overload.py [--seconds 15] [--slots 32]

A real system with the simulated engine. Goodput: answers completed per second; the promise is 90 % of the peak at five
times the load, and a refusal (429 with Retry-After) within 100 ms. Each client makes a connection, as a new one would.

The clients share the machine with what they measure. So each row also says which part of the time the proxy, and the
clients' own process, ran on a core and waited for one (the kernel's count, Linux only), and how late a timer of the
clients' process came: a refusal that is late by no more than that was not late at the proxy.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import psutil
from proxy_cpu import System, system

from headrace import __version__
from headrace.process import raise_open_files

STEP_S, TOKENS = 0.02, 20
BODY = json.dumps({"model": "sim", "messages": [{"role": "user", "content": "Go on."}], "max_tokens": TOKENS}).encode()
REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
)


@dataclass(frozen=True)
class Outcome:
    status: int
    took_s: float
    retry_after: bool


async def ask(s: System) -> Outcome:
    begin = time.monotonic()
    reader, writer = await asyncio.open_connection(s.host, s.port)
    writer.write(REQUEST)
    answer = await reader.read()
    writer.close()
    return Outcome(int(answer[9:12]), time.monotonic() - begin, b"retry-after:" in answer.lower())


@dataclass
class Share:
    """Of one process, since `begin`: seconds of its main thread on a core, and waiting for one."""

    pid: int
    begin: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        self.begin = self._now()

    def _now(self) -> tuple[float, float, float]:
        try:
            ran, waited, _ = Path(f"/proc/{self.pid}/schedstat").read_text().split()
            return time.monotonic(), int(ran) / 1e9, int(waited) / 1e9
        except OSError:
            times = psutil.Process(self.pid).cpu_times()
            return time.monotonic(), times.user + times.system, 0.0

    def told(self) -> str:
        passed, ran, waited = (a - b for a, b in zip(self._now(), self.begin, strict=True))
        return f"{ran / passed:.0%} + {waited / passed:.0%}"


async def watch_lag(lags: list[float], every_s: float = 0.01) -> None:
    """How late a timer comes in this process, until cancelled."""
    while True:
        due = time.monotonic() + every_s
        await asyncio.sleep(every_s)
        lags.append(time.monotonic() - due)


async def load(s: System, rate: float, seconds: float) -> tuple[float, list[Outcome]]:
    """Requests at a fixed rate, whatever becomes of them: answers completed per second, and all outcomes."""
    begin = time.monotonic()
    tasks: list[asyncio.Task[Outcome]] = []
    while (passed := time.monotonic() - begin) < seconds:
        while len(tasks) < passed * rate:
            tasks.append(asyncio.create_task(ask(s)))
        await asyncio.sleep(0.005)
    outcomes = await asyncio.gather(*tasks)
    return sum(o.status == 200 for o in outcomes) / (time.monotonic() - begin), outcomes


def share(values: list[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * q))] if values else 0.0


@dataclass(frozen=True)
class Measured:
    times: float
    goodput: float
    outcomes: list[Outcome]
    lags: list[float]
    proxy: str
    clients: str


async def measured(s: System, most: float, times: float, seconds: float) -> Measured:
    lags: list[float] = []
    watching = asyncio.create_task(watch_lag(lags))
    proxy, clients = Share(s.proxy.pid), Share(os.getpid())
    goodput, outcomes = await load(s, most * times, seconds)
    watching.cancel()
    return Measured(times, goodput, outcomes, lags, proxy.told(), clients.told())


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--slots", type=int, default=32)
    args = parser.parse_args()
    raise_open_files()
    os.environ["HEADRACE_MAX_WAITING"] = "64"
    os.environ["HEADRACE_BUSY_S"] = "3"
    options = {"step_s": STEP_S, "max_running": args.slots}
    most = args.slots / ((TOKENS + 1) * STEP_S)
    with tempfile.TemporaryDirectory() as folder:
        async with system(Path(folder), args.slots, options) as s:
            await load(s, most, 2)  # warm
            rows = [await measured(s, most, times, args.seconds) for times in (0.9, 1.1, 5.0)]
    print(f"Headrace {__version__}, Python {platform.python_version()}, {os.cpu_count()} CPUs; one replica of", end=" ")
    print(f"{args.slots} slots, at most {most:.0f} answers/s by its steps")
    print("| load | answers/s | 200 | 429 | other | 429 after, ms: p50 | p99 | max | answers, s: p50 | p99 |", end="")
    print(" proxy ran + waited | clients ran + waited | clients' timers late, ms: p50 | p99 | max |")
    print("|---" * 15 + "|")
    for m in rows:
        codes = Counter(o.status for o in m.outcomes)
        refused = [o.took_s * 1000 for o in m.outcomes if o.status == 429]
        done = [o.took_s for o in m.outcomes if o.status == 200]
        lags = [x * 1000 for x in m.lags]
        other = len(m.outcomes) - codes[200] - codes[429]
        print(
            f"| {m.times:g} × | {m.goodput:.1f} | {codes[200]} | {codes[429]} | {other} | {share(refused, 0.5):.0f} |"
            f" {share(refused, 0.99):.0f} | {max(refused, default=0):.0f} | {share(done, 0.5):.2f} |"
            f" {share(done, 0.99):.2f} | {m.proxy} | {m.clients} | {share(lags, 0.5):.0f} | {share(lags, 0.99):.0f} |"
            f" {max(lags, default=0):.0f} |"
        )
        if not all(o.retry_after for o in m.outcomes if o.status == 429):
            raise SystemExit("A 429 came without Retry-After.")
    print(f"at 5 × {rows[-1].goodput / max(m.goodput for m in rows):.0%} of the peak")


if __name__ == "__main__":
    asyncio.run(main())
