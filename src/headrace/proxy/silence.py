"""Whether one replica still works, from when its frames come and from what they say of its engine's steps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from headrace.core.steps import Steps
from headrace.core.types import Load

log = structlog.get_logger()

_OTHER_KIND = 3


@dataclass(frozen=True, slots=True)
class Silence:
    """An idle replica sends a frame a second. Seconds without one until it is avoided, and until it is given up.

    The same seconds count for an engine that makes no step while it has requests; but such a replica is given up only
    when there is another, and never while its engine is seen to compute: then the step is just long.
    """

    suspect_s: float = 3.0
    gone_s: float = 6.0


class Silent(Exception):
    """No frame came for too long, or no step. The message says which."""


class Watch:
    """Of one replica. `suspect`: send it nothing new while there are others."""

    def __init__(self, silence: Silence, replica_id: str) -> None:
        self.suspect = False
        self.heard_at = 0.0  # loop time of the last frame
        self._silence = silence
        self._replica_id = replica_id
        self._steps = Steps()
        self._stalled_s = 0.0
        self._clock = asyncio.get_running_loop().time

    @property
    def still_s(self) -> float:
        """How long nothing has shown that it works: no frame, or no step although it has requests."""
        return self._clock() - self.heard_at + self._stalled_s

    def heard(self, now: float, load: Load | None) -> None:
        """A frame has come, with the load if that is new."""
        self.heard_at = now
        if load is not None:
            self._stalled_s = self._steps.stalled_s(load, now)
        self.suspect = self._stalled_s >= self._silence.suspect_s

    async def run(self, busy: Callable[[], bool], others: Callable[[bool], bool]) -> None:
        """Raise Silent when it is to be given up. `busy`: it has streams of ours.

        `others`: whether there is another sound replica of the model; with True, one of the same kind.
        """
        s = self._silence
        while True:
            silent = self._clock() - self.heard_at
            stalled = silent + self._stalled_s
            if silent >= s.gone_s:
                raise Silent(f"nothing came from it for {s.gone_s:g} s")
            # Where the others are of another kind, what has begun cannot go on there: then it gets more time.
            if (
                busy()
                and not self._steps.working
                and ((stalled >= s.gone_s and others(True)) or (stalled >= _OTHER_KIND * s.gone_s and others(False)))
            ):
                raise Silent(f"its engine made no step for {stalled:.0f} s, with requests to work on")
            if stalled >= s.suspect_s and not self.suspect:
                self.suspect = True
                log.warning("replica_silent", replica=self._replica_id, silent_s=round(stalled, 1))
            limit = s.gone_s if self.suspect else s.suspect_s
            pause = min(max(limit - stalled, s.suspect_s / 10), s.gone_s - silent) + 0.001
            asleep_at = self._clock()
            await asyncio.sleep(pause)
            late = self._clock() - asleep_at - pause
            if late > s.suspect_s / 3:
                self.heard_at += late  # it was us who stood still: what came meanwhile has yet to be read
