"""What changed between two route tables: this much is sent to a proxy and is work there, however large the tables are.

A route's endpoints are in the order of their replicas' ids, each once: however a table came about, it is the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from headrace.core.types import Endpoint, ReplicaId, Route, RouteTable

NOTHING = RouteTable(0, 0, {})


@dataclass(frozen=True, slots=True)
class RouteChange:
    """A route that is new or differs. `route` has only those endpoints that are new or differ; `gone` are no more."""

    route: Route
    gone: tuple[ReplicaId, ...] = ()


@dataclass(frozen=True, slots=True)
class RouteDelta:
    """From the table `base` to the table `version`, both of `epoch`. base 0: from none, so that it is all of one."""

    epoch: int
    version: int
    base: int
    changed: tuple[RouteChange, ...] = ()
    removed: tuple[str, ...] = ()


def whole(table: RouteTable) -> RouteDelta:
    """All of a table."""
    return diff(NOTHING, table)


def diff(old: RouteTable, new: RouteTable) -> RouteDelta:
    """What makes `new` of `old`. Routes that are the same objects in both cost next to nothing."""
    changed = [
        _change(before, route)
        for name, route in new.routes.items()
        if (before := old.routes.get(name)) is not route and before != route
    ]
    removed = tuple(name for name in old.routes if name not in new.routes)
    return RouteDelta(new.epoch, new.version, old.version, tuple(changed), removed)


def follows(delta: RouteDelta, table: RouteTable) -> bool:
    """Whether `delta` can be applied to `table`: it is all of a table, or builds upon just this one."""
    return not delta.base or (delta.epoch, delta.base) == (table.epoch, table.version)


def apply(delta: RouteDelta, table: RouteTable) -> RouteTable:
    """The table after `delta`, which follows `table`. Routes that it does not name are taken over as they are."""
    routes = dict(table.routes) if delta.base else {}
    for name in delta.removed:
        routes.pop(name, None)
    for change in delta.changed:
        before = routes.get(change.route.name)
        routes[change.route.name] = _changed(before.endpoints if before else (), change)
    return RouteTable(delta.epoch, delta.version, routes)


def _change(before: Route | None, now: Route) -> RouteChange:
    if before is None or not before.endpoints:
        return RouteChange(now)
    if before.endpoints == now.endpoints:
        return RouteChange(replace(now, endpoints=()))
    had = {e.replica_id: e for e in before.endpoints}
    news = tuple(e for e in now.endpoints if had.pop(e.replica_id, None) != e)
    return RouteChange(replace(now, endpoints=news), tuple(had))


def _changed(before: tuple[Endpoint, ...], change: RouteChange) -> Route:
    if not before:
        return change.route
    if not (change.gone or change.route.endpoints):
        return replace(change.route, endpoints=before)
    now = {e.replica_id: e for e in before}
    for replica_id in change.gone:
        now.pop(replica_id, None)
    news = len(now)
    now |= {e.replica_id: e for e in change.route.endpoints}
    endpoints = tuple(now.values()) if len(now) == news else tuple(now[k] for k in sorted(now))
    return replace(change.route, endpoints=endpoints)
