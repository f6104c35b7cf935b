"""How long a request would wait for a replica that is busy, from how fast slots have come free lately."""

from __future__ import annotations

from dataclasses import dataclass

_SHARE = 0.02  # of the newest in the mean: it follows the last hundred or so


@dataclass(slots=True)
class Mean:
    """A mean that forgets: of all at first, then of the last hundred or so. None before the first."""

    value: float = 0.0
    count: int = 0

    def add(self, x: float) -> None:
        self.count += 1
        self.value += (x - self.value) * max(1.0 / self.count, _SHARE)


def service_rate(in_service: int, held: Mean) -> float:
    """Slots that come free per second: by Little's law those in use over the time that each is held. 0.0: not known."""
    return in_service / held.value if held.count and held.value > 0 else 0.0


def expected_wait_s(ahead: float, rate: float) -> float | None:
    """Seconds until a slot comes free for a request with `ahead` before it; None: nothing is known."""
    return (ahead + 1.0) / rate if rate > 0 else None


def retry_after_s(expected_s: float | None, at_least: float = 1.0, at_most: float = 60.0) -> float:
    """When to come back: once about half of what waits now has been served."""
    return at_least if expected_s is None else min(max(expected_s / 2, at_least), at_most)
