"""What the head wants (State, as stored), what it sees (NodeView), and the changes that a store commits, as values."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from headrace.core.intents import Goal, Intent, Intents
from headrace.core.phase import Phase
from headrace.core.types import (
    CatalogEntry,
    Deployment,
    ModelSpec,
    NodeId,
    NodeInfo,
    ReplicaId,
    ReplicaSpec,
    ReplicaStatus,
    Resources,
)

HISTORY = 10  # revisions of a deployment that are kept, the newest included


@dataclass(frozen=True, slots=True)
class Revision:
    """One version of a deployment. Kept while a replica of it exists, and among the HISTORY newest to go back to.

    created_unix_s: 0 if that was not recorded. repeats: the revision that a rollback took its contents from; 0: none.
    proven: it has served, so that its replicas are started again for ever.
    """

    deployment: str
    revision: int
    model: ModelSpec
    resources: Resources
    created_unix_s: int = 0
    repeats: int = 0
    proven: bool = False


@dataclass(frozen=True, slots=True)
class State:
    """Everything the head wants. What a store holds, and nothing else."""

    deployments: Mapping[str, Deployment] = field(default_factory=lambda: MappingProxyType({}))
    revisions: Mapping[tuple[str, int], Revision] = field(default_factory=lambda: MappingProxyType({}))
    intents: Intents = field(default_factory=Intents)
    entries: Mapping[str, CatalogEntry] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class PutDeployment:
    """Create or replace a deployment; its revision is recorded with it."""

    deployment: Deployment


@dataclass(frozen=True, slots=True)
class DropDeployment:
    name: str


@dataclass(frozen=True, slots=True)
class PutIntent:
    intent: Intent


@dataclass(frozen=True, slots=True)
class DropIntent:
    replica_id: ReplicaId


@dataclass(frozen=True, slots=True)
class PutEntry:
    """Add a model to the catalog, or replace one that was added."""

    entry: CatalogEntry


@dataclass(frozen=True, slots=True)
class DropEntry:
    name: str


Change = PutDeployment | DropDeployment | PutIntent | DropIntent | PutEntry | DropEntry


def apply(state: State, changes: Iterable[Change]) -> State:
    """`state` after `changes`. Dropping what is not there changes nothing. Revisions that nobody needs are pruned."""
    deployments = dict(state.deployments)
    revisions = dict(state.revisions)
    entries = dict(state.entries)
    news: dict[ReplicaId, Intent | None] = {}
    names: set[str] = set()  # whose revisions may be needed no more
    for change in changes:
        match change:
            case PutDeployment(d):
                deployments[d.name] = d
                revisions[d.name, d.revision] = revision_of(d)
                names.add(d.name)
            case DropDeployment(name):
                deployments.pop(name, None)
                names.add(name)
            case PutIntent(intent):
                news[intent.replica_id] = intent
                names.add(intent.deployment)
            case DropIntent(replica_id):
                news[replica_id] = None
                if before := state.intents.get(replica_id):
                    names.add(before.deployment)
            case PutEntry(entry):
                entries[entry.name] = entry
            case DropEntry(name):
                entries.pop(name, None)
    intents = state.intents.changed(news)
    some = [key for key in revisions if key[0] in names]
    newest = {name: deployments[name].revision for name in names if name in deployments}
    keep = kept(some, newest, in_use(i for name in names for i in intents.of(name)))
    for key in some:
        if key not in keep:
            del revisions[key]
    return State(MappingProxyType(deployments), MappingProxyType(revisions), intents, MappingProxyType(entries))


def in_use(intents: Iterable[Intent]) -> set[tuple[str, int]]:
    """The revisions that replicas exist of."""
    return {(i.deployment, i.revision) for i in intents}


def kept(
    revisions: Iterable[tuple[str, int]], newest: Mapping[str, int], used: Collection[tuple[str, int]]
) -> set[tuple[str, int]]:
    """Those of `revisions` to keep. newest: of each deployment that exists. used: see `in_use`."""
    by_name: dict[str, list[int]] = {}
    for name, number in revisions:
        by_name.setdefault(name, []).append(number)
    keep: set[tuple[str, int]] = set()
    for name, numbers in by_name.items():
        recent = sorted((n for n in numbers if n <= newest.get(name, 0)), reverse=True)[:HISTORY]
        keep |= {(name, n) for n in numbers if n in recent or (name, n) in used}
    return keep


def revision_of(d: Deployment) -> Revision:
    """The newest revision of a deployment."""
    return Revision(d.name, d.revision, d.model, d.resources, d.revised_unix_s, d.repeats, d.proven)


def next_revision(state: State, name: str) -> int:
    """A number that no living replica of `name` has, also not one of a deployment of that name that was deleted."""
    return 1 + max((number for owner, number in state.revisions if owner == name), default=0)


def desired_on(state: State, node_id: NodeId, drain_s: float) -> tuple[ReplicaSpec, ...]:
    """Everything that `node_id` should run, in a fixed order."""
    return tuple(
        ReplicaSpec(
            replica_id=i.replica_id,
            deployment=i.deployment,
            revision=i.revision,
            model=state.revisions[i.deployment, i.revision].model,
            resources=i.resources,
            gpu_indices=i.gpu_indices,
            drain_s=drain_s,
            adapters=d.adapters if (d := state.deployments.get(i.deployment)) else (),
            proven=state.revisions[i.deployment, i.revision].proven,
            on_trial=state.intents.oldest(i.deployment) < i.revision,
        )
        for i in state.intents.on(node_id)
        if i.goal is Goal.RUN
    )


def renewed(d: Deployment, revision: int, now: int, repeats: int = 0) -> Deployment:
    """`d` with a newest revision, made `now` (Unix time), that has yet to prove itself."""
    return replace(d, revision=revision, revised_unix_s=now, repeats=repeats, proven=False)


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node as the head sees it now. Times are the head's own clock.

    info: from its last hello; only the id is right for a node not seen since the head's start.
    live: it has a session and its lease runs, so that it may be given replicas. lost: its lease ran out.
    heard_at: when it last said anything (or the head's start). reported_at: its last report; 0: none since that start.
    statuses: of that report.
    """

    info: NodeInfo
    live: bool
    lost: bool
    heard_at: float
    reported_at: float
    statuses: Mapping[ReplicaId, ReplicaStatus] = field(default_factory=lambda: MappingProxyType({}))


Nodes = Mapping[NodeId, NodeView]


def status_of(intent: Intent, nodes: Nodes) -> ReplicaStatus | None:
    """What its node last said of a replica, with the phase as the head sees it; None: not known yet.

    LOST when the node's lease ran out; PENDING when the node has reported and does not know the replica yet; FAILED
    when it was given up, whatever became of the node.
    """
    if intent.goal is Goal.GIVEN_UP:
        return unsaid(intent, Phase.FAILED, intent.reason)
    node = nodes.get(intent.node_id)
    if node is None:
        return None
    said = node.statuses.get(intent.replica_id)
    if node.lost:
        said = said or unsaid(intent, Phase.LOST)
        return replace(said, phase=Phase.LOST, reason=f"node {intent.node_id} does not answer")
    if said is None and node.reported_at:
        return unsaid(intent, Phase.PENDING)
    return said


def unsaid(intent: Intent, phase: Phase = Phase.PENDING, reason: str = "") -> ReplicaStatus:
    """The status of a replica of which its node has said nothing."""
    return ReplicaStatus(
        intent.replica_id, intent.deployment, intent.revision, phase, reason, gpu_indices=intent.gpu_indices
    )


def phase_of(intent: Intent, nodes: Nodes) -> Phase | None:
    """The phase of `status_of`; None: not known yet."""
    if intent.goal is Goal.GIVEN_UP:
        return Phase.FAILED
    node = nodes.get(intent.node_id)
    if node is None:
        return None
    if node.lost:
        return Phase.LOST
    said = node.statuses.get(intent.replica_id)
    return said.phase if said else Phase.PENDING if node.reported_at else None


@dataclass(frozen=True, slots=True)
class Unplaced:
    """Why a deployment cannot have all its replicas now. `stuck`: every node answers, and none could hold another one
    even after all that is stopping has gone; so waiting will not help, but a new node might."""

    reason: str
    stuck: bool = False
