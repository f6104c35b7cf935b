"""Which replicas of a model get less, or nothing for a while, from what one proxy has seen of them and of their peers.

    SOUND ──much slower than its peers──▶ SLOW ────┐
      ▲ └───fails again and again───────▶ EJECTED ─┤ for a time that doubles
      │                                            ▼
      └──weight has grown to 1── RETURNING ◀─well── PROBED: one request at a time

A slow replica lives: it is used where the others have no room, and never ended for it. Of a model's replicas at most
half are ejected at a time. A replica without peers is always sound.

Who has more to do takes longer and is not slow for it. So a time is kept with how much was worked on in it, and a peer
that works on less is thought to take longer for as much in proportion, which is the most that a step can:
(a + b·more) / (a + b·less) <= more / less.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from headrace.core.types import ReplicaId
from headrace.core.waits import Mean

SLOW_GAP = 2.0  # times its peers' time between tokens
SLOW_FIRST = 3.0  # times their time to the first token
FAILURES = 5  # in a row
AWAY_S = (20.0, 300.0)  # the first time, and at most
RAMP_S = 10.0
FORGIVE_S = 300.0  # sound for so long: what was is forgotten
_MEMORY_S = 3.0  # of the time between tokens; at least
_MEMORY_STEPS = 32.0  # of it, where they are slow
_LEAST_WEIGHT = 0.1
_GAP_EXCESS_S = 0.005  # less than this is nothing that anybody would notice
_FIRST_EXCESS_S = 0.25
_ENOUGH_TOKENS = 16.0  # to judge by
_ENOUGH_FIRSTS = 10
_MOST_FLOW = 100.0
_FLOW_LOST = 0.05  # with each first token: one further token an answer keeps it at 20, above what is enough


class Pace(NamedTuple):
    """How long something takes, and how much is worked on meanwhile, in any unit."""

    seconds: float
    work: float


class Standing(enum.Enum):
    SOUND = "sound"
    SLOW = "slow"
    EJECTED = "ejected"
    PROBED = "probed"
    RETURNING = "returning"


@dataclass(slots=True)
class Record:
    """What has been seen of one replica, and how it stands. Only `judge` moves `standing`."""

    standing: Standing = Standing.SOUND
    since: float = 0.0
    until: float = 0.0  # SLOW and EJECTED
    times: int = 0  # that it was sent away
    failures: int = 0  # in a row
    answered: int = 0  # since it stands as it does
    flow: float = 0.0  # tokens that were not the first of their answers; each first one makes it forget some
    _firsts: Mean = field(default_factory=Mean)
    _ahead: Mean = field(default_factory=Mean)
    _seconds: float = 0.0  # of pure gaps; these three forget
    _running: float = 0.0
    _steps: float = 0.0

    def saw_gap(self, seconds: float, running: float = 1.0, *, pure: bool = True) -> None:
        """Its streams' next tokens came so long after the ones before; so many requests were running.

        `pure`: it did nothing else. What it also took prompts in says how long those are, and is not kept.
        """
        self.flow = min(self.flow + running, _MOST_FLOW)
        if not pure:
            return
        keep = max(math.exp(-seconds / _MEMORY_S), 1.0 - 1.0 / _MEMORY_STEPS)
        self._seconds = self._seconds * keep + seconds
        self._running = self._running * keep + running
        self._steps = self._steps * keep + 1.0

    def saw_first(self, seconds: float, work: float = 1.0) -> None:
        """A first token, or a result, came so long after the request was sent; so much had to be done for it."""
        self.flow *= 1.0 - _FLOW_LOST
        self._firsts.add(seconds)
        self._ahead.add(work)

    def saw_success(self) -> None:
        self.failures = 0
        self.answered += 1

    def saw_failure(self) -> None:
        """It failed a request that was not at fault, or died with requests."""
        self.failures += 1

    @property
    def gap(self) -> Pace | None:
        """Its mean time between tokens, and how many requests were running; None before enough of them."""
        return Pace(self._seconds / self._steps, self._running / self._steps) if self._steps >= _ENOUGH_TOKENS else None

    @property
    def first(self) -> Pace | None:
        return Pace(self._firsts.value, self._ahead.value) if self._firsts.count >= _ENOUGH_FIRSTS else None

    def weight(self, now: float) -> float:
        if self.standing is not Standing.RETURNING:
            return 1.0
        return min(1.0, _LEAST_WEIGHT + (1.0 - _LEAST_WEIGHT) * max(0.0, now - self.since) / RAMP_S)

    def share(self, now: float) -> float:
        """For people: of the traffic of a sound replica."""
        return self.weight(now) if self.standing in (Standing.SOUND, Standing.RETURNING) else 0.0

    def move(self, standing: Standing, now: float) -> None:
        self.standing, self.since, self.answered = standing, now, 0
        if standing in (Standing.SLOW, Standing.EJECTED):
            self.until = now + min(AWAY_S[0] * 2**self.times, AWAY_S[1])
            self.times = min(self.times + 1, 10)
        if standing is Standing.PROBED:  # what was seen before says nothing about now
            self.failures = 0
            self._firsts, self._ahead = Mean(), Mean()
            self._seconds = self._running = self._steps = 0.0


def judge(records: Mapping[ReplicaId, Record], now: float) -> None:
    """Move every replica of a model to where it stands now."""
    most = len(records) // 2
    for replica_id, r in records.items():
        peers = [p for i, p in records.items() if i != replica_id]
        if not peers:
            if r.standing is not Standing.SOUND:
                r.move(Standing.SOUND, now)
            continue
        ejected = sum(p.standing is Standing.EJECTED for p in peers)
        new = _next(r, peers, now, may_eject=ejected < most)
        if new is not r.standing:
            r.move(new, now)
        elif new is Standing.SOUND and now - r.since >= FORGIVE_S:
            r.times = 0


def _next(r: Record, peers: Sequence[Record], now: float, *, may_eject: bool) -> Standing:
    s = r.standing
    if s in (Standing.SLOW, Standing.EJECTED) and now < r.until:
        if s is Standing.SLOW and may_eject and r.failures >= FAILURES:
            return Standing.EJECTED
        return s
    if s in (Standing.SLOW, Standing.EJECTED):
        return Standing.PROBED
    if r.failures >= (1 if s is Standing.PROBED else FAILURES) and may_eject:
        return Standing.EJECTED
    if _is_slow(r, peers):
        return Standing.SLOW
    if s is Standing.PROBED and r.answered and (r.gap is not None or r.answered >= 2):
        return Standing.RETURNING
    if s is Standing.RETURNING and now - r.since >= RAMP_S:
        return Standing.SOUND
    return s


def _is_slow(r: Record, peers: Sequence[Record]) -> bool:
    if any(x.flow >= _ENOUGH_TOKENS for x in (r, *peers)):
        return _slower(r.gap, [p.gap for p in peers], SLOW_GAP, _GAP_EXCESS_S)
    # Nobody's answers have two tokens. Otherwise the first one says less: it waits for all prompts that came before.
    return _slower(r.first, [p.first for p in peers], SLOW_FIRST, _FIRST_EXCESS_S)


def _slower(mine: Pace | None, others: Sequence[Pace | None], times: float, excess_s: float) -> bool:
    """Whether it takes so many times what its peers would (the lower median of them), and noticeably more."""
    if mine is None:
        return False
    known = sorted(o.seconds * max(1.0, mine.work / o.work) for o in others if o is not None)
    if not known:
        return False
    usual = known[(len(known) - 1) // 2]
    return mine.seconds > max(usual * times, usual + excess_s)
