"""Lets the texts of a stream wait for each other, for a moment, while the proxy has no time to spare.

Most of what a token costs is the kernel's work for one write. Two tokens in one event cost one.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Protocol

from headrace.core.pressure import Pressure

_LOOK_S = 0.25
_SCHEDSTAT = Path("/proc/self/schedstat")


class Held(Protocol):
    def flush(self) -> None:
        """Send what waits. Quick, and must not raise."""
        ...


class Coalescer:
    """One per process. `active`: texts are to be held now."""

    def __init__(self, hold_s: float) -> None:
        """`hold_s`: the longest that a text waits; 0: none ever does."""
        self.active = False
        self._hold_s = hold_s
        self._held: list[Held] = []

    def hold(self, what: Held) -> None:
        """Have it flushed in `hold_s`, or sooner."""
        if not self._held:
            asyncio.get_running_loop().call_later(self._hold_s, self._flush)
        self._held.append(what)

    def _flush(self) -> None:
        held, self._held = self._held, []
        for what in held:
            what.flush()

    async def run(self) -> None:
        """Follow the pressure until cancelled."""
        pressure = Pressure()
        while self._hold_s > 0:
            self.active = pressure.saw(time.monotonic(), _wanted_s())
            await asyncio.sleep(_LOOK_S)


def _wanted_s() -> float:
    """Seconds that this process's main thread has run or waited for a core; where no kernel counts that, has run."""
    try:
        ran, waited, _ = _SCHEDSTAT.read_text().split()
        return (int(ran) + int(waited)) / 1e9
    except (OSError, ValueError):
        return time.thread_time()


NEVER = Coalescer(0.0)
