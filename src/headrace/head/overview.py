"""What the head shows: the route table for proxies and the status for people, made anew at each change."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Protocol

import structlog

from headrace import __version__
from headrace.core import catalog as core_catalog
from headrace.core import routes as core_routes
from headrace.core.board import candidate
from headrace.core.on_demand import Rule, startable
from headrace.core.phase import Phase
from headrace.core.routes import Standing
from headrace.core.state import Unplaced, phase_of, status_of, unsaid
from headrace.core.types import (
    CatalogEntry,
    ClusterStatus,
    DeploymentStatus,
    NodeStatus,
    PlacedReplica,
    ProxyStatus,
    RouteState,
    RouteTable,
)
from headrace.head.clock import Clock
from headrace.head.cluster import Cluster
from headrace.head.ledger import Ledger
from headrace.head.topic import Topic

log = structlog.get_logger()

COALESCE_S = 0.02


class Proxies(Protocol):
    """Who keeps proxies alive, as far as the status shows it."""

    def statuses(self, watching: Mapping[str, int]) -> tuple[ProxyStatus, ...]: ...


class Overview:
    """Reads everything, changes nothing.

    `rule`: which models of the catalog have a route before they are deployed.
    `routes_changed` is notified with each new table; `reasons` are the planner's, by deployment.
    """

    def __init__(
        self,
        ledger: Ledger,
        cluster: Cluster,
        files: Mapping[str, CatalogEntry],
        clock: Clock,
        lease_s: float,
        rule: Rule = Rule.ALL,
    ) -> None:
        self._rule = rule
        self._ledger, self._cluster, self._files, self._clock, self._lease_s = ledger, cluster, files, clock, lease_s
        self._started = clock()
        self._failed_since: dict[tuple[str, int], float] = {}
        self._watching: dict[tuple[str, int], int] = {}
        self._standing: Standing | None = None  # when it was last asked for
        self.reasons: Mapping[str, Unplaced] = {}
        self.http_address = ""
        self.proxies: Proxies | None = None
        self.table: RouteTable | None = None
        self.routes_changed = Topic()
        self.proxies_changed = Topic()

    def catalog(self) -> dict[str, CatalogEntry]:
        """All models that can be deployed by name; those that were added win."""
        return core_catalog.merge(self._files, self._ledger.state.entries)

    def deployment(self, name: str) -> DeploymentStatus | None:
        return self._stand().statuses.get(name)

    def failed_for_s(self, name: str) -> float | None:
        """How long the newest revision of `name` has been FAILED; None: it is not."""
        d = self._ledger.state.deployments.get(name)
        stand = self.deployment(name)
        if d is None or stand is None or stand.state is not RouteState.FAILED:
            return None
        return self._clock() - self._failed_since.get((name, d.revision), self._clock())

    def newest_failed(self, name: str) -> bool:
        """Whether a replica of the newest revision of `name` was given up."""
        state, nodes = self._ledger.state, self._cluster.views()
        d = state.deployments.get(name)
        mine = [i for i in state.intents.of(name) if d and i.revision == d.revision]
        return any(phase_of(i, nodes) is Phase.FAILED for i in mine)

    def _stand(self) -> Standing:
        """How everything stands now."""
        self._standing = core_routes.standing(
            self._ledger.state, self._cluster.views(), self.reasons, before=self._standing
        )
        return self._standing

    def status(self) -> ClusterStatus:
        stand, now = self._stand(), self._clock()
        state, nodes = stand.made_of
        watching = dict(list(self._watching))
        return ClusterStatus(
            epoch=self._ledger.epoch,
            version=__version__,
            http_address=self.http_address,
            deployments=tuple(stand.statuses.values()),
            replicas=tuple(
                PlacedReplica(i.node_id, replace(status, load=self._cluster.load(i.node_id, i.replica_id)))
                for i in sorted(state.intents.values(), key=lambda i: (i.deployment, i.created, i.replica_id))
                for status in [status_of(i, nodes) or unsaid(i, reason=f"waits to hear from node {i.node_id}")]
            ),
            nodes=tuple(
                NodeStatus(n.info, n.live, round(max(0.0, now - n.heard_at), 1), free)
                for k, n in nodes.items()
                for free in [candidate(n, state.intents.on(k), state.intents.__contains__).left]
            ),
            proxies=self.proxies.statuses(watching) if self.proxies else (),
        )

    @contextmanager
    def watched_by(self, proxy_id: str, pid: int) -> Iterator[None]:
        """Counts a proxy as watching routes for the length of the block."""
        key = (proxy_id, pid)
        self._watching[key] = self._watching.get(key, 0) + 1
        self.proxies_changed.notify()
        try:
            yield
        finally:
            self._watching[key] -= 1
            if not self._watching[key]:
                del self._watching[key]
            self.proxies_changed.notify()

    async def run(self, changed: Topic) -> None:
        """Make a new route table when one is due, until cancelled. Changes within COALESCE_S make one table."""
        with changed.listen() as news:
            while True:
                await self._news_or_settled(news)
                news.clear()
                try:
                    self._publish()
                except Exception:
                    log.exception("routes_failed")
                await asyncio.sleep(COALESCE_S)

    async def _news_or_settled(self, news: asyncio.Event) -> None:
        """Wait for a change, or for the moment at which the lease of nodes that have not come back is over."""
        left = self._started + self._lease_s - self._clock()
        try:
            await asyncio.wait_for(news.wait(), max(0.0, left) if self.table is None else None)
        except TimeoutError:
            return

    def _publish(self) -> None:
        stand, now = self._stand(), self._clock()
        failed = (s.deployment for s in stand.statuses.values() if s.state is RouteState.FAILED)
        keys = {(d.name, d.revision) for d in failed}
        self._failed_since = {k: self._failed_since.get(k, now) for k in keys}
        if self.table is None and not core_routes.settled(*stand.made_of, now, self._started, self._lease_s):
            return
        catalogued = {name: e.adapters for name, e in startable(self._rule, self.catalog()).items()}
        routes = core_routes.table(stand, catalogued)
        if self.table is not None and self.table.routes == routes:
            return
        version = self.table.version + 1 if self.table else 1
        self.table = RouteTable(self._ledger.epoch, version, routes)
        self.routes_changed.notify()
