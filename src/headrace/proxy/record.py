"""What became of the last requests of this proxy, for `headrace explain`. Costs nothing per token."""

from __future__ import annotations

import asyncio
import marshal
import time
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from headrace.core.affinity import Decision
from headrace.core.route import Candidate, busyness, room
from headrace.core.story import MAX_SEEN, Choice, Move, Seen, Story
from headrace.proxy.generation import Generation

MAX_RECORDS = 10_000
MAX_REFUSALS = 2_000
_MAX_WHY = 300
_MAX_PATH = 100
_MAX_TURNS = 32  # choices and moves of one request, each

_STATES = ("", "silent", "draining", "ejected", "its node is lost", "slow", "no room", "tried before")
_TRIED = len(_STATES) - 1


class _Choice(NamedTuple):
    """A decision with what it was chosen from, by column."""

    at: float
    replica_id: str
    reason: str
    names: tuple[str, ...]
    busyness: bytes  # of an array of floats
    matched: bytes  # of an array of 16 bits each
    states: bytes
    replicas: int


class _Refusal(NamedTuple):
    received_at: float
    received_unix_s: float
    took_s: float
    status: int
    why: str
    request: str


class Record:
    """One request. `generation` is there while it runs.

    What has ended is kept as bytes: thousands of records would be a hundred thousand objects for the garbage collector.
    """

    __slots__ = ("_choices", "_end", "_ended_at", "_loop", "_moves", "_numbers", "_received_at", "generation", "model",
                 "received_unix_s", "request_id")  # fmt: skip

    def __init__(self, request_id: str, model: str, received_at: float, received_unix_s: float) -> None:
        """`received_at`: loop time."""
        self.request_id, self.model, self.received_unix_s = request_id, model, received_unix_s
        self.generation: Generation | None = None
        self._received_at = received_at
        self._choices: list[_Choice] = []
        self._moves: list[Move] = []
        self._numbers = (0.0, 0, 0, 0)
        self._end, self._ended_at = "", 0.0
        self._loop = asyncio.get_running_loop()

    @property
    def received_at(self) -> float:
        return self._received_at

    def chose(self, decision: Decision, candidates: Sequence[Candidate]) -> None:
        """A replica was chosen of these."""
        if len(self._choices) >= _MAX_TURNS:
            return
        best = candidates
        if len(candidates) > MAX_SEEN:
            chosen = [c for c in candidates if c.replica_id == decision.replica_id]
            others = [c for c in candidates if c.replica_id != decision.replica_id]
            best = [*chosen, *(c for c in others if c.matched), *(c for c in others if not c.matched)][:MAX_SEEN]
        tried = {c.replica_id for c in self._choices} if decision.moved else ()
        self._choices.append(
            _Choice(
                self._loop.time(),
                decision.replica_id,
                str(decision),
                tuple(c.replica_id for c in best),
                array("f", map(busyness, best)).tobytes(),
                array("H", (c.matched for c in best)).tobytes(),
                bytes(_TRIED if c.replica_id in tried else _state(c) for c in best),
                len(candidates),
            )
        )

    def moved(self, cause: str, tokens: int) -> None:
        """A stream with so many tokens had to leave its replica."""
        if len(self._moves) < _MAX_TURNS:
            self._moves.append(Move(self._loop.time() - self._received_at, cause, tokens))

    def ended(self, how: str) -> None:
        self._numbers = self._now()
        self._end, self._ended_at = how, self._loop.time()
        self.generation = None

    def _now(self) -> tuple[float, int, int, int]:
        g = self.generation
        if g is None:
            return self._numbers
        usage = g.usage()
        return g.first_at, usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens

    def story(self, proxy_id: str) -> Story:
        """What there is to tell, now."""
        first_at, *numbers = self._now()
        return Story(
            self.request_id,
            proxy_id,
            self.model,
            self.received_unix_s,
            first_at - self._received_at if first_at else None,
            self._ended_at - self._received_at if self._end else None,
            self._end,
            *numbers,
            choices=tuple(self._choice(c) for c in self._choices),
            moves=tuple(self._moves),
        )

    def _choice(self, c: _Choice) -> Choice:
        columns = zip(c.names, array("f", c.busyness), array("H", c.matched), c.states, strict=True)
        seen = tuple(Seen(name, round(busy, 2), matched, _STATES[s]) for name, busy, matched, s in columns)
        return Choice(c.at - self._received_at, c.replica_id, c.reason, seen, c.replicas)

    def pack(self) -> bytes:
        """What `unpack` makes the same record of, in this process, once it has ended."""
        choices = [tuple(c) for c in self._choices]
        moves = [(m.at_s, m.cause, m.tokens) for m in self._moves]
        times = self._received_at, self.received_unix_s, self._ended_at
        return marshal.dumps((self.request_id, self.model, times, self._end, self._numbers, choices, moves))

    @staticmethod
    def unpack(packed: bytes) -> Record:
        request_id, model, (received_at, unix_s, ended_at), end, numbers, choices, moves = marshal.loads(packed)
        r = Record(request_id, model, received_at, unix_s)
        r._end, r._ended_at, r._numbers = end, ended_at, numbers
        r._choices, r._moves = [_Choice(*c) for c in choices], [Move(*m) for m in moves]
        return r


def _state(c: Candidate) -> int:
    for state, holds in enumerate((c.suspect, c.draining, c.ejected, c.lost, c.slow), 1):
        if holds:
            return state
    return 6 if room(c) <= 0 else 0


class Records:
    """The last MAX_RECORDS requests by id; of two with one id the later."""

    def __init__(self, proxy_id: str = "", most: int = MAX_RECORDS) -> None:
        self._proxy_id, self._most = proxy_id, most
        self._records: OrderedDict[str, Record | bytes] = OrderedDict()
        # Beside them, so that many of these push out none of those.
        self._refusals: OrderedDict[str, _Refusal] = OrderedDict()

    def begin(self, record: Record) -> Record:
        self._records.pop(record.request_id, None)
        self._records[record.request_id] = record
        if len(self._records) > self._most:
            self._records.popitem(last=False)
        return record

    def end(self, record: Record, how: str) -> None:
        """Its request has ended."""
        record.ended(how)
        if self._records.get(record.request_id) is record:
            self._records[record.request_id] = record.pack()

    def refused(self, request_id: str, request: str, received_at: float, status: int, why: str) -> None:
        """A request was answered with an error. `request`: its method and path. `received_at`: loop time."""
        took_s = asyncio.get_running_loop().time() - received_at
        self._refusals.pop(request_id, None)
        self._refusals[request_id] = _Refusal(
            received_at, time.time() - took_s, took_s, status, why[:_MAX_WHY], request[:_MAX_PATH]
        )
        if len(self._refusals) > min(self._most, MAX_REFUSALS):
            self._refusals.popitem(last=False)

    def story(self, request_id: str) -> Story | None:
        """None: not among the last. Of two with one id the later."""
        kept, refusal = self._records.get(request_id), self._refusals.get(request_id)
        record = Record.unpack(kept) if isinstance(kept, bytes) else kept
        if record is not None and (refusal is None or refusal.received_at < record.received_at):
            return record.story(self._proxy_id)
        if refusal is None:
            return None
        r = refusal
        if record is not None and record.received_at == r.received_at:  # one that had come as far as a queue
            return replace(record.story(self._proxy_id), status=r.status, why=r.why)
        return Story(
            request_id, self._proxy_id, "", r.received_unix_s, ended_s=r.took_s, status=r.status, why=r.why,
            request=r.request,
        )  # fmt: skip
