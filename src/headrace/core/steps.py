"""Whether an engine still steps: a process can be alive, and its engine not.

A long step and a hang look alike from outside, but for the CPU time that a step on a CPU uses.
"""

from __future__ import annotations

from dataclasses import dataclass

from headrace.core.types import Load

_WORKING = 0.1
"""Of one CPU: much more than a replica needs to say that it lives, less than a step gets on a machine full of work."""
_APART_S = 0.5


@dataclass(slots=True)
class Steps:
    """Follows one engine's loads. Healthy means that steps advance while requests run.

    `working`: between the last loads it used CPU time as one that computes does.
    """

    working: bool = False
    _last: int = -1
    _since: float = 0.0
    _cpu_s: float = 0.0
    _cpu_at: float = 0.0

    def stalled_s(self, load: Load, now: float) -> float:
        """For how long there have been requests and no step; 0 while there are none. Tell it every load, in order."""
        if load.cpu_s and now - self._cpu_at >= _APART_S:
            used, passed = load.cpu_s - self._cpu_s, now - self._cpu_at
            self.working = self._cpu_s > 0 and used >= _WORKING * passed
            self._cpu_s, self._cpu_at = load.cpu_s, now
        if load.step != self._last or not (load.running or load.waiting):
            self._last, self._since = load.step, now
        return now - self._since
