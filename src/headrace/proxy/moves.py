"""What all streams of this proxy share when replicas go away: how many may move, and which requests are kept apart."""

from __future__ import annotations

import asyncio
from array import array
from hashlib import blake2b

from headrace.core.failover import MAX_DEATHS, Budget, Quarantine
from headrace.core.streams import ChatPrompt, Submit, TextPrompt
from headrace.errors import Quarantined
from headrace.proxy.stream import Stream

_TURN_S = 5.0


class Moves:
    """`running`: streams that the proxy has now."""

    def __init__(self, budget: Budget | None = None, quarantine: Quarantine | None = None) -> None:
        self.running = 0
        self._budget = budget or Budget()
        self._quarantine = quarantine or Quarantine()
        self._proving: Stream | None = None
        self._clock = asyncio.get_running_loop().time

    def admit(self, streams: int) -> None:
        """So many streams begin; `leave` when they have ended."""
        self.running += streams
        self._budget.carried(self._clock(), streams)

    def leave(self, streams: int) -> None:
        self.running -= streams

    def may_move(self) -> bool:
        """Whether one more stream may go to another replica; it counts if so."""
        return self._budget.take(self._clock(), self.running)

    async def turn(self, suspect: Stream) -> None:
        """Wait until no other stream that may have killed a replica has yet to show that it does not kill the next.

        So that, when the next one dies too, it is clear of which. At most for a while.
        """
        give_up = self._clock() + _TURN_S
        while (s := self._proving) and s is not suspect and s.proving and self._clock() < give_up:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        self._proving = suspect

    def check(self, model: str, submit: Submit) -> None:
        """Quarantined if replicas have died of the like of it."""
        if self._quarantine and self._quarantine.holds(_key(model, submit), self._clock()):
            raise Quarantined(
                f"{MAX_DEATHS} replicas went away while they had this prompt; it is not tried again for some minutes."
            )

    def quarantine(self, model: str, submit: Submit) -> None:
        """Replicas have died of it."""
        self._quarantine.add(_key(model, submit), self._clock())


def _key(model: str, s: Submit) -> bytes:
    match s.prompt:
        case TextPrompt(text):
            prompt = text.encode()
        case ChatPrompt(messages):
            prompt = messages
        case _:
            prompt = array("I", s.prompt.ids).tobytes()
    digest = blake2b(digest_size=16)
    for part in (model, type(s.prompt).__name__, s.task.value, s.document):
        digest.update(part.encode() + b"\0")
    digest.update(prompt)
    return digest.digest()
