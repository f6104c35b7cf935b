"""Requests of one model that wait for a replica with room, in the order of core/fair."""

from __future__ import annotations

import asyncio
from collections import Counter

from headrace.core.fair import Claim, FairQueue
from headrace.errors import HeadraceError
from headrace.proxy.session import Session
from headrace.proxy.ticket import Ticket


class Entry:
    """One that waits. `turn` brings its session, or the error with which it has to go."""

    __slots__ = ("begun", "claim", "model", "ticket", "turn")

    def __init__(self, model: str, ticket: Ticket) -> None:
        loop = asyncio.get_running_loop()
        self.model = model
        self.ticket = ticket
        self.claim = ticket.claim()
        self.begun = loop.time()
        self.turn: asyncio.Future[Session] = loop.create_future()

    def grant(self, session: Session) -> None:
        """Hold room at the replica until the waiting task has run."""
        session.reserved += int(self.claim.cost)
        self.turn.set_result(session)

    def refuse(self, error: HeadraceError) -> None:
        if not self.turn.done():
            self.turn.set_exception(error)

    def settle(self) -> None:
        """The waiting task has run, or is cancelled: what was held for it is its own now, or free. Call it once."""
        if not self.turn.done():
            self.turn.cancel()
        elif not self.turn.cancelled() and self.turn.exception() is None:
            self.turn.result().reserved -= int(self.claim.cost)


class Queue(FairQueue[Entry]):
    """Bounded by `most` entries. `waiting`: counts them by the name that was asked for."""

    def __init__(self, most: int, waiting: Counter[str]) -> None:
        super().__init__()
        self._most = most
        self._waiting = waiting

    def push(self, item: Entry, claim: Claim) -> None:
        super().push(item, claim)
        self._waiting[item.model] += 1

    def pop(self) -> Entry | None:
        item = super().pop()
        if item is not None:
            self._waiting[item.model] -= 1
        return item

    def remove(self, item: Entry) -> None:
        if item in self:
            self._waiting[item.model] -= 1
        super().remove(item)

    def enter(self, entry: Entry, full: HeadraceError) -> None:
        """Take an entry in. When there is no room `full` goes to it, or to one who has more waiting than it."""
        if len(self) >= self._most:
            other = self.to_drop_for(entry.claim)
            if other is None:
                raise full
            self.remove(other)
            other.refuse(full)
        self.push(entry, entry.claim)
