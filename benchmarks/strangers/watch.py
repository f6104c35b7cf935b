"""What a process did with its time, and how much memory it took, seen from outside. Linux only.

Three things are read a hundred times a second for each process that is watched:

- the time that its main thread, which runs the event loop, was on a core (`schedstat`);
- the time that all its threads were on a core (the process's CPU clock);
- where the main thread waits. In epoll its loop has come round and has nothing to do; at a futex it waits for the
  interpreter's lock, which another thread of the process holds.

`made_s` is what the process itself took from whoever waits for it: its loop's time on a core, and, for as long as the
loop waits for the interpreter, the time of the other threads. A busy machine adds nothing to either. A turn of the loop
ends when somebody hears from it, or when it is seen in epoll.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from pathlib import Path

_EVERY_S = 0.01
_FUTEX = {"x86_64": b"202", "aarch64": b"98"}.get(os.uname().machine, b"none")
_EPOLL = {"x86_64": (b"232", b"281", b"441"), "aarch64": (b"22", b"441")}.get(os.uname().machine, ())


@dataclass
class Clock:
    """Of one process: what it had spent when. `loop_s` and `process_s` are sums, as `made_s` is.

    `idle`: when its loop was seen to have nothing to do.
    """

    name: str
    pid: int
    at: list[float] = field(default_factory=list)
    made_s: list[float] = field(default_factory=list)
    loop_s: list[float] = field(default_factory=list)
    process_s: list[float] = field(default_factory=list)
    idle: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        task = f"/proc/{self.pid}/task/{self.pid}"
        self._stat = os.open(f"{task}/schedstat", os.O_RDONLY)
        self._call: int | None = None
        with contextlib.suppress(OSError):
            self._call = os.open(f"{task}/syscall", os.O_RDONLY)
            os.pread(self._call, 256, 0)
        self._call_before = b""
        self.alive = True

    def sample(self) -> None:
        try:
            ran = os.pread(self._stat, 64, 0).split()[0]
            process_s = time.clock_gettime((~self.pid << 3) | 2)  # another process's CPU clock, as libc names it
            call = b"" if self._call is None else os.pread(self._call, 256, 0).split(b" ", 1)[0]
        except (OSError, ValueError):
            self.alive = False
            return
        now, loop_s = time.monotonic(), int(ran) / 1e9
        made_s = 0.0
        if call in _EPOLL:
            self.idle.append(now)
        if self.at:
            loop = loop_s - self.loop_s[-1]
            made_s = self.made_s[-1] + loop
            if _FUTEX in (call, self._call_before) and not {call, self._call_before} & set(_EPOLL):
                # It asks for the interpreter every few milliseconds, so it may be about to at one end.
                made_s += max(0.0, min(process_s - self.process_s[-1], now - self.at[-1]) - loop)
        self._call_before = call
        self.at.append(now)
        self.made_s.append(made_s)
        self.loop_s.append(loop_s)
        self.process_s.append(process_s)

    def between(self, sums: list[float], begin: float, end: float) -> float:
        """What was added to one of the sums in this time."""
        return self._value(sums, end) - self._value(sums, begin)

    def _value(self, sums: list[float], t: float) -> float:
        i = bisect_left(self.at, t)
        if i == 0 or i == len(self.at):
            return sums[min(i, len(sums) - 1)]
        before, after = self.at[i - 1], self.at[i]
        return sums[i - 1] + (sums[i] - sums[i - 1]) * (t - before) / (after - before)

    def close(self) -> None:
        os.close(self._stat)
        if self._call is not None:
            os.close(self._call)


class Sampler:
    """A thread that samples clocks for the length of the block."""

    def __init__(self, clocks: list[Clock]) -> None:
        self._clocks = clocks
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        for clock in self._clocks:
            clock.close()

    def _run(self) -> None:
        while not self._over.is_set():
            for clock in self._clocks:
                if clock.alive:
                    clock.sample()
            time.sleep(_EVERY_S)


@dataclass(frozen=True)
class Gap:
    """A turn of a loop: what the process did in it (`made_s`), and its loop alone.

    `wall_s`, `process_s`: of the time around it in which nobody heard anything, its length and what all threads did.
    """

    wall_s: float = 0.0
    made_s: float = 0.0
    loop_s: float = 0.0
    process_s: float = 0.0


def worst_gap(clock: Clock, arrivals: list[float], end: float) -> Gap:
    """The turn of most `made_s`. `arrivals`: when somebody heard from the process; `end`: of what is looked at."""
    worst = Gap()
    if not clock.at:
        return worst
    heard = [clock.at[0], *sorted(arrivals), end]
    for a, b in itertools.pairwise(sorted({*heard, *clock.idle})):
        made = clock.between(clock.made_s, a, b)
        if made > worst.made_s:
            at = max(1, min(bisect_right(heard, a), len(heard) - 1))
            begin, over = heard[at - 1], heard[at]
            process = clock.between(clock.process_s, begin, over)
            worst = Gap(over - begin, made, clock.between(clock.loop_s, a, b), process)
    return worst


def _memory(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    return 0


def forget_peak(pid: int) -> int:
    """Begin to look for the most memory that the process has; what it has now, in bytes."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return _memory(pid, "VmRSS")


def peak(pid: int) -> int:
    """The most memory that it had since, in bytes; 0 if it is gone."""
    try:
        return _memory(pid, "VmHWM")
    except OSError:
        return 0
