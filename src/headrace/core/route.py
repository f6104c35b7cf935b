"""Which replica gets the next request: the less loaded of two that were drawn at random.

Two draws, not the least loaded of all: every proxy sees loads that are a moment old, and all of them would send their
next requests to the same replica.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, field

from headrace.core.types import Load, ReplicaId


@dataclass(frozen=True, slots=True)
class Candidate:
    """A replica as one proxy sees it. `in_flight`: streams that this proxy has there now."""

    replica_id: ReplicaId
    in_flight: int = 0
    load: Load = field(default_factory=Load)
    lost: bool = False  # the head has lost its node
    suspect: bool = False  # its frames have stopped
    draining: bool = False


def busyness(c: Candidate) -> float:
    """How busy a replica is, in requests. What waits there counts twice; the KV cache's share decides between equals.

    `in_flight` is newer than the load of the last frame, but knows of this proxy's streams only: the greater counts.
    """
    return max(c.in_flight, c.load.running + c.load.waiting) + c.load.waiting + c.load.kv_usage


def _tier(c: Candidate, excluded: Set[ReplicaId]) -> tuple[bool, bool, bool]:
    return (c.replica_id in excluded, c.draining, c.lost or c.suspect)


def choose(
    candidates: Sequence[Candidate], first: float, second: float, excluded: Set[ReplicaId] = frozenset()
) -> ReplicaId | None:
    """The replica for the next request, or None if there is none at all.

    `first` and `second` are random numbers of [0, 1). Only the best tier that has members is drawn from: sound
    replicas, then lost or suspect ones, then draining ones; those of `excluded` (tried already) only when nothing else
    is left.
    """
    if not candidates:
        return None
    best = min(_tier(c, excluded) for c in candidates)
    pool = [c for c in candidates if _tier(c, excluded) == best]
    i = int(first * len(pool))
    if len(pool) == 1:
        return pool[0].replica_id
    j = int(second * (len(pool) - 1))
    if j >= i:
        j += 1  # two different ones
    a, b = pool[i], pool[j]
    return (b if busyness(b) < busyness(a) else a).replica_id
