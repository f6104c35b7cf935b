"""Whether a process has time to spare, from what the kernel says of its main thread."""

from __future__ import annotations

from dataclasses import dataclass

_BUSY, _IDLE = 0.5, 0.2
"""Shares of the time. Apart, because what is done about pressure lowers it by up to a half."""


@dataclass(slots=True)
class Pressure:
    """On above the first share of the last interval that the thread ran or wanted to, off below the second."""

    on: bool = False
    _wanted_s: float = 0.0
    _at: float | None = None

    def saw(self, now: float, wanted_s: float) -> bool:
        """`wanted_s`: seconds so far that the thread has run, or waited for a core. Returns `on`."""
        if self._at is not None and now > self._at:
            share = (wanted_s - self._wanted_s) / (now - self._at)
            self.on = share >= (_IDLE if self.on else _BUSY)
        self._at, self._wanted_s = now, wanted_s
        return self.on
