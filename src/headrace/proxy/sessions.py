"""All frame sessions of this proxy: one for each replica that the route table names."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Set

from headrace.core.route import Candidate, choose
from headrace.core.types import Endpoint, ReplicaId, Route, RouteTable
from headrace.proxy.changed import Changed
from headrace.proxy.session import Session, Silence
from headrace.rpc.channel import Tls

_Key = tuple[ReplicaId, str]  # a replica that was started again has another address


class Sessions:
    """Opens a session when a table names a replica, retires it when a later one does not.

    `changed` tells when a session became ready, broke or began to drain.
    """

    def __init__(
        self, tasks: asyncio.TaskGroup, proxy_id: str, changed: Changed, silence: Silence, tls: Tls | None = None
    ) -> None:
        self.changed = changed
        self._tasks = tasks
        self._proxy_id = proxy_id
        self._silence = silence
        self._tls = tls
        self._live: dict[_Key, Session] = {}
        self._running: dict[asyncio.Task[None], Session] = {}

    def apply(self, table: RouteTable) -> None:
        """Make the sessions those of `table`. Streams of a retired session go on to their end."""
        wanted = {(e.replica_id, e.address): e for r in table.routes.values() for e in r.endpoints}
        for key in [k for k in self._live if k not in wanted]:
            self._live.pop(key).retire()
        for key, endpoint in wanted.items():
            if key not in self._live:
                self._live[key] = self._open(endpoint)

    def _open(self, endpoint: Endpoint) -> Session:
        session = Session(endpoint, self._proxy_id, self.changed, self._silence, self._tls, others=self._others)
        task = self._tasks.create_task(session.run(), name=f"session {endpoint.replica_id}")
        self._running[task] = session
        task.add_done_callback(lambda done: self._running.pop(done, None))
        return session

    def _others(self, one: Session) -> bool:
        return any(
            s is not one and s.fingerprint == one.fingerprint and s.ready and not (s.suspect or s.draining)
            for s in self._live.values()
        )

    def pick(self, route: Route, excluded: Set[ReplicaId], like: str = "") -> Session | None:
        """The session for the route's next request; None if no replica of it can be reached now.

        `like`: only a replica with this fingerprint will do.
        """
        ready: dict[ReplicaId, Session] = {}
        candidates: list[Candidate] = []
        for e in route.endpoints:
            s = self._live.get((e.replica_id, e.address))
            if s is None or not s.ready or (like and s.fingerprint != like):
                continue
            ready[e.replica_id] = s
            candidates.append(Candidate(e.replica_id, s.in_flight, s.load, e.lost, s.suspect, s.draining))
        chosen = choose(candidates, random.random(), random.random(), excluded)
        return ready[chosen] if chosen is not None else None

    def __iter__(self) -> Iterator[Session]:
        return iter(self._live.values())

    def close(self) -> None:
        """End all sessions now; their streams are told."""
        for task, session in list(self._running.items()):
            session.close()
            task.cancel()
