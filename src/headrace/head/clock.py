"""The head's clock: Unix time that never jumps while the head runs, nor goes back behind what was stamped before."""

from __future__ import annotations

import time
from collections.abc import Callable

Clock = Callable[[], float]


def steady_clock(not_before: float = 0.0) -> Clock:
    """Unix time at the start (or `not_before`, if that is later), and monotonic from there."""
    offset = max(time.time(), not_before) - time.monotonic()
    return lambda: time.monotonic() + offset
