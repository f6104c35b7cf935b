"""Whether a process whose loop says something once a second has come to a stand."""

from __future__ import annotations

BEAT_S = 1.0
LIMIT_S = 5.0
_CHANCE_S = 2 * BEAT_S
_NEVER_MIND_S = 6 * LIMIT_S  # so long it may not be silent, whatever may explain it


class Heartbeat:
    """Counts seconds of silence that nothing but the process itself explains. Times are of one clock, in seconds.

    While it cannot be heard at all (it starts, its socket is not there) nothing is counted: that proves nothing.
    """

    def __init__(self) -> None:
        self._heard_at: float | None = None
        self._ran_s = self._waited_s = 0.0

    def heard(self, now: float, ran_s: float = 0.0, waited_s: float = 0.0) -> None:
        """It has said something, or can be heard from now on. It has run, and waited for a core, in all its life."""
        self._heard_at, self._ran_s, self._waited_s = now, ran_s, waited_s

    def unheard(self) -> None:
        """It can be heard no longer."""
        self._heard_at = None

    def we_stood_still(self, seconds: float) -> None:
        """It was the listener that did, and has yet to hear what was said meanwhile."""
        if self._heard_at is not None:
            self._heard_at += seconds

    def silent_s(self, now: float, ran_s: float = 0.0, waited_s: float = 0.0) -> float:
        """Seconds without a word, less those for which it waited for a core. LIMIT_S of them are too many.

        One that has run for long enough to say several words had its chance, however long it waited besides.
        """
        if self._heard_at is None:
            return 0.0
        silent = now - self._heard_at
        if silent >= _NEVER_MIND_S or ran_s - self._ran_s >= _CHANCE_S:
            return silent
        return silent - max(0.0, waited_s - self._waited_s)
