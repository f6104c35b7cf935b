"""Whose request is next: the most urgent priority, and within it every caller its share.

Start-time fair queueing. A caller's next request starts, on a clock that counts service and not seconds, where the one
before it ended: a request of cost c moves its caller c / weight ahead. The earliest start is served. A caller who was
idle begins at the clock, so that nobody saves up; one who gave up waiting is charged nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Claim:
    """Who asks, and for how much. A lower priority is more urgent, as vLLM has it."""

    caller: str = ""
    weight: float = 1.0
    priority: int = 0
    cost: float = 1.0


@dataclass(slots=True)
class _Flow(Generic[T]):
    """What one caller has waiting, at one priority. `start`: of the first of it."""

    weight: float
    start: float = 0.0
    items: deque[tuple[T, float]] = field(default_factory=lambda: deque[tuple[T, float]]())

    def backlog(self) -> float:
        return sum(cost for _, cost in self.items) / self.weight


@dataclass(slots=True)
class _Level(Generic[T]):
    clock: float = 0.0
    flows: dict[str, _Flow[T]] = field(default_factory=lambda: dict[str, _Flow[T]]())

    def flow(self, claim: Claim) -> _Flow[T]:
        flow = self.flows.get(claim.caller)
        if flow is None:
            flow = self.flows[claim.caller] = _Flow(claim.weight)
        if not flow.items:
            flow.weight = claim.weight
            flow.start = max(flow.start, self.clock)
        return flow


class FairQueue(Generic[T]):
    """Items in the order in which they are to be served. An item is in it once at most."""

    def __init__(self) -> None:
        self._levels: dict[int, _Level[T]] = {}
        self._claims: dict[T, Claim] = {}

    def __len__(self) -> int:
        return len(self._claims)

    def __contains__(self, item: T) -> bool:
        return item in self._claims

    def push(self, item: T, claim: Claim) -> None:
        level = self._levels.setdefault(claim.priority, _Level())
        level.flow(claim).items.append((item, claim.cost))
        self._claims[item] = claim

    def peek(self) -> T | None:
        """What is served next; None if nothing waits."""
        found = self._next()
        return found[1].items[0][0] if found else None

    def pop(self) -> T | None:
        """Take what is served next, and charge its caller."""
        found = self._next()
        if found is None:
            return None
        level, flow = found
        item, cost = flow.items.popleft()
        del self._claims[item]
        level.clock = flow.start
        flow.start += cost / flow.weight
        return item

    def remove(self, item: T) -> None:
        """It waits no longer. Idempotent."""
        claim = self._claims.pop(item, None)
        if claim is not None:
            flow = self._levels[claim.priority].flows[claim.caller]
            flow.items = deque((i, c) for i, c in flow.items if i != item)

    def ahead(self, claim: Claim) -> float:
        """The cost of what would be served before a new item of this claim, as things stand."""
        cost = 0.0
        for priority, level in self._levels.items():
            if priority < claim.priority:
                cost += sum(c for flow in level.flows.values() for _, c in flow.items)
        level = self._levels.get(claim.priority)
        if level is None:
            return cost
        own = level.flows.get(claim.caller)
        start = level.clock if own is None else max(level.clock, own.start) + own.backlog()
        for flow in level.flows.values():
            at = flow.start
            for _, c in flow.items:
                if at > start and flow is not own:
                    break
                cost += c
                at += c / flow.weight
        return cost

    def to_drop_for(self, claim: Claim) -> T | None:
        """What gives way to a new item when there is no room; None: the new one itself.

        The last of the caller with the longest queue for its weight, among the least urgent.
        """
        waiting = [p for p, level in self._levels.items() if any(f.items for f in level.flows.values())]
        worst = max(waiting, default=claim.priority)
        if claim.priority > worst or not waiting:
            return None
        flows = self._levels[worst].flows
        name, longest = max(((n, f) for n, f in flows.items() if f.items), key=lambda found: found[1].backlog())
        if claim.priority == worst:
            own = flows.get(claim.caller)
            new = (own.backlog() if own else 0.0) + claim.cost / claim.weight
            if name == claim.caller or new >= longest.backlog():
                return None
        return longest.items[-1][0]

    def __iter__(self) -> Iterator[T]:
        """All that wait, in no order."""
        return iter(list(self._claims))

    def _next(self) -> tuple[_Level[T], _Flow[T]] | None:
        for priority in sorted(self._levels):
            level = self._levels[priority]
            waiting = [f for f in level.flows.values() if f.items]
            if waiting:
                return level, min(waiting, key=lambda f: f.start)
        return None
