"""CPU time and memory of a set of processes, to the nanosecond where the system tells it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import psutil

Members = Callable[[], Iterable[psutil.Process]]


@dataclass(frozen=True)
class Sample:
    at: float
    cpu_s: float
    user_s: float
    system_s: float

    def __sub__(self, earlier: Sample) -> Sample:
        return Sample(
            self.at - earlier.at,
            self.cpu_s - earlier.cpu_s,
            self.user_s - earlier.user_s,
            self.system_s - earlier.system_s,
        )


def family(root: psutil.Process) -> list[psutil.Process]:
    """A process and all that come from it."""
    return [root, *root.children(recursive=True)]


def sample(processes: Iterable[psutil.Process]) -> Sample:
    """CPU time so far. `cpu_s` is exact on Linux; its two parts are in the kernel's ticks of 10 ms."""
    total = user = system = 0.0
    for p in processes:
        times = p.cpu_times()
        user += times.user
        system += times.system
        # The clock of another process's CPU time, as clock_getcpuclockid(3) makes it.
        exact = time.clock_gettime((~p.pid << 3) | 2) if sys.platform == "linux" else times.user + times.system
        total += exact
    return Sample(time.monotonic(), total, user, system)


def memory_bytes(processes: Iterable[psutil.Process]) -> int:
    """Memory that is these processes' own."""
    return sum(p.memory_full_info().uss for p in processes)
