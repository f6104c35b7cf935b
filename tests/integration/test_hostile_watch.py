"""The measure of benchmarks/hostile.py: what a process itself did in a turn of its loop, seen from outside."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from strangers.watch import Clock, Gap, Sampler, forget_peak, peak, worst_gap

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc of Linux")

# What `do` does on the loop's thread or on another begins when a line comes, and a line is written when it is over.
_PROGRAM = """
import asyncio, hashlib, sys, time

def burn():
    end = time.thread_time() + 0.5
    while time.thread_time() < end: pass

def hold():  # one call into C, which does not let the interpreter go
    sum(range(60_000_000))

def free():  # hashlib lets the interpreter go
    end = time.thread_time() + 0.5
    while time.thread_time() < end: hashlib.sha256(bytes(2**20)).digest()

async def turn():
    while True: await asyncio.sleep(0.001)

async def main():
    turning = asyncio.create_task(turn())
    kind = await asyncio.to_thread(sys.stdin.readline)
    match kind.strip():
        case "loop": burn()
        case "hold": await asyncio.to_thread(hold)
        case "free": await asyncio.to_thread(free)
        case "idle": await asyncio.sleep(0.5)
        case "grow": turning.data = b"a" * 50_000_000
    print("over", flush=True)
    await asyncio.to_thread(sys.stdin.readline)

print("ready", flush=True)
asyncio.run(main())
"""


def _seen(kind: str) -> tuple[Gap, int]:
    with subprocess.Popen(
        [sys.executable, "-c", _PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        assert process.stdin
        assert process.stdout
        process.stdout.readline()
        time.sleep(0.3)
        clock = Clock(kind, process.pid)
        before = forget_peak(process.pid)
        with Sampler([clock]):
            time.sleep(0.1)
            begin = time.monotonic()
            process.stdin.write(f"{kind}\n")
            process.stdout.readline()
            end = time.monotonic()
            time.sleep(0.05)
        grown = peak(process.pid) - before
        process.stdin.write("end\n")
    return worst_gap(clock, [begin], end), grown


def test_a_loop_that_computes_is_seen() -> None:
    gap, _ = _seen("loop")
    assert gap.made_s > 0.4
    assert gap.loop_s > 0.4


def test_a_thread_that_holds_the_interpreter_is_seen() -> None:
    gap, _ = _seen("hold")
    assert gap.made_s > 0.2
    assert gap.loop_s < 0.2


@pytest.mark.parametrize("kind", ["free", "idle"])
def test_what_holds_nobody_up_is_not_counted(kind: str) -> None:
    gap, _ = _seen(kind)
    assert gap.made_s < 0.2


def test_memory_is_the_most_there_was() -> None:
    assert 45e6 < _seen("grow")[1] < 80e6
