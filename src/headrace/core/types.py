"""What there is in a cluster, and what is wanted of it. Plain, frozen, standard library only.

Sizes are in bytes, durations in seconds, times in seconds of Unix time unless a name says otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NewType

from headrace.core.causes import TABLE, Again, Cause
from headrace.core.phase import Phase
from headrace.errors import InvalidRequest

ReplicaId = NewType("ReplicaId", str)
NodeId = NewType("NodeId", str)

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,95}")
"""Of what may become the name of a folder: nodes and replicas."""
MODEL_NAME_PATTERN = re.compile(r"(?=.{1,96}\Z)[A-Za-z0-9][A-Za-z0-9._:-]*(/[A-Za-z0-9][A-Za-z0-9._:-]*)*")


REPLICA_ID_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,199}")
"""Also a folder's name: that of its deployment, and more."""


def check_name(name: str, what: str = "model name", param: str = "model") -> str:
    """`name` if it can be a model's public name, as `tinyllama` or `org/name`; else InvalidRequest."""
    if not MODEL_NAME_PATTERN.fullmatch(name):
        raise InvalidRequest(
            f"'{name[:100]}' is not a {what}: use up to 96 letters, digits, '.', '_', ':', '-' and '/',"
            " where it and each part after a '/' begin with a letter or digit.",
            param=param,
        )
    return name


@dataclass(frozen=True, slots=True)
class Resources:
    """What a replica needs of a node, or what a node has or has left."""

    cpus: float = 0.0
    memory_bytes: int = 0
    gpus: int = 0
    gpu_memory_bytes: int = 0  # free memory that each GPU must have


@dataclass(frozen=True, slots=True)
class Gpu:
    index: int
    name: str
    memory_bytes: int
    memory_free_bytes: int


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Which model, from where, and how to run it. Two equal specs need no new revision."""

    source: str  # "builtin:demo", "hf://org/name", "s3://bucket/prefix", or a folder on the node
    source_revision: str = ""
    engine: str = "auto"
    context_tokens: int = 0  # 0: the model's own
    chat_template: str = ""
    weight_format: str = ""
    engine_args_json: str = "{}"
    task: str = ""  # "" or "generate", "embed", "score"
    tool_parser: str = ""
    reasoning_parser: str = ""
    trust_remote_code: bool = False
    openvino_source: str = ""  # the same as OpenVINO IR, used where weight_format is empty; "": convert from source
    openvino_revision: str = ""


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter of a deployment, called as `model:name`."""

    name: str
    source: str  # "hf://org/name", or an absolute folder on the node
    source_revision: str = ""


@dataclass(frozen=True, slots=True)
class AdapterStatus:
    """What a replica says of an adapter that it was told to have. No reason and not loaded: it is being loaded."""

    adapter: Adapter
    loaded: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Load:
    """How busy a replica is."""

    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    step: int = 0
    tokens_total: int = 0
    prefix_hit_tokens: int = 0
    prefix_query_tokens: int = 0
    max_running: int = 0  # sequences that it runs at a time; 0: not known
    cpu_s: float = 0.0  # CPU time of its engine so far; 0: that computes elsewhere, or does not say


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a loaded model can do. `features`: request parameters that its engine honours."""

    engine: str
    engine_version: str
    context_tokens: int
    vocab_size: int
    features: frozenset[str] = frozenset()
    tasks: tuple[str, ...] = ("generate",)
    prompt_bytes: int = 0  # a text of more has more tokens than the context, whatever it says; 0: not known


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """A replica as its scheduler sees it.

    cause: of its last failure; None while all is well. failures: how many there were in a row, until it has run for a
    while. next_try: Unix time at which it is started again; 0: that is not waited for.
    """

    replica_id: ReplicaId
    deployment: str
    revision: int
    phase: Phase
    reason: str = ""
    activity: str = ""
    progress: float = -1.0  # 0..1 of the activity; negative: unknown
    address: str = ""
    pid: int = 0
    restarts: int = 0
    load: Load = field(default_factory=Load)
    model: ModelInfo | None = None
    gpu_indices: tuple[int, ...] = ()
    started_at: float = 0.0
    adapters: tuple[AdapterStatus, ...] = ()
    cause: Cause | None = None
    failures: int = 0
    next_try: float = 0.0

    @property
    def permanent(self) -> bool:
        """Trying again cannot help."""
        return self.cause is not None and TABLE[self.cause].again is Again.NEVER


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """A replica that the head wants to run on a node.

    proven: its revision has served, so it is started again for ever. on_trial: an older revision is there beside it, so
    that to have been READY proves nothing yet.
    """

    replica_id: ReplicaId
    deployment: str
    revision: int
    model: ModelSpec
    resources: Resources
    gpu_indices: tuple[int, ...] = ()
    drain_s: float = 30.0
    # These may change while the replica runs.
    adapters: tuple[Adapter, ...] = ()
    proven: bool = False
    on_trial: bool = False


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """What a scheduler says of itself when it joins."""

    node_id: NodeId
    incarnation: int
    hostname: str
    version: str
    resources: Resources
    gpus: tuple[Gpu, ...] = ()
    engines: tuple[str, ...] = ()


class RouteState(StrEnum):
    """Whether a public model name can be called."""

    AVAILABLE = "available"  # catalogued, not deployed: the first request deploys it
    STARTING = "starting"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A replica that requests may go to. `lost`: the head has lost its node; others come first."""

    replica_id: ReplicaId
    address: str
    lost: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """A public name and where it is served. `reason`: why it cannot be called, as clients are told it."""

    name: str
    state: RouteState
    reason: str = ""
    endpoints: tuple[Endpoint, ...] = ()
    created_unix_s: int = 0
    context_tokens: int = 0
    adapter: str = ""  # `name` is a model's, a colon and this; "": a model itself
    prompt_bytes: int = 0  # a text of more fits no replica's context; 0: not known

    @property
    def model(self) -> str:
        """The name of the model, without that of the adapter."""
        return self.name.removesuffix(f":{self.adapter}") if self.adapter else self.name


@dataclass(frozen=True, slots=True)
class RouteTable:
    """All public names. `version` grows with every change within an `epoch`."""

    epoch: int
    version: int
    routes: Mapping[str, Route]


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    name: str
    model: ModelSpec
    resources: Resources
    description: str = ""
    origin: str = "built-in"
    adapters: tuple[Adapter, ...] = ()
    on_demand: bool = False  # a request may start it where only listed models are started so


@dataclass(frozen=True, slots=True)
class Deployment:
    """What the user asked for, as stored."""

    name: str
    revision: int
    model: ModelSpec
    resources: Resources
    min_replicas: int
    max_replicas: int
    replicas: int  # wanted now, between min and max
    created_unix_s: int
    adapters: tuple[Adapter, ...] = ()  # by name; not part of a revision
    revised_unix_s: int = 0  # when its newest revision was made
    repeats: int = 0  # the revision that the newest one has its contents from, by a rollback; 0: none
    proven: bool = False  # its newest revision has served
    on_demand: bool = False  # a request made it, and nobody has asked for it by a command since


@dataclass(frozen=True, slots=True)
class DeploymentStatus:
    deployment: Deployment
    ready: int
    state: RouteState
    reason: str = ""
    stuck: bool = False  # no node that there is could hold another replica; waiting will not help


@dataclass(frozen=True, slots=True)
class PlacedReplica:
    node_id: NodeId
    status: ReplicaStatus


@dataclass(frozen=True, slots=True)
class NodeStatus:
    info: NodeInfo
    alive: bool
    silent_s: float
    free: Resources


@dataclass(frozen=True, slots=True)
class ProxyStatus:
    proxy_id: str
    pid: int
    state: str  # "running", "restarting", "watching" (not ours to keep alive)
    restarts: int = 0
    reason: str = ""  # what troubles it, else how the one before it ended
    requests: int = 0  # being answered


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    epoch: int
    version: str
    http_address: str
    deployments: tuple[DeploymentStatus, ...]
    replicas: tuple[PlacedReplica, ...]
    nodes: tuple[NodeStatus, ...]
    proxies: tuple[ProxyStatus, ...]


@dataclass(frozen=True, slots=True)
class DeployRequest:
    """What `headrace deploy` asks. None: what the catalog says."""

    model: str
    name: str = ""
    engine: str | None = None
    min_replicas: int | None = None
    max_replicas: int | None = None
    cpus: float | None = None
    memory_bytes: int | None = None
    gpus: int | None = None
    gpu_memory_bytes: int | None = None
    context_tokens: int | None = None
    weight_format: str | None = None
    engine_args_json: str | None = None
    source_revision: str | None = None
    chat_template: str | None = None
    task: str | None = None
    tool_parser: str | None = None
    reasoning_parser: str | None = None
    trust_remote_code: bool | None = None
    adapters: tuple[Adapter, ...] | None = None  # all of them
