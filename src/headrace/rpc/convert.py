"""The one place where protobuf messages become our own values and back. `x_to_pb` and `x_from_pb`, nothing else."""

from __future__ import annotations

from headrace.core import types as t
from headrace.errors import HeadraceError
from headrace.rpc.v1 import head_pb2, node_pb2, replica_pb2, types_pb2


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
        engine_options_json=s.engine_options_json,
    )


def model_from_pb(m: types_pb2.ModelSpec) -> t.ModelSpec:
    return t.ModelSpec(
        source=m.source,
        source_revision=m.source_revision,
        engine=m.engine or "auto",
        context_tokens=m.context_tokens,
        chat_template=m.chat_template,
        weight_format=m.weight_format,
        engine_options_json=m.engine_options_json or "{}",
    )


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
    )
    if s.model:
        m.model.CopyFrom(
            types_pb2.ModelInfo(
                engine=s.model.engine,
                engine_version=s.model.engine_version,
                context_tokens=s.model.context_tokens,
                vocab_size=s.model.vocab_size,
                features=sorted(s.model.features),
            )
        )
    return m


def replica_status_from_pb(m: types_pb2.ReplicaStatus) -> t.ReplicaStatus:
    model = None
    if m.HasField("model"):
        i = m.model
        model = t.ModelInfo(i.engine, i.engine_version, i.context_tokens, i.vocab_size, frozenset(i.features))
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


# --- routes and administration ---

_ROUTE_STATES = {
    t.RouteState.AVAILABLE: head_pb2.ROUTE_AVAILABLE,
    t.RouteState.STARTING: head_pb2.ROUTE_STARTING,
    t.RouteState.READY: head_pb2.ROUTE_READY,
    t.RouteState.FAILED: head_pb2.ROUTE_FAILED,
}
_ROUTE_STATES_BACK = {v: k for k, v in _ROUTE_STATES.items()}


def route_table_to_pb(table: t.RouteTable) -> head_pb2.RouteTable:
    return head_pb2.RouteTable(
        epoch=table.epoch,
        version=table.version,
        routes=[
            head_pb2.Route(
                name=r.name,
                state=_ROUTE_STATES[r.state],
                reason=r.reason,
                endpoints=[
                    head_pb2.Endpoint(replica_id=e.replica_id, address=e.address, lost=e.lost) for e in r.endpoints
                ],
                created_unix_s=r.created_unix_s,
                context_tokens=r.context_tokens,
            )
            for r in table.routes.values()
        ],
    )


def route_table_from_pb(m: head_pb2.RouteTable) -> t.RouteTable:
    return t.RouteTable(
        epoch=m.epoch,
        version=m.version,
        routes={
            r.name: t.Route(
                name=r.name,
                state=_ROUTE_STATES_BACK[r.state],
                reason=r.reason,
                endpoints=tuple(t.Endpoint(t.ReplicaId(e.replica_id), e.address, e.lost) for e in r.endpoints),
                created_unix_s=r.created_unix_s,
                context_tokens=r.context_tokens,
            )
            for r in m.routes
        },
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
    "engine_options_json",
    "source_revision",
    "chat_template",
)


def deploy_request_to_pb(r: t.DeployRequest) -> head_pb2.DeployRequest:
    m = head_pb2.DeployRequest(model=r.model, name=r.name)
    for name in _DEPLOY_OPTIONAL:
        value = getattr(r, name)
        if value is not None:
            setattr(m, name, value)
    return m


def deploy_request_from_pb(m: head_pb2.DeployRequest) -> t.DeployRequest:
    optional = {name: getattr(m, name) for name in _DEPLOY_OPTIONAL if m.HasField(name)}
    return t.DeployRequest(model=m.model, name=m.name, **optional)


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
        created_unix_s=d.created_unix_s,
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
        ),
        ready=m.ready,
        state=_ROUTE_STATES_BACK[m.state],
        reason=m.reason,
    )


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
    )


def catalog_entry_from_pb(m: head_pb2.CatalogEntry) -> t.CatalogEntry:
    return t.CatalogEntry(
        name=m.name,
        description=m.description,
        model=model_from_pb(m.model),
        resources=resources_from_pb(m.resources),
        origin=m.origin,
    )


# --- streams ---


def failure_to_pb(f: t.Failure) -> types_pb2.ErrorInfo:
    return types_pb2.ErrorInfo(
        kind=f.kind,
        message=f.message,
        param=f.param or "",
        retry_after_s=f.retry_after_s or 0.0,
        code=f.code or "",
    )


def failure_from_pb(m: types_pb2.ErrorInfo) -> t.Failure:
    return t.Failure(m.kind, m.message, m.param or None, m.retry_after_s or None, m.code or None)


def failure_of(e: HeadraceError) -> t.Failure:
    """An exception as the value that travels."""
    return t.Failure(e.kind, e.message, e.param, e.retry_after_s, e.code)


_SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logprobs",
    "ignore_eos",
    "min_tokens",
)


def submit_to_pb(s: t.Submit) -> replica_pb2.SessionRequest:
    m = replica_pb2.Submit(stream=s.stream, request_id=s.request_id, stop=s.stop)
    match s.prompt:
        case t.TextPrompt(text):
            m.text = text
        case t.ChatPrompt(messages):
            m.messages_json = messages
        case t.TokenPrompt(ids):
            m.token_ids.ids.extend(ids)
            m.token_ids.SetInParent()
    m.sampling.SetInParent()
    for name in _SAMPLING:
        value = getattr(s.sampling, name)
        if value is not None:
            setattr(m.sampling, name, value)
    if s.sampling.logit_bias:
        m.sampling.logit_bias.update(s.sampling.logit_bias)
    if s.max_tokens is not None:
        m.max_tokens = s.max_tokens
    if s.resume is not None:
        m.resume.token_ids.extend(s.resume.token_ids)
        m.resume.text_chars = s.resume.text_chars
    return replica_pb2.SessionRequest(submit=m)


def submit_from_pb(m: replica_pb2.Submit) -> t.Submit:
    kind = m.WhichOneof("prompt")
    if kind == "messages_json":
        prompt: t.Prompt = t.ChatPrompt(m.messages_json)
    elif kind == "token_ids":
        prompt = t.TokenPrompt(list(m.token_ids.ids))
    else:
        prompt = t.TextPrompt(m.text)
    given = {name: getattr(m.sampling, name) for name in _SAMPLING if m.sampling.HasField(name)}
    bias = dict(m.sampling.logit_bias) or None
    resume = t.Resume(list(m.resume.token_ids), m.resume.text_chars) if m.HasField("resume") else None
    return t.Submit(
        stream=m.stream,
        request_id=m.request_id,
        prompt=prompt,
        sampling=t.Sampling(logit_bias=bias, **given),
        max_tokens=m.max_tokens if m.HasField("max_tokens") else None,
        stop=tuple(m.stop),
        resume=resume,
    )


def _logprob_to_pb(x: t.TokenLogprob) -> replica_pb2.TokenLogprob:
    return replica_pb2.TokenLogprob(id=x.id, token=x.token, logprob=x.logprob, top=[_logprob_to_pb(y) for y in x.top])


def _logprob_from_pb(m: replica_pb2.TokenLogprob) -> t.TokenLogprob:
    return t.TokenLogprob(m.id, m.token, m.logprob, tuple(_logprob_from_pb(y) for y in m.top))


def frame_logprobs_from_pb(m: replica_pb2.Frame) -> list[tuple[int, tuple[t.TokenLogprob, ...]]]:
    """The log-probabilities of a frame alone: (stream, one per token)."""
    return [(x.stream, tuple(_logprob_from_pb(y) for y in x.tokens)) for x in m.logprobs]


def frame_to_pb(f: t.Frame) -> replica_pb2.Frame:
    m = replica_pb2.Frame(
        stream=f.streams,
        position=f.positions,
        count=f.counts,
        token_id=f.token_ids,
        text=f.texts,
        draining=f.draining,
    )
    if f.load is not None:
        m.load.CopyFrom(load_to_pb(f.load))
    for s in f.started:
        m.started.add(stream=s.stream, prompt_tokens=s.prompt_tokens)
    for x in f.finished:
        done = m.finished.add(stream=x.stream, reason=x.reason, cached_tokens=x.cached_tokens)
        if x.failure:
            done.error.CopyFrom(failure_to_pb(x.failure))
    for r in f.rejected:
        m.rejected.add(stream=r.stream, error=failure_to_pb(r.failure))
    for stream, tokens in f.logprobs:
        m.logprobs.add(stream=stream, tokens=[_logprob_to_pb(x) for x in tokens])
    return m


def frame_from_pb(m: replica_pb2.Frame) -> t.Frame:
    return t.Frame(
        streams=list(m.stream),
        positions=list(m.position),
        counts=list(m.count),
        token_ids=list(m.token_id),
        texts=list(m.text),
        started=[t.Started(x.stream, x.prompt_tokens) for x in m.started],
        finished=[
            t.Finished(
                x.stream,
                x.reason,
                x.cached_tokens,
                failure_from_pb(x.error) if x.HasField("error") else None,
            )
            for x in m.finished
        ],
        rejected=[t.Rejected(x.stream, failure_from_pb(x.error)) for x in m.rejected],
        logprobs=frame_logprobs_from_pb(m),
        load=load_from_pb(m.load) if m.HasField("load") else None,
        draining=m.draining,
    )
