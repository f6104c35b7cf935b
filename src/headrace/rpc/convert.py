"""Protobuf messages of the cluster as our own values and back: `x_to_pb` and `x_from_pb`, nothing else.

Those of streams are in convert_streams. Nothing else in Headrace takes protobuf messages apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from headrace.core import types as t
from headrace.core.phase import Phase
from headrace.rpc.v1 import node_pb2, types_pb2


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


def phase_to_pb(p: Phase) -> types_pb2.Phase.ValueType:
    return types_pb2.Phase.Value(p.value)


def phase_from_pb(m: types_pb2.Phase.ValueType) -> Phase:
    return Phase(types_pb2.Phase.Name(m))


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
