"""A simulated cluster that does what a plan says, dies and comes back."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from headrace.core.phase import Phase
from headrace.core.plan import Plan, plan
from headrace.core.routes import Standing, standing
from headrace.core.state import (
    DropDeployment,
    Goal,
    Intent,
    NodeView,
    PutDeployment,
    State,
    apply,
    desired_on,
    next_revision,
)
from headrace.core.touched import nodes_to_tell
from headrace.core.types import (
    Adapter,
    Deployment,
    Gpu,
    ModelSpec,
    NodeId,
    NodeInfo,
    ReplicaId,
    ReplicaSpec,
    ReplicaStatus,
    Resources,
)

LEASE_S = 10.0


@dataclass
class SimNode:
    """A machine: converges on what it was told, one phase a step, unless it is dead."""

    info: NodeInfo
    alive: bool = True
    connected: bool = True
    replicas: dict[ReplicaId, ReplicaStatus] = field(default_factory=dict)
    heard_at: float = 0.0
    reported_at: float = 0.0
    seen: dict[ReplicaId, ReplicaStatus] = field(default_factory=dict)


@dataclass
class Sim:
    """A head's state with its nodes, and a clock."""

    nodes: dict[NodeId, SimNode]
    state: State = field(default_factory=State)
    now: float = 1000.0
    fails: Callable[[ReplicaStatus], bool] = lambda status: False  # for good
    stumbles: Callable[[ReplicaStatus, NodeId], bool] = lambda status, node_id: False  # and is tried again
    counter: itertools.count[int] = field(default_factory=itertools.count)
    reasons: dict[str, str] = field(default_factory=dict)
    stuck: set[str] = field(default_factory=set)
    last: Plan | None = None
    stand: Standing | None = None
    told_of: State = field(default_factory=State)
    told: dict[NodeId, tuple[ReplicaSpec, ...]] = field(default_factory=dict)
    commit_fails: Callable[[], bool] = lambda: False

    def deploy(self, name: str = "d", replicas: int = 1, need: Resources | None = None, tag: str = "") -> None:
        need = need or Resources(1.0)
        adapters = (Adapter("x", f"/x{tag}"),) if replicas % 2 else ()
        d = Deployment(name, next_revision(self.state, name), ModelSpec(f"/m{tag}", engine="openvino"), need, replicas,
                       replicas, replicas, 0, adapters)  # fmt: skip
        self.state = apply(self.state, [PutDeployment(d)])

    def scale(self, name: str, replicas: int) -> None:
        d = self.state.deployments[name]
        self.state = apply(self.state, [PutDeployment(replace(d, replicas=replicas))])

    def delete(self, name: str) -> None:
        self.state = apply(self.state, [DropDeployment(name)])

    def views(self) -> dict[NodeId, NodeView]:
        return {
            k: NodeView(n.info, n.alive and n.connected, self.lost(n), n.heard_at, n.reported_at, n.seen)
            for k, n in self.nodes.items()
        }

    def lost(self, n: SimNode) -> bool:
        return self.now - n.heard_at > LEASE_S

    def plan(self) -> None:
        def new_id(name: str, revision: int) -> ReplicaId:
            return ReplicaId(f"{name}-{revision}-{next(self.counter):06x}")

        views, first = self.views(), next(self.counter)
        self.counter = itertools.count(first)
        afresh = plan(self.state, views, self.now, new_id)
        self.counter = itertools.count(first)
        made = plan(self.state, views, self.now, new_id, last=self.last)
        assert (made.changes, made.reasons, made.again_in_s) == (afresh.changes, afresh.reasons, afresh.again_in_s)
        self.last = made
        if self.commit_fails():
            return
        self.state = apply(self.state, made.changes)
        self.reasons = {name: why.reason for name, why in made.reasons.items()}
        self.stuck = {name for name, why in made.reasons.items() if why.stuck}
        self.check_commitments()
        again = plan(self.state, views, self.now, new_id, last=made)
        self.check_what_is_carried_over(views, made)
        assert again.changes == (), "not idempotent"
        assert again.reasons == made.reasons

    def check_what_is_carried_over(self, views: dict[NodeId, NodeView], made: Plan) -> None:
        """What is worked out for what differs alone is what would be worked out for all."""
        fresh = standing(self.state, views, made.reasons)
        self.stand = standing(self.state, views, made.reasons, before=self.stand)
        assert (self.stand.statuses, self.stand.routes) == (fresh.statuses, fresh.routes)
        for node_id in nodes_to_tell(self.told_of, self.state):
            self.told[node_id] = desired_on(self.state, node_id, 30.0)
        self.told_of = self.state
        assert {k: s for k, s in self.told.items() if s} == {
            k: s for k in self.nodes if (s := desired_on(self.state, k, 30.0))
        }

    def check_commitments(self) -> None:
        for k, n in self.nodes.items():
            mine = [i for i in self.state.intents.values() if i.node_id == k]
            assert math.fsum(i.resources.cpus for i in mine) <= n.info.resources.cpus + 1e-6
            gpus = [g for i in mine for g in i.gpu_indices]
            assert len(gpus) == len(set(gpus))
            assert len(gpus) <= n.info.resources.gpus

    def step(self) -> None:
        """A second passes: nodes hear what is desired, move on, and report."""
        self.now += 1.0
        for k, n in self.nodes.items():
            if not n.alive:
                continue
            if n.connected:
                told = {s.replica_id: s for s in desired_on(self.state, k, 30.0)}
                n.replicas = {r: s for r, s in n.replicas.items() if r in told or s.phase is not Phase.STOPPED}
                for r in told.keys() - n.replicas.keys():
                    spec = told[r]
                    n.replicas[r] = ReplicaStatus(r, spec.deployment, spec.revision, Phase.PENDING)
                for r, s in n.replicas.items():
                    n.replicas[r] = self.advance(s, k, wanted=r in told)
                if n.seen != n.replicas:
                    n.seen = dict(n.replicas)
                n.heard_at = n.reported_at = self.now
        self.plan()

    def advance(self, s: ReplicaStatus, node_id: NodeId, wanted: bool) -> ReplicaStatus:
        if not wanted and s.phase in (Phase.PENDING, Phase.FAILED):
            return replace(s, phase=Phase.STOPPED)
        if not wanted:
            return replace(s, phase=Phase.STOPPED if s.phase is Phase.DRAINING else Phase.DRAINING)
        if s.phase in (Phase.PENDING, Phase.LOADING) and self.fails(s):
            return replace(s, phase=Phase.FAILED, reason="broken")
        if s.phase is Phase.LOADING and self.stumbles(s, node_id):
            return replace(s, phase=Phase.PENDING, reason="stumbled", failures=s.failures + 1)
        following = {Phase.PENDING: Phase.LOADING, Phase.LOADING: Phase.READY}
        return replace(s, phase=following.get(s.phase, s.phase), address=f"h:{s.replica_id}")

    def settle(self, steps: int = 60) -> None:
        for _ in range(steps):
            before = self.state
            self.step()
            phases = {s.phase for n in self.nodes.values() for s in n.seen.values()}
            if self.state == before and phases <= {Phase.READY, Phase.FAILED}:
                return

    def running(self, name: str = "d") -> list[Intent]:
        """Those that are to run, also those that were given up."""
        return [i for i in self.state.intents.values() if i.deployment == name and i.goal is not Goal.STOP]

    def ready(self, name: str = "d") -> list[tuple[int, NodeId]]:
        """(revision, node) of the replicas that run and are READY on nodes that are not lost."""
        return sorted(
            (i.revision, i.node_id)
            for i in self.running(name)
            if not self.lost(self.nodes[i.node_id])
            and i.replica_id in self.nodes[i.node_id].replicas
            and self.nodes[i.node_id].replicas[i.replica_id].phase is Phase.READY
        )


def cluster(*cpus: float, gpus: int = 0) -> Sim:
    nodes: dict[NodeId, SimNode] = {}
    for i, c in enumerate(cpus, 1):
        described = tuple(Gpu(g, "", 80, 80) for g in range(gpus))
        info = NodeInfo(NodeId(str(i)), 1, f"h{i}", "0", Resources(c, 2**40, gpus), described, ("openvino",))
        nodes[info.node_id] = SimNode(info, heard_at=1000.0, reported_at=1000.0)
    return Sim(nodes)
