"""One request: all its choices, at one replica where that can be, until the last is done."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from headrace import errors
from headrace.core.streams import Submit, prompt_size
from headrace.core.types import ReplicaId
from headrace.metrics import Tally
from headrace.proxy.admission import Admission
from headrace.proxy.moves import Moves
from headrace.proxy.place import Place, Sink
from headrace.proxy.stream import Stream, fan_out
from headrace.proxy.ticket import Ticket

_FIRST_TOKEN_WORD_S = 10.0
_ALL_ASKED_S = 3.0
_GIVEN_BYTES = 512 * 1024  # of prompts that are sent in one turn
WINDOW = 128
"""Streams of one request that are with replicas at a time: all the choices that one may ask for."""


@dataclass(frozen=True, slots=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


class ClientLeft(Exception):
    """The connection is gone."""


class Generation:
    """`submits`: one per prompt; each becomes `n` streams, numbered prompt by prompt."""

    def __init__(
        self,
        model: str,
        submits: Sequence[Submit],
        n: int,
        sink: Sink,
        admission: Admission,
        tally: Tally,
        moves: Moves,
        place: Place | None = None,
        ticket: Ticket | None = None,
    ) -> None:
        """`place`: see Stream; for a single stream only. `ticket`: see Admission."""
        self._ticket = ticket or Ticket()
        self.model = model
        self._submits = submits
        self._moves = moves
        self._n = n
        self._admission = admission
        self._sink = sink
        self._wake = asyncio.Event()
        self._error: errors.HeadraceError | ClientLeft | None = None
        self._limit = asyncio.timeout(None)
        on_move = self._ticket.on_move
        self.streams = [
            Stream(p * n + i, fan_out(submit, i), sink, tally, self._wake.set, moves.may_move, place, on_move)
            for p, submit in enumerate(submits)
            for i in range(n)
        ]

    @property
    def first_at(self) -> float:
        """Loop time of the first token of any choice; 0.0 before."""
        return min((s.first_at for s in self.streams if s.first_at), default=0.0)

    def fail(self, error: errors.HeadraceError | ClientLeft) -> None:
        """End the request with an error, from outside. Idempotent."""
        if self._error is None:
            self._error = error
            if not all(s.done for s in self.streams):
                self._limit.reschedule(0.0)

    async def run(self) -> Usage:
        """Until every choice is done; HeadraceError if one failed. The replicas are left clean, however it ends."""
        count = min(len(self.streams), WINDOW)
        self._moves.admit(count)
        try:
            for submit in self._submits:
                self._moves.check(self.model, submit)
            async with self._limit:
                await self._run()
        except TimeoutError:
            raise self._error or errors.HeadraceError("The request ended without a reason.") from None
        finally:
            self._moves.leave(count)
            for s in self.streams:
                if isinstance(s.error, errors.Quarantined):
                    self._moves.quarantine(self.model, self._submits[s.index // self._n])
                s.end("abort")
                s.error = None  # whose traceback leads back to here
            self._error = None
        return self.usage()

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            if error := self._error or next((s.error for s in self.streams if s.error), None):
                raise error
            waiting = [s for s in self.streams if s.needs_replica]
            room = WINDOW - sum(1 for s in self.streams if not s.done) + len(waiting)
            if waiting and room > 0:
                await self._place(waiting[:room])
            elif all(s.done for s in self.streams):
                return
            else:
                await self._sleep()

    async def _place(self, waiting: list[Stream]) -> None:
        if waiting[0].taking_over:
            await self._ask_next(waiting[0])
            return
        like = waiting[0].fingerprint
        waiting = [s for s in waiting if s.fingerprint == like]  # the others' turn comes in the next round
        if like and not self._admission.has(self.model, like) and all(s.begin_again() for s in waiting):
            return  # of another kind will do now
        heard_after = -1.0
        if suspect := next((s for s in waiting if s.deaths), None):
            waiting = [suspect]
            # Only at a replica that has lived through the last death: several may die at one moment.
            heard_after = asyncio.get_running_loop().time()
            await self._moves.turn(suspect)
        excluded: set[ReplicaId] = {r for s in waiting for r in s.tried}
        session = await self._admission.session_for(
            self.model, excluded, self._sink.waiting, like, self._ticket, heard_after
        )
        route = self._admission.route(self.model)  # the one that the session was found by
        given = 0
        for stream in waiting:
            if stream.needs_replica:
                stream.place(session, route.adapter if route else "")
                given += prompt_size(stream.submit)
            if given > _GIVEN_BYTES:  # should the session break meanwhile, the rest goes elsewhere
                given = 0
                await asyncio.sleep(0)

    async def _ask_next(self, stream: Stream) -> None:
        """Ask one more replica whether it keeps the stream. Gone if none does."""
        clock = asyncio.get_running_loop().time
        give_up = clock() + _ALL_ASKED_S
        while (session := self._admission.untried(self.model, set(stream.tried))) is None:
            # A proxy that has just started may not have reached all of them yet.
            if self._admission.reaches_all(self.model) or clock() >= give_up:
                raise errors.Gone("No replica keeps this stream any more: ask again, without Last-Event-ID.")
            await asyncio.sleep(0.02)
        route = self._admission.route(self.model)
        stream.place(session, route.adapter if route else "")

    async def _sleep(self) -> None:
        if self.first_at or self.streams[0].taking_over:
            await self._wake.wait()
            return
        timer = asyncio.get_running_loop().call_later(_FIRST_TOKEN_WORD_S, self._say_waiting)
        try:
            await self._wake.wait()
        finally:
            timer.cancel()

    def _say_waiting(self) -> None:
        if not self.first_at:
            self._sink.waiting(f"waiting for the first token of {self.model}")
        self._wake.set()  # for the next one

    def usage(self) -> Usage:
        """What it has come to so far."""
        prompts = self.streams[:: self._n]
        return Usage(
            prompt_tokens=sum(s.prompt_tokens for s in prompts),
            completion_tokens=sum(s.tokens for s in self.streams),
            cached_tokens=sum(s.cached_tokens for s in prompts),
        )
