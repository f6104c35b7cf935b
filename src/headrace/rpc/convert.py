"""Protobuf messages of the cluster as our own values and back: `x_to_pb` and `x_from_pb`, nothing else.

Those of streams are in convert_streams. Nothing else in Headrace takes protobuf messages apart. `x_from_pb` raises
InvalidRequest for what is out of bounds (see wire).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from headrace.core import types as t
from headrace.core.catalog import MAX_ADAPTERS
from headrace.core.causes import named
from headrace.core.phase import Phase
from headrace.errors import InvalidRequest
from headrace.rpc import wire
from headrace.rpc.v1 import node_pb2, types_pb2


def resources_to_pb(r: t.Resources) -> types_pb2.Resources:
    return types_pb2.Resources(
        cpus=r.cpus, memory_bytes=r.memory_bytes, gpus=r.gpus, gpu_memory_bytes=r.gpu_memory_bytes
    )


def resources_from_pb(m: types_pb2.Resources) -> t.Resources:
    return t.Resources(
        wire.amount(m.cpus, "cpus", wire.MAX_CPUS),
        int(wire.amount(m.memory_bytes, "memory_bytes", wire.MAX_BYTES)),
        int(wire.amount(m.gpus, "gpus", wire.MAX_GPUS)),
        int(wire.amount(m.gpu_memory_bytes, "gpu_memory_bytes", wire.MAX_BYTES)),
    )


def gpu_to_pb(g: t.Gpu) -> types_pb2.Gpu:
    return types_pb2.Gpu(index=g.index, name=g.name, memory_bytes=g.memory_bytes, memory_free_bytes=g.memory_free_bytes)


def gpu_from_pb(m: types_pb2.Gpu) -> t.Gpu:
    return t.Gpu(
        int(wire.amount(m.index, "gpu index", wire.MAX_GPUS)),
        wire.sentence(m.name, wire.MAX_WORD),
        int(wire.amount(m.memory_bytes, "memory_bytes", wire.MAX_BYTES)),
        int(wire.amount(m.memory_free_bytes, "memory_free_bytes", wire.MAX_BYTES)),
    )


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
        source=wire.word(m.source, "source", wire.MAX_SOURCE),
        source_revision=wire.word(m.source_revision, "source_revision"),
        engine=wire.word(m.engine, "engine") or "auto",
        context_tokens=m.context_tokens,
        chat_template=wire.document(m.chat_template, "chat_template"),
        weight_format=wire.word(m.weight_format, "weight_format"),
        engine_args_json=wire.document(m.engine_args_json, "engine_args_json") or "{}",
        task=wire.word(m.task, "task"),
        tool_parser=wire.word(m.tool_parser, "tool_parser"),
        reasoning_parser=wire.word(m.reasoning_parser, "reasoning_parser"),
        trust_remote_code=m.trust_remote_code,
        openvino_source=wire.word(m.openvino_source, "openvino_source", wire.MAX_SOURCE),
        openvino_revision=wire.word(m.openvino_revision, "openvino_revision"),
    )


def adapter_to_pb(a: t.Adapter) -> types_pb2.Adapter:
    return types_pb2.Adapter(name=a.name, source=a.source, source_revision=a.source_revision)


def adapter_from_pb(m: types_pb2.Adapter) -> t.Adapter:
    return t.Adapter(
        wire.word(m.name, "adapter"),
        wire.word(m.source, "source", wire.MAX_SOURCE),
        wire.word(m.source_revision, "source_revision"),
    )


def adapters_from_pb(ms: Sequence[types_pb2.Adapter]) -> tuple[t.Adapter, ...]:
    return tuple(adapter_from_pb(a) for a in wire.few(ms, "adapters", MAX_ADAPTERS))


def phase_to_pb(p: Phase) -> types_pb2.Phase.ValueType:
    return types_pb2.Phase.Value(p.value)


def phase_from_pb(m: types_pb2.Phase.ValueType) -> Phase:
    try:
        return Phase(types_pb2.Phase.Name(m))
    except ValueError as e:
        raise InvalidRequest(f"There is no phase {m}: is that another version?", param="phase") from e


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
        wire.finite(m.kv_usage, "kv_usage"),
        m.step,
        m.tokens_total,
        m.prefix_hit_tokens,
        m.prefix_query_tokens,
        m.max_running,
        wire.finite(m.cpu_s, "cpu_s"),
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
        started_at=s.started_at,
        cause=s.cause or "",
        failures=s.failures,
        next_try_unix_s=s.next_try,
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
                prompt_bytes=s.model.prompt_bytes,
            )
        )
    return m


def replica_status_from_pb(m: types_pb2.ReplicaStatus) -> t.ReplicaStatus:
    model = None
    if m.HasField("model"):
        i = m.model
        features = frozenset(wire.words(i.features, "features", 256))
        engine, version = wire.word(i.engine, "engine"), wire.sentence(i.engine_version, wire.MAX_WORD)
        tasks = wire.words(i.tasks, "tasks", 16)
        model = t.ModelInfo(engine, version, i.context_tokens, i.vocab_size, features, tasks, i.prompt_bytes)
    return t.ReplicaStatus(
        replica_id=t.ReplicaId(wire.replica_id(m.replica_id)),
        deployment=wire.word(m.deployment, "deployment"),
        revision=m.revision,
        phase=phase_from_pb(m.phase),
        reason=wire.sentence(m.reason),
        activity=wire.sentence(m.activity, wire.MAX_WORD),
        progress=wire.share(m.progress),
        address=wire.address(m.address, "address"),
        pid=m.pid,
        restarts=m.restarts,
        load=load_from_pb(m.load),
        model=model,
        gpu_indices=tuple(wire.few(m.gpu_indices, "gpu_indices", wire.MAX_GPUS)),
        started_at=wire.seconds(m.started_at, "started_at"),
        cause=named(m.cause),
        failures=m.failures,
        next_try=wire.seconds(m.next_try_unix_s, "next_try_unix_s"),
        adapters=tuple(
            t.AdapterStatus(adapter_from_pb(a.adapter), a.loaded, wire.sentence(a.reason))
            for a in wire.few(m.adapters, "adapters", MAX_ADAPTERS)
        ),
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
        proven=s.proven,
        on_trial=s.on_trial,
    )


def replica_spec_from_pb(m: types_pb2.ReplicaSpec) -> t.ReplicaSpec:
    return t.ReplicaSpec(
        # The node looks whether it can be the name of a folder.
        replica_id=t.ReplicaId(wire.word(m.replica_id, "replica id")),
        deployment=wire.word(m.deployment, "deployment"),
        revision=m.revision,
        model=model_from_pb(m.model),
        resources=resources_from_pb(m.resources),
        gpu_indices=tuple(wire.few(m.gpu_indices, "gpu_indices", wire.MAX_GPUS)),
        drain_s=wire.seconds(m.drain_s, "drain_s"),
        adapters=adapters_from_pb(m.adapters),
        proven=m.proven,
        on_trial=m.on_trial,
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
        node_id=t.NodeId(wire.name(m.node_id, "node id")),
        incarnation=m.incarnation,
        hostname=wire.word(m.hostname, "hostname"),
        version=wire.word(m.version, "version"),
        resources=resources_from_pb(m.resources),
        gpus=tuple(gpu_from_pb(g) for g in wire.few(m.gpus, "gpus", wire.MAX_GPUS)),
        engines=wire.words(m.engines, "engines", 64),
    )


def node_report_to_pb(
    news: Sequence[t.ReplicaStatus], gone: Iterable[t.ReplicaId] | None, epoch: int
) -> node_pb2.NodeReport:
    """gone: None for a report of all replicas; else those that are no more, of a report of what changed."""
    replicas = [replica_status_to_pb(s) for s in news]
    return node_pb2.NodeReport(replicas=replicas, epoch=epoch, changes=gone is not None, gone=gone or ())


def node_report_from_pb(m: node_pb2.NodeReport) -> tuple[list[t.ReplicaStatus], set[t.ReplicaId] | None]:
    gone = {t.ReplicaId(g) for g in wire.words(m.gone, "gone", wire.MAX_REPLICAS, 96)} if m.changes else None
    return [replica_status_from_pb(r) for r in wire.few(m.replicas, "replicas", wire.MAX_REPLICAS)], gone
