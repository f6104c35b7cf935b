"""Protobuf messages of the cluster as our own values and back: `x_to_pb` and `x_from_pb`, nothing else.

Those of streams are in convert_streams. Nothing else in Headrace takes protobuf messages apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from headrace.core import types as t
from headrace.core.route_delta import RouteChange, RouteDelta
from headrace.core.state import Revision
from headrace.rpc.v1 import head_pb2, node_pb2, types_pb2


def resources_to_pb(r: t.Resources) -> types_pb2.Resources:
    return types_pb2.Resources(
        cpus=r.cpus, memory_bytes=r.memory_bytes, gpus=r.gpus, gpu_memory_bytes=r.gpu_memory_bytes
    )


def resources_from_pb(m: types_pb2.Resources) -> t.Resources:
    return t.Resources(m.cpus, m.memory_bytes, m.gpus, m.gpu_memory_bytes)


def gpu_to_pb(g: t.Gpu) -> types_pb2.Gpu:
    return types_pb2.Gpu(index=g.index, name=g.name, memory_bytes=g.memory_bytes, memory_free_bytes=g.memory_free_bytes)


def gpu_from_pb(m: types_pb2.Gpu) -> t.Gpu:
    return t.Gpu(m.index, m.name, m.memory_bytes, m.memory_free_bytes)


def model_to_pb(s: t.ModelSpec) -> types_pb2.ModelSpec:
    return types_pb2.ModelSpec(
        source=s.source,
        source_revision=s.source_revision,
        engine=s.engine,
        context_tokens=s.context_tokens,
        chat_template=s.chat_template,
        weight_format=s.weight_format,
        engine_args_json=s.engine_args_json,
        task=s.task,
        tool_parser=s.tool_parser,
        reasoning_parser=s.reasoning_parser,
        trust_remote_code=s.trust_remote_code,
        openvino_source=s.openvino_source,
        openvino_revision=s.openvino_revision,
    )


def model_from_pb(m: types_pb2.ModelSpec) -> t.ModelSpec:
    return t.ModelSpec(
        source=m.source,
        source_revision=m.source_revision,
        engine=m.engine or "auto",
        context_tokens=m.context_tokens,
        chat_template=m.chat_template,
        weight_format=m.weight_format,
        engine_args_json=m.engine_args_json or "{}",
        task=m.task,
        tool_parser=m.tool_parser,
        reasoning_parser=m.reasoning_parser,
        trust_remote_code=m.trust_remote_code,
        openvino_source=m.openvino_source,
        openvino_revision=m.openvino_revision,
    )


def adapter_to_pb(a: t.Adapter) -> types_pb2.Adapter:
    return types_pb2.Adapter(name=a.name, source=a.source, source_revision=a.source_revision)


def adapter_from_pb(m: types_pb2.Adapter) -> t.Adapter:
    return t.Adapter(m.name, m.source, m.source_revision)


def phase_to_pb(p: t.Phase) -> types_pb2.Phase.ValueType:
    return types_pb2.Phase.Value(p.value)


def phase_from_pb(m: types_pb2.Phase.ValueType) -> t.Phase:
    return t.Phase(types_pb2.Phase.Name(m))


def load_to_pb(x: t.Load) -> types_pb2.Load:
    return types_pb2.Load(
        running=x.running,
        waiting=x.waiting,
        kv_usage=x.kv_usage,
        step=x.step,
        tokens_total=x.tokens_total,
        prefix_hit_tokens=x.prefix_hit_tokens,
        prefix_query_tokens=x.prefix_query_tokens,
        max_running=x.max_running,
        cpu_s=x.cpu_s,
    )


def load_from_pb(m: types_pb2.Load) -> t.Load:
    return t.Load(
        m.running,
        m.waiting,
        m.kv_usage,
        m.step,
        m.tokens_total,
        m.prefix_hit_tokens,
        m.prefix_query_tokens,
        m.max_running,
        m.cpu_s,
    )


def replica_status_to_pb(s: t.ReplicaStatus) -> types_pb2.ReplicaStatus:
    m = types_pb2.ReplicaStatus(
        replica_id=s.replica_id,
        deployment=s.deployment,
        revision=s.revision,
        phase=phase_to_pb(s.phase),
        reason=s.reason,
        activity=s.activity,
        progress=s.progress,
        address=s.address,
        pid=s.pid,
        restarts=s.restarts,
        load=load_to_pb(s.load),
        gpu_indices=s.gpu_indices,
        permanent=s.permanent,
        started_at=s.started_at,
        adapters=[
            types_pb2.AdapterStatus(adapter=adapter_to_pb(a.adapter), loaded=a.loaded, reason=a.reason)
            for a in s.adapters
        ],
    )
    if s.model:
        m.model.CopyFrom(
            types_pb2.ModelInfo(
                engine=s.model.engine,
                engine_version=s.model.engine_version,
                context_tokens=s.model.context_tokens,
                vocab_size=s.model.vocab_size,
                features=sorted(s.model.features),
                tasks=s.model.tasks,
            )
        )
    return m


def replica_status_from_pb(m: types_pb2.ReplicaStatus) -> t.ReplicaStatus:
    model = None
    if m.HasField("model"):
        i = m.model
        features = frozenset(i.features)
        model = t.ModelInfo(i.engine, i.engine_version, i.context_tokens, i.vocab_size, features, tuple(i.tasks))
    return t.ReplicaStatus(
        replica_id=t.ReplicaId(m.replica_id),
        deployment=m.deployment,
        revision=m.revision,
        phase=phase_from_pb(m.phase),
        reason=m.reason,
        activity=m.activity,
        progress=m.progress,
        address=m.address,
        pid=m.pid,
        restarts=m.restarts,
        load=load_from_pb(m.load),
        model=model,
        gpu_indices=tuple(m.gpu_indices),
        permanent=m.permanent,
        started_at=m.started_at,
        adapters=tuple(t.AdapterStatus(adapter_from_pb(a.adapter), a.loaded, a.reason) for a in m.adapters),
    )


def replica_spec_to_pb(s: t.ReplicaSpec) -> types_pb2.ReplicaSpec:
    return types_pb2.ReplicaSpec(
        replica_id=s.replica_id,
        deployment=s.deployment,
        revision=s.revision,
        model=model_to_pb(s.model),
        resources=resources_to_pb(s.resources),
        gpu_indices=s.gpu_indices,
        drain_s=s.drain_s,
        adapters=[adapter_to_pb(a) for a in s.adapters],
    )


def replica_spec_from_pb(m: types_pb2.ReplicaSpec) -> t.ReplicaSpec:
    return t.ReplicaSpec(
        replica_id=t.ReplicaId(m.replica_id),
        deployment=m.deployment,
        revision=m.revision,
        model=model_from_pb(m.model),
        resources=resources_from_pb(m.resources),
        gpu_indices=tuple(m.gpu_indices),
        drain_s=m.drain_s,
        adapters=tuple(adapter_from_pb(a) for a in m.adapters),
    )


def node_info_to_pb(n: t.NodeInfo) -> node_pb2.NodeHello:
    return node_pb2.NodeHello(
        node_id=n.node_id,
        incarnation=n.incarnation,
        hostname=n.hostname,
        version=n.version,
        resources=resources_to_pb(n.resources),
        gpus=[gpu_to_pb(g) for g in n.gpus],
        engines=n.engines,
    )


def node_info_from_pb(m: node_pb2.NodeHello) -> t.NodeInfo:
    return t.NodeInfo(
        node_id=t.NodeId(m.node_id),
        incarnation=m.incarnation,
        hostname=m.hostname,
        version=m.version,
        resources=resources_from_pb(m.resources),
        gpus=tuple(gpu_from_pb(g) for g in m.gpus),
        engines=tuple(m.engines),
    )


def node_report_to_pb(
    news: Sequence[t.ReplicaStatus], gone: Iterable[t.ReplicaId] | None, epoch: int
) -> node_pb2.NodeReport:
    """gone: None for a report of all replicas; else those that are no more, of a report of what changed."""
    replicas = [replica_status_to_pb(s) for s in news]
    return node_pb2.NodeReport(replicas=replicas, epoch=epoch, changes=gone is not None, gone=gone or ())


def node_report_from_pb(m: node_pb2.NodeReport) -> tuple[list[t.ReplicaStatus], set[t.ReplicaId] | None]:
    gone = set(map(t.ReplicaId, m.gone)) if m.changes else None
    return [replica_status_from_pb(r) for r in m.replicas], gone


# --- routes and administration ---

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
    optional = {name: getattr(m, name) for name in _DEPLOY_OPTIONAL if m.HasField(name)}
    adapters = tuple(adapter_from_pb(a) for a in m.adapters.adapters) if m.HasField("adapters") else None
    return t.DeployRequest(model=m.model, name=m.name, adapters=adapters, **optional)


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
            adapters=tuple(adapter_from_pb(a) for a in m.adapters),
            revised_unix_s=m.revised_unix_s,
            repeats=m.repeats,
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
        proxies=[head_pb2.Proxy(proxy_id=p.proxy_id, pid=p.pid, state=p.state, restarts=p.restarts) for p in s.proxies],
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
        proxies=tuple(t.ProxyStatus(p.proxy_id, p.pid, p.state, p.restarts) for p in m.proxies),
    )


def catalog_entry_to_pb(e: t.CatalogEntry) -> head_pb2.CatalogEntry:
    return head_pb2.CatalogEntry(
        name=e.name,
        description=e.description,
        model=model_to_pb(e.model),
        resources=resources_to_pb(e.resources),
        origin=e.origin,
        adapters=[adapter_to_pb(a) for a in e.adapters],
    )


def catalog_entry_from_pb(m: head_pb2.CatalogEntry) -> t.CatalogEntry:
    return t.CatalogEntry(
        name=m.name,
        description=m.description,
        model=model_from_pb(m.model),
        resources=resources_from_pb(m.resources),
        origin=m.origin,
        adapters=tuple(adapter_from_pb(a) for a in m.adapters),
    )
