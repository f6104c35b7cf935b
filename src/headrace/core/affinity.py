"""Which replica of those that are open to a request gets it: the one with its prompt's beginning, if that is worth it.

A replica that has the beginning of a prompt in its prefix cache saves the work for it. That is worth going to one that
is busier than the less busy of two (route.py) by as much as is saved:

    cost(holder) - cost(less busy) <= WORTH * (blocks that it has more of) / (blocks of a usual prompt of the model)

and never to one that is busier than the pool by more than a bound, so that what everybody asks for spreads:

    cost(holder) <= (1 + SPREAD) * mean cost of the pool + SLACK

Costs are in requests. A session's own replica is held to the bound alone.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from enum import StrEnum
from hashlib import blake2b

from headrace.core.route import Candidate, cost, less_busy, pool, pool_with_room, room
from headrace.core.types import ReplicaId

# Found with benchmarks/routing_sim.py; docs/routing.md says how they matter.
WORTH = 16.0
SPREAD = 0.25
SLACK = 2.0


class Policy(StrEnum):
    """How a proxy routes. All but `auto` are there to be compared with it."""

    AUTO = "auto"
    LEAST_LOAD = "least-load"
    RANDOM = "random"
    ROUND_ROBIN = "round-robin"


class Reason(StrEnum):
    """Why a request went where it went."""

    ONLY_REPLICA = "only-replica"  # of those that are open to it
    PROBE = "probe"  # to see whether a slow replica has recovered
    SESSION = "session"
    PREFIX = "prefix"
    LEAST_LOAD = "least-load"
    RANDOM = "random"
    ROUND_ROBIN = "round-robin"


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request would like of its replica: to have its prompt's beginning, and to be that of its session."""

    blocks: tuple[int, ...] = ()
    usual_blocks: float = 1.0  # of a prompt of this model
    session: str = ""


NOTHING = Wish()


@dataclass(frozen=True, slots=True)
class Decision:
    """`passed_over`: blocks of the prompt that a replica had which was too busy; 0: none had more than the chosen."""

    replica_id: ReplicaId
    reason: Reason
    blocks: int = 0
    matched: int = 0
    passed_over: int = 0
    moved: bool = False  # it had been with another replica

    def __str__(self) -> str:
        """As the header x-headrace-route-reason has it."""
        said = [f"failover; by={self.reason}" if self.moved else str(self.reason)]
        if self.blocks:
            said.append(f"matched={self.matched}/{self.blocks}")
        if self.passed_over:
            said.append(f"passed-over={self.passed_over}/{self.blocks}")
        return "; ".join(said)


def decide(
    candidates: Sequence[Candidate],
    first: float,
    second: float,
    excluded: Set[ReplicaId] = frozenset(),
    *,
    with_room: bool = False,
    wish: Wish = NOTHING,
    policy: Policy = Policy.AUTO,
    turn: int = 0,
) -> Decision | None:
    """Where the next request goes; None if nowhere. Only what `pool` or `pool_with_room` gives is chosen from.

    `first` and `second` are random numbers of [0, 1); `turn` counts requests, for the round robin.
    """
    open_to_it = (pool_with_room if with_room else pool)(candidates, excluded)
    if not open_to_it:
        return None
    chosen, reason, best = _choose(open_to_it, first, second, wish, policy, turn)
    passed_over = best if best > chosen.matched else 0
    return Decision(chosen.replica_id, reason, len(wish.blocks), chosen.matched, passed_over, bool(excluded))


def _choose(
    open_to_it: Sequence[Candidate], first: float, second: float, wish: Wish, policy: Policy, turn: int
) -> tuple[Candidate, Reason, int]:
    """The replica, why, and the longest match of all."""
    best = max(c.matched for c in open_to_it)
    if len(open_to_it) == 1:
        return open_to_it[0], Reason.PROBE if open_to_it[0].probe else Reason.ONLY_REPLICA, best
    if policy is Policy.RANDOM:
        return open_to_it[int(first * len(open_to_it))], Reason.RANDOM, best
    if policy is Policy.ROUND_ROBIN:
        in_order = sorted(open_to_it, key=lambda c: c.replica_id)
        return in_order[turn % len(in_order)], Reason.ROUND_ROBIN, best
    least = less_busy(open_to_it, first, second)
    if policy is Policy.AUTO and (wish.session or best > least.matched):
        bound = (1.0 + SPREAD) * sum(map(cost, open_to_it)) / len(open_to_it) + SLACK
        fair = [c for c in open_to_it if cost(c) <= bound and room(c) > 0]
        if wish.session:
            own = max(open_to_it, key=lambda c: rank(wish.session, c.replica_id))
            if own in fair:
                return own, Reason.SESSION, own.matched
        holder = _holder(fair, least, first, second, WORTH / max(wish.usual_blocks, 1.0))
        if holder is not None:
            return holder, Reason.PREFIX, best
    if policy is Policy.AUTO and least.matched == best > min(c.matched for c in open_to_it):
        return least, Reason.PREFIX, best
    return least, Reason.LEAST_LOAD, best


def _holder(
    fair: Sequence[Candidate], least: Candidate, first: float, second: float, block_worth: float
) -> Candidate | None:
    """Of those with the longest match the less busy of two, if the match is worth it; else of those with the next."""
    for level in sorted({c.matched for c in fair if c.matched > least.matched}, reverse=True):
        c = less_busy([c for c in fair if c.matched >= level], first, second)
        if cost(c) - cost(least) <= block_worth * (c.matched - least.matched):
            return c
    return None


def rank(session: str, replica_id: ReplicaId) -> int:
    """The replica of a pool with the highest rank is the session's own: most keep theirs when replicas come and go."""
    key = blake2b(session.encode(), digest_size=16).digest()
    return int.from_bytes(blake2b(replica_id.encode(), key=key, digest_size=8).digest(), "little")
