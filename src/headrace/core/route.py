"""Which replicas a request may go to now, how busy they are, and the less busy of two that were drawn at random.

Two draws, not the least busy of all: every proxy sees loads that are a moment old, and all of them would send their
next requests to the same replica. Which of them it goes to is decided in affinity.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from typing import NamedTuple

from headrace.core.types import Load, ReplicaId


class Candidate(NamedTuple):
    """A replica as one proxy sees it. `in_flight`: streams that this proxy has there now.

    A tuple, because a request makes one for every replica.
    """

    replica_id: ReplicaId
    in_flight: int = 0
    load: Load = Load()
    lost: bool = False  # the head has lost its node
    suspect: bool = False  # its frames have stopped
    draining: bool = False
    queued: int = 0  # of in_flight: those without a first token
    unseen: int = 0  # of in_flight: those that its load does not count yet
    limit: int = 0  # requests that it has shown to work on at a time; 0: not known
    ejected: bool = False  # it failed too often
    slow: bool = False  # next to its peers; for what they have no room for
    probe: bool = False  # and due to be tried with one request
    weight: float = 1.0  # below 1: it comes back slowly
    matched: int = 0  # blocks of the request's prompt that its prefix cache is likely to hold


def busyness(c: Candidate) -> float:
    """How busy a replica is, in requests. What waits there counts twice; the KV cache's share decides between equals.

    `in_flight` is newer than the load of the last frame, but knows of this proxy's streams only: the greater counts.
    """
    return max(c.in_flight, c.load.running + c.load.waiting) + c.load.waiting + c.load.kv_usage


def cost(c: Candidate) -> float:
    """How busy it would be with one request more, as if it were busier where it is to get less than its share."""
    return (busyness(c) + 1.0) / c.weight


def room(c: Candidate) -> float:
    """How many more requests may be sent to a replica now; zero or less: it is saturated.

    It may have a few more than it runs, so that a slot that comes free is filled at once. Each proxy may have that many
    of its own waiting there, whatever the others do, so that none is kept out by one that hears of the load earlier.
    """
    limit: float = min(c.load.max_running or math.inf, c.limit or math.inf)
    if limit == math.inf:
        return math.inf
    spare = max(1, int(limit) // 8)
    taken = max(c.in_flight, c.load.running + c.load.waiting + c.unseen)
    return max(limit + spare - taken, spare - c.queued)


def _tier(c: Candidate, excluded: Set[ReplicaId]) -> tuple[bool, ...]:
    return (c.suspect, c.replica_id in excluded, c.draining, c.ejected, c.lost)


def _best(candidates: Sequence[Candidate], excluded: Set[ReplicaId]) -> list[Candidate]:
    tiers = [_tier(c, excluded) for c in candidates]
    best = min(tiers)
    return [c for c, tier in zip(candidates, tiers, strict=True) if tier == best]


def pool(candidates: Sequence[Candidate], excluded: Set[ReplicaId] = frozenset()) -> list[Candidate]:
    """Those that the next request may go to, however busy they are; empty only if there is none at all.

    Only the best tier that has members: sound replicas, then lost ones, ejected ones, draining ones, those of
    `excluded` (tried already), and suspect ones only when nothing else is left: they may be dead. Of a tier the slow
    ones come last.
    """
    if not candidates:
        return []
    best = _best(candidates, excluded)
    return [c for c in best if not c.slow] or best


def pool_with_room(candidates: Sequence[Candidate], excluded: Set[ReplicaId] = frozenset()) -> list[Candidate]:
    """As `pool`, but only replicas that are not saturated; empty if all of the best tier are.

    Slow ones are taken where the others have no room. One that is to be probed is taken first, and alone.
    """
    if not candidates:
        return []
    for c in candidates:
        if c.probe and not (c.in_flight or c.replica_id in excluded or c.draining or c.lost or c.suspect):
            return [c]
    best = [c for c in _best(candidates, excluded) if room(c) > 0]
    return [c for c in best if not c.slow] or best


def less_busy(pool: Sequence[Candidate], first: float, second: float) -> Candidate:
    """The less busy of two of a pool; `first` and `second` are random numbers of [0, 1)."""
    i = int(first * len(pool))
    if len(pool) == 1:
        return pool[0]
    j = int(second * (len(pool) - 1))
    if j >= i:
        j += 1  # two different ones
    a, b = pool[i], pool[j]
    return b if cost(b) < cost(a) else a
