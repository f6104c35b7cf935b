"""How deployments stand, and the route table that proxies work from: both follow from what is wanted and seen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from headrace.core import touched
from headrace.core.adapters import Known, adapter_route
from headrace.core.phase import Phase
from headrace.core.state import Goal, Intent, Nodes, State, Unplaced, status_of
from headrace.core.touched import Seen
from headrace.core.types import Deployment, DeploymentStatus, Endpoint, ReplicaStatus, Route, RouteState

_COMING = (Phase.PENDING, Phase.STARTING, Phase.LOADING)


@dataclass(frozen=True, slots=True)
class _Seen:
    """A wanted replica and what is known of it. `before_lost`: its phase when its node was last heard."""

    intent: Intent
    status: ReplicaStatus | None
    before_lost: Phase | None


def settled(state: State, nodes: Nodes, now: float, started: float, lease_s: float) -> bool:
    """Whether a head that started at `started` knows enough to publish routes.

    Until every node with replicas has reported, or its lease would have run out, a table would take endpoints away
    from proxies that could still use them.
    """
    if now >= started + lease_s:
        return True
    silent = (n for n in state.intents.nodes if n not in nodes or not nodes[n].reported_at)
    return not any(i.goal is Goal.RUN for n in silent for i in state.intents.on(n))


@dataclass(frozen=True, slots=True)
class Standing:
    """How all deployments stand, and their routes: by deployment the model's, then those of its adapters."""

    made_of: Seen
    reasons: Mapping[str, Unplaced]
    statuses: Mapping[str, DeploymentStatus]
    routes: Mapping[str, tuple[Route, ...]]


def standing(state: State, nodes: Nodes, reasons: Mapping[str, Unplaced], before: Standing | None = None) -> Standing:
    """`reasons`: why the plan could not place all of a deployment.

    before: an earlier one. The outcome is the same without it; with it, only what differs since is worked out, and what
    is equal stays the same object.
    """
    seen = state, nodes
    if before is None:
        names = set(state.deployments)
        statuses, routes = {}, {}
    else:
        names = touched.deployments(before.made_of, seen)
        names |= {n for n in reasons.keys() | before.reasons.keys() if reasons.get(n) != before.reasons.get(n)}
        if not names:
            return replace(before, made_of=seen, reasons=reasons)
        statuses, routes = dict(before.statuses), dict(before.routes)
    for name in names:
        d, had = state.deployments.get(name), routes.get(name, ())
        if d is None:
            statuses.pop(name, None)
            routes.pop(name, None)
            continue
        mine = _see((i for i in state.intents.of(name) if i.goal is not Goal.STOP), nodes)
        statuses[name] = _stand(d, mine, reasons.get(name))
        routes[name] = _same(_routes(d, mine, statuses[name]), had)
    return Standing(seen, reasons, dict(sorted(statuses.items())), routes)


def table(standing: Standing, catalogued: Known) -> dict[str, Route]:
    """Every public name, those of adapters too. Those that are only catalogued have no time of creation."""
    models: dict[str, Route] = {}
    adapters: dict[str, Route] = {}
    for name in catalogued.keys() - standing.routes.keys():
        models[name] = Route(name, RouteState.AVAILABLE)
        adapters |= {r.name: r for a in catalogued[name] for r in [adapter_route(a, models[name], {})]}
    for name, (model, *others) in standing.routes.items():
        models[name] = model
        adapters |= {r.name: r for r in others}
    # Names are kept apart as they come; should a catalog that was edited have two of one, the model's counts.
    return dict(sorted((adapters | models).items()))


def _routes(d: Deployment, seen: Sequence[_Seen], stand: DeploymentStatus) -> tuple[Route, ...]:
    route = Route(
        name=d.name,
        state=stand.state,
        reason=_told(stand, seen),
        endpoints=_endpoints(d, seen),
        created_unix_s=d.created_unix_s,
        context_tokens=_context_tokens(seen),
    )
    told = {s.status.replica_id: s.status.adapters for s in seen if s.status and s.before_lost}
    return (route, *(adapter_route(a, route, told) for a in d.adapters))


def _told(stand: DeploymentStatus, seen: Sequence[_Seen]) -> str:
    """Why clients cannot call it now. `stand.reason` is for who runs the cluster: nodes, paths, lines of logs."""
    match stand.state:
        case RouteState.FAILED if stand.stuck:
            return "the cluster has no room for it"
        case RouteState.FAILED:
            return "it cannot be started"
        case RouteState.AVAILABLE:
            return "scaled to 0"
        case RouteState.STARTING:
            return _stage([s.status for s in seen if s.status])
        case RouteState.READY:
            return ""


def _same(new: tuple[Route, ...], old: tuple[Route, ...]) -> tuple[Route, ...]:
    """`new`, with those objects of `old` that are equal."""
    had = {r.name: r for r in old}
    return tuple(before if (before := had.get(r.name)) == r else r for r in new)


def _see(intents: Iterable[Intent], nodes: Nodes) -> list[_Seen]:
    found: list[_Seen] = []
    for intent in intents:
        node = nodes.get(intent.node_id)
        said = node.statuses.get(intent.replica_id) if node else None
        found.append(_Seen(intent, status_of(intent, nodes), said.phase if said else None))
    return found


def _endpoints(d: Deployment, seen: Sequence[_Seen]) -> tuple[Endpoint, ...]:
    """Replicas that are READY; with fewer of those than wanted also those last seen READY on a node that was lost.

    In the order of their ids.
    """
    good = [s for s in seen if s.status and s.status.phase is Phase.READY and s.status.address]
    found = [Endpoint(s.intent.replica_id, s.status.address) for s in good if s.status]
    if len(found) >= max(1, d.replicas):
        return tuple(found)
    for s in seen:
        if not s.status or s.status.phase is not Phase.LOST:
            continue
        # None: not heard of since the head's start; then its last address is all there is.
        if s.intent.address and s.before_lost in (Phase.READY, None):
            found.append(Endpoint(s.intent.replica_id, s.intent.address, lost=True))
    return tuple(sorted(found, key=lambda e: e.replica_id))


def _context_tokens(seen: Sequence[_Seen]) -> int:
    """The smallest context among the replicas that have loaded; 0: none has."""
    sizes = [s.status.model.context_tokens for s in seen if s.status and s.status.model]
    return min([n for n in sizes if n] or [s.intent.context_tokens for s in seen if s.intent.context_tokens], default=0)


def _stand(d: Deployment, seen: Sequence[_Seen], unplaced: Unplaced | None) -> DeploymentStatus:
    reason = unplaced.reason if unplaced else ""
    current = [s.status for s in seen if s.intent.revision == d.revision and s.status]
    phases = [s.status.phase for s in seen if s.status]
    ready = sum(p is Phase.READY for p in phases)
    failed = next((s for s in current if s.phase is Phase.FAILED), None)
    updated = sum(s.phase is Phase.READY for s in current)
    if ready or _endpoints(d, seen):
        amiss = _while_ready(d, seen, current, updated, reason)
        return DeploymentStatus(d, ready, RouteState.READY, amiss, stuck=unplaced is not None and unplaced.stuck)
    if failed and not any(p in _COMING for p in phases):
        return DeploymentStatus(d, 0, RouteState.FAILED, failed.reason or "its replica failed; its log says why")
    if d.replicas == 0 and not seen:
        return DeploymentStatus(d, 0, RouteState.AVAILABLE, "scaled to 0")
    if unplaced and unplaced.stuck and not any(p in _COMING for p in phases):
        return DeploymentStatus(d, 0, RouteState.FAILED, reason, stuck=True)
    return DeploymentStatus(
        d, 0, RouteState.STARTING, _progress([s.status for s in seen if s.status]) or reason or "waits to be placed"
    )


def _while_ready(
    d: Deployment, seen: Sequence[_Seen], current: Sequence[ReplicaStatus], updated: int, reason: str
) -> str:
    """What is still amiss with a deployment that can be called; "" if nothing is."""
    failed = next((s.reason for s in current if s.phase is Phase.FAILED), None)
    old = sorted({s.intent.revision for s in seen if s.intent.revision != d.revision})
    if old and failed is not None:
        return f"revision {d.revision} failed: {failed.rstrip('.')}; revision {old[-1]} goes on serving"
    if old:
        doing = reason or _progress(current)
        return f"updating to revision {d.revision}: {updated} of {d.replicas} ready" + (f"; {doing}" if doing else "")
    if failed is not None:
        return f"a replica failed: {failed}"
    return reason


def _stage(replicas: Sequence[ReplicaStatus]) -> str:
    """How far the replica has come that has come furthest: "loading, 40 %"."""
    if (s := _furthest(replicas)) is None:
        return "waiting for room"
    return _part_of(s.phase.value.lower(), s.progress)


def _furthest(replicas: Sequence[ReplicaStatus]) -> ReplicaStatus | None:
    coming = [s for s in replicas if s.phase in _COMING]
    return max(coming, key=lambda s: (_COMING.index(s.phase), s.progress, s.replica_id), default=None)


def _part_of(doing: str, progress: float) -> str:
    return f"{doing}, {progress:.0%}".replace("%", " %") if progress >= 0 else doing


def _progress(current: Sequence[ReplicaStatus]) -> str:
    """What the replica that has come furthest is doing: "loading, 40 %"."""
    if (s := _furthest(current)) is None:
        return ""
    if s.reason:
        return f"{s.reason.rstrip('.')}; it is tried again" if s.next_try else s.reason
    return _part_of(s.activity or s.phase.value.lower(), s.progress)
