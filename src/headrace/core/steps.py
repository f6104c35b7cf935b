"""Whether an engine still steps: a process can be alive, and its engine not."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.core.types import Load


@dataclass(slots=True)
class Steps:
    """Follows one engine's loads. Healthy means that steps advance while requests run."""

    _last: int = -1
    _since: float = 0.0

    def stalled_s(self, load: Load, now: float) -> float:
        """For how long there have been requests and no step; 0 while there are none. Tell it every load, in order."""
        if load.step != self._last or not (load.running or load.waiting):
            self._last, self._since = load.step, now
        return now - self._since
