"""All frame sessions of this proxy: one for each replica that the route table names."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from typing import NamedTuple

import structlog

from headrace.core.affinity import NOTHING, Decision, Policy, Wish, decide
from headrace.core.outliers import FAILURES, Standing, judge
from headrace.core.route import Candidate
from headrace.core.route_delta import RouteDelta
from headrace.core.types import Endpoint, ReplicaId, Route
from headrace.core.waits import service_rate
from headrace.proxy.changed import Changed
from headrace.proxy.session import Session
from headrace.proxy.silence import Silence
from headrace.rpc.credentials import Credentials

log = structlog.get_logger()

_JUDGE_S = 0.25
_Key = tuple[ReplicaId, str]  # a replica that was started again has another address


class Picked(NamedTuple):
    """A session, why that one, and what it was chosen from."""

    session: Session
    decision: Decision
    candidates: Sequence[Candidate]


class Sessions:
    """Opens a session when a route names a replica, retires it when no route does any more.

    `changed` tells when a session became ready, broke or began to drain; `on_frame` is called after every frame.
    """

    def __init__(
        self,
        tasks: asyncio.TaskGroup,
        proxy_id: str,
        changed: Changed,
        silence: Silence,
        credentials: Credentials,
        policy: Policy = Policy.AUTO,
    ) -> None:
        self.changed = changed
        self._tasks = tasks
        self._proxy_id = proxy_id
        self._silence = silence
        self._credentials = credentials
        self._policy = policy
        self._turns = itertools.count()
        self._live: dict[_Key, Session] = {}
        self._named: dict[str, dict[ReplicaId, _Key]] = {}  # by route
        self._uses: Counter[_Key] = Counter()  # how many routes name it
        self._running: dict[asyncio.Task[None], Session] = {}
        self._models: dict[Session, str] = {}
        self._judged: dict[str, float] = {}  # when each model's replicas were last compared
        self._clock = asyncio.get_running_loop().time
        self.on_frame: Callable[[], None] = lambda: None

    def apply(self, change: RouteDelta) -> None:
        """Make the sessions those of the table after `change`. Streams of a retired session go on to their end."""
        gone = [key for name in change.removed for key in self._named.pop(name, {}).values()]
        for c in change.changed:
            named = self._named.setdefault(c.route.name, {})
            gone += [named.pop(replica_id) for replica_id in c.gone if replica_id in named]
            for e in c.route.endpoints:
                key, before = (e.replica_id, e.address), named.get(e.replica_id)
                if key == before:
                    continue
                if before:
                    gone.append(before)
                named[e.replica_id] = key
                self._uses[key] += 1
                if key not in self._live:
                    self._live[key] = self._open(e, c.route.model)
        for key in gone:
            self._uses[key] -= 1
            if not self._uses[key]:
                del self._uses[key]
                self._live.pop(key).retire()

    def _open(self, endpoint: Endpoint, model: str) -> Session:
        def others(one: Session, same_kind: bool) -> bool:
            return any(
                s is not one
                and self._models.get(s) == model
                and (s.fingerprint == one.fingerprint or not same_kind)
                and s.ready
                and not (s.suspect or s.draining)
                for s in self._live.values()
            )

        session = Session(
            endpoint,
            self._proxy_id,
            self.changed,
            self._silence,
            self._credentials,
            others=others,
            on_frame=lambda: self.on_frame(),
        )
        self._models[session] = model
        task = self._tasks.create_task(session.run(), name=f"session {endpoint.replica_id}")
        self._running[task] = session
        task.add_done_callback(self._ended)
        return session

    def _ended(self, task: asyncio.Task[None]) -> None:
        if session := self._running.pop(task, None):
            self._models.pop(session, None)

    def pick(
        self,
        route: Route,
        excluded: Set[ReplicaId],
        like: str = "",
        *,
        with_room: bool = False,
        heard_after: float = -1.0,
        wish: Wish = NOTHING,
    ) -> Picked | None:
        """The session for the route's next request; None if no replica of it can be reached now.

        `like`: only a replica with this fingerprint will do. `with_room`: only one that is not saturated.
        `heard_after`: only one from which something has come since then.
        """
        mine = self.of(route)
        self._judge(route, mine)
        ready: dict[ReplicaId, Session] = {}
        candidates: list[Candidate] = []
        now = self._clock()
        for e, s in mine:
            if s.ready and (not like or s.fingerprint == like) and s.heard_at > heard_after:
                ready[e.replica_id] = s
                candidates.append(_candidate(e, s, now, wish))
        decision = decide(
            candidates,
            random.random(),
            random.random(),
            excluded,
            with_room=with_room,
            wish=wish,
            policy=self._policy,
            turn=next(self._turns),
        )
        return Picked(ready[decision.replica_id], decision, candidates) if decision else None

    def of(self, route: Route) -> list[tuple[Endpoint, Session]]:
        """The sessions with a route's replicas, also with those that cannot be reached now."""
        live = self._live
        return [(e, s) for e in route.endpoints if (s := live.get((e.replica_id, e.address))) is not None]

    def rate(self, route: Route) -> float:
        """Streams of this proxy that end per second at a route's replicas; 0.0: not known."""
        return sum(service_rate(s.in_flight, s.pulse.held) for _, s in self.of(route))

    def weights(self, route: Route) -> dict[ReplicaId, float]:
        """The share of traffic of each of a route's replicas beside a sound one, 0 to 1."""
        now = self._clock()
        return {e.replica_id: s.pulse.record.share(now) for e, s in self.of(route)}

    def _judge(self, route: Route, mine: Sequence[tuple[Endpoint, Session]]) -> None:
        now = self._clock()
        failing = any(s.pulse.record.failures >= FAILURES for _, s in mine)
        if not failing and now < self._judged.get(route.model, 0.0) + _JUDGE_S:
            return
        self._judged[route.model] = now
        records = {e.replica_id: s.pulse.record for e, s in mine}
        before = {i: r.standing for i, r in records.items()}
        judge(records, now)
        for i, r in records.items():
            if r.standing is not before[i]:
                gap, first = (pace and pace._asdict() for pace in (r.gap, r.first))
                said = {"standing": r.standing.value, "gap": gap, "first": first, "failures": r.failures}
                log.info("replica_standing", replica=i, **said)

    def __iter__(self) -> Iterator[Session]:
        return iter(self._live.values())

    def close(self) -> None:
        """End all sessions now; their streams are told."""
        for task, session in list(self._running.items()):
            session.close()
            task.cancel()


def _candidate(e: Endpoint, s: Session, now: float, wish: Wish) -> Candidate:
    record = s.pulse.record
    return Candidate(
        e.replica_id,
        s.in_flight + s.reserved,
        s.load,
        e.lost,
        s.suspect,
        s.draining,
        queued=s.pulse.queued + s.reserved,
        unseen=s.pulse.unseen + s.reserved,
        limit=s.pulse.capacity.limit,
        ejected=record.standing is Standing.EJECTED,
        slow=record.standing in (Standing.SLOW, Standing.PROBED),
        probe=record.standing is Standing.PROBED,
        weight=record.weight(now),
        matched=s.prefixes.matched(wish.blocks),
    )
