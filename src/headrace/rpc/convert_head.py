"""Protobuf messages of the head's services as our own values and back: `x_to_pb` and `x_from_pb`, nothing else."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from headrace.core import types as t
from headrace.core.route_delta import RouteChange, RouteDelta
from headrace.core.state import Revision
from headrace.rpc import wire
from headrace.rpc.convert import (
    adapter_to_pb,
    adapters_from_pb,
    gpu_from_pb,
    gpu_to_pb,
    model_from_pb,
    model_to_pb,
    replica_status_from_pb,
    replica_status_to_pb,
    resources_from_pb,
    resources_to_pb,
)
from headrace.rpc.v1 import head_pb2

_ROUTE_STATES = {
    t.RouteState.AVAILABLE: head_pb2.ROUTE_AVAILABLE,
    t.RouteState.STARTING: head_pb2.ROUTE_STARTING,
    t.RouteState.READY: head_pb2.ROUTE_READY,
    t.RouteState.FAILED: head_pb2.ROUTE_FAILED,
}
_ROUTE_STATES_BACK = {v: k for k, v in _ROUTE_STATES.items()}


def route_delta_to_pb(d: RouteDelta) -> head_pb2.RouteDelta:
    return head_pb2.RouteDelta(
        epoch=d.epoch,
        version=d.version,
        base=d.base,
        changed=[head_pb2.RouteChange(route=_route_to_pb(c.route), gone=c.gone) for c in d.changed],
        removed=d.removed,
    )


def route_delta_from_pb(m: head_pb2.RouteDelta) -> RouteDelta:
    changed = (RouteChange(_route_from_pb(c.route), tuple(map(t.ReplicaId, c.gone))) for c in m.changed)
    return RouteDelta(m.epoch, m.version, m.base, tuple(changed), tuple(m.removed))


def _route_to_pb(r: t.Route) -> head_pb2.Route:
    return head_pb2.Route(
        name=r.name,
        state=_ROUTE_STATES[r.state],
        reason=r.reason,
        endpoints=[head_pb2.Endpoint(replica_id=e.replica_id, address=e.address, lost=e.lost) for e in r.endpoints],
        created_unix_s=r.created_unix_s,
        context_tokens=r.context_tokens,
        adapter=r.adapter,
    )


def _route_from_pb(m: head_pb2.Route) -> t.Route:
    return t.Route(
        name=m.name,
        state=_ROUTE_STATES_BACK[m.state],
        reason=m.reason,
        endpoints=tuple(t.Endpoint(t.ReplicaId(e.replica_id), e.address, e.lost) for e in m.endpoints),
        created_unix_s=m.created_unix_s,
        context_tokens=m.context_tokens,
        adapter=m.adapter,
    )


_DEPLOY_OPTIONAL = (
    "engine",
    "min_replicas",
    "max_replicas",
    "cpus",
    "memory_bytes",
    "gpus",
    "gpu_memory_bytes",
    "context_tokens",
    "weight_format",
    "engine_args_json",
    "source_revision",
    "chat_template",
    "task",
    "tool_parser",
    "reasoning_parser",
    "trust_remote_code",
)


def deploy_request_to_pb(r: t.DeployRequest) -> head_pb2.DeployRequest:
    m = head_pb2.DeployRequest(model=r.model, name=r.name)
    for name in _DEPLOY_OPTIONAL:
        value = getattr(r, name)
        if value is not None:
            setattr(m, name, value)
    if r.adapters is not None:
        m.adapters.adapters.extend(adapter_to_pb(a) for a in r.adapters)
        m.adapters.SetInParent()
    return m


def deploy_request_from_pb(m: head_pb2.DeployRequest) -> t.DeployRequest:
    optional = {name: _bounded(name, getattr(m, name)) for name in _DEPLOY_OPTIONAL if m.HasField(name)}
    adapters = adapters_from_pb(m.adapters.adapters) if m.HasField("adapters") else None
    model = wire.word(m.model, "model", wire.MAX_SOURCE)
    return t.DeployRequest(model=model, name=wire.word(m.name, "name"), adapters=adapters, **optional)


def _bounded(name: str, value: Any) -> Any:
    """What a number may be is for the catalog to say; here only what would be dear to look at is refused."""
    if not isinstance(value, str):
        return value
    return wire.document(value, name) if name in ("engine_args_json", "chat_template") else wire.word(value, name)


def deployment_status_to_pb(s: t.DeploymentStatus) -> head_pb2.Deployment:
    d = s.deployment
    return head_pb2.Deployment(
        name=d.name,
        revision=d.revision,
        model=model_to_pb(d.model),
        resources=resources_to_pb(d.resources),
        min_replicas=d.min_replicas,
        max_replicas=d.max_replicas,
        replicas=d.replicas,
        ready=s.ready,
        state=_ROUTE_STATES[s.state],
        reason=s.reason,
        stuck=s.stuck,
        created_unix_s=d.created_unix_s,
        adapters=[adapter_to_pb(a) for a in d.adapters],
        revised_unix_s=d.revised_unix_s,
        repeats=d.repeats,
        proven=d.proven,
        on_demand=d.on_demand,
    )


def deployment_status_from_pb(m: head_pb2.Deployment) -> t.DeploymentStatus:
    return t.DeploymentStatus(
        deployment=t.Deployment(
            name=m.name,
            revision=m.revision,
            model=model_from_pb(m.model),
            resources=resources_from_pb(m.resources),
            min_replicas=m.min_replicas,
            max_replicas=m.max_replicas,
            replicas=m.replicas,
            created_unix_s=m.created_unix_s,
            adapters=adapters_from_pb(m.adapters),
            revised_unix_s=m.revised_unix_s,
            repeats=m.repeats,
            proven=m.proven,
            on_demand=m.on_demand,
        ),
        ready=m.ready,
        state=_ROUTE_STATES_BACK[m.state],
        reason=m.reason,
        stuck=m.stuck,
    )


def revision_to_pb(r: Revision) -> head_pb2.Revision:
    return head_pb2.Revision(
        revision=r.revision,
        model=model_to_pb(r.model),
        resources=resources_to_pb(r.resources),
        created_unix_s=r.created_unix_s,
        repeats=r.repeats,
    )


def revision_from_pb(m: head_pb2.Revision, deployment: str) -> Revision:
    model, resources = model_from_pb(m.model), resources_from_pb(m.resources)
    return Revision(deployment, m.revision, model, resources, m.created_unix_s, m.repeats)


def cluster_status_to_pb(s: t.ClusterStatus) -> head_pb2.ClusterStatus:
    return head_pb2.ClusterStatus(
        epoch=s.epoch,
        version=s.version,
        http_address=s.http_address,
        deployments=[deployment_status_to_pb(d) for d in s.deployments],
        replicas=[head_pb2.PlacedReplica(node_id=r.node_id, status=replica_status_to_pb(r.status)) for r in s.replicas],
        nodes=[
            head_pb2.Node(
                node_id=n.info.node_id,
                hostname=n.info.hostname,
                version=n.info.version,
                alive=n.alive,
                silent_s=n.silent_s,
                total=resources_to_pb(n.info.resources),
                free=resources_to_pb(n.free),
                gpus=[gpu_to_pb(g) for g in n.info.gpus],
                engines=n.info.engines,
            )
            for n in s.nodes
        ],
        proxies=[head_pb2.Proxy(**asdict(p)) for p in s.proxies],
    )


def cluster_status_from_pb(m: head_pb2.ClusterStatus) -> t.ClusterStatus:
    return t.ClusterStatus(
        epoch=m.epoch,
        version=m.version,
        http_address=m.http_address,
        deployments=tuple(deployment_status_from_pb(d) for d in m.deployments),
        replicas=tuple(t.PlacedReplica(t.NodeId(r.node_id), replica_status_from_pb(r.status)) for r in m.replicas),
        nodes=tuple(
            t.NodeStatus(
                info=t.NodeInfo(
                    node_id=t.NodeId(n.node_id),
                    incarnation=0,
                    hostname=n.hostname,
                    version=n.version,
                    resources=resources_from_pb(n.total),
                    gpus=tuple(gpu_from_pb(g) for g in n.gpus),
                    engines=tuple(n.engines),
                ),
                alive=n.alive,
                silent_s=n.silent_s,
                free=resources_from_pb(n.free),
            )
            for n in m.nodes
        ),
        proxies=tuple(t.ProxyStatus(p.proxy_id, p.pid, p.state, p.restarts, p.reason, p.requests) for p in m.proxies),
    )


def catalog_entry_to_pb(e: t.CatalogEntry) -> head_pb2.CatalogEntry:
    return head_pb2.CatalogEntry(
        name=e.name,
        description=e.description,
        model=model_to_pb(e.model),
        resources=resources_to_pb(e.resources),
        origin=e.origin,
        adapters=[adapter_to_pb(a) for a in e.adapters],
        on_demand=e.on_demand,
    )


def catalog_entry_from_pb(m: head_pb2.CatalogEntry) -> t.CatalogEntry:
    return t.CatalogEntry(
        name=wire.word(m.name, "name"),
        description=wire.sentence(m.description),
        model=model_from_pb(m.model),
        resources=resources_from_pb(m.resources),
        origin=wire.word(m.origin, "origin"),
        adapters=adapters_from_pb(m.adapters),
        on_demand=m.on_demand,
    )
