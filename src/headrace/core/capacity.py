"""How many requests a replica works on at a time, where its own number does not say: its memory may be full before."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.core.types import Load

_STEPS = 2


@dataclass(slots=True)
class Capacity:
    """Learned from load reports. `limit` 0: not met yet.

    Requests that wait for steps while no more run show the limit; when as many run and none waits it grows again.
    """

    limit: int = 0
    _peak: int = 0
    _since: int = -1  # the step at which so many ran first, while others waited; -1: none wait

    def saw(self, load: Load) -> None:
        if not load.waiting or not load.running:
            self._since = -1
            if self.limit and load.running >= self.limit:
                self.limit += max(1, self.limit // 8)
        elif self._since < 0 or load.running > self._peak:
            self._peak, self._since = load.running, load.step
        elif load.step > self._since + _STEPS:
            self.limit = load.running
