"""The plan, against a simulated cluster that does what it is told, dies and comes back."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.core.phase import Phase
from headrace.core.plan import PROVEN_S, Plan, plan, surge
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
    fails: Callable[[ReplicaStatus], bool] = lambda status: False
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
                    n.replicas[r] = self.advance(s, wanted=r in told)
                if n.seen != n.replicas:
                    n.seen = dict(n.replicas)
                n.heard_at = n.reported_at = self.now
        self.plan()

    def advance(self, s: ReplicaStatus, wanted: bool) -> ReplicaStatus:
        if not wanted:
            return replace(s, phase=Phase.STOPPED if s.phase is Phase.DRAINING else Phase.DRAINING)
        if s.phase in (Phase.PENDING, Phase.LOADING) and self.fails(s):
            return replace(s, phase=Phase.FAILED, reason="broken")
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
        return [i for i in self.state.intents.values() if i.deployment == name and i.goal is Goal.RUN]

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


def test_creates_and_spreads_and_scales_both_ways() -> None:
    sim = cluster(4, 4)
    sim.deploy(replicas=4)
    sim.settle()
    assert [n for _, n in sim.ready()] == ["1", "1", "2", "2"]
    sim.scale("d", 6)
    sim.settle()
    assert len(sim.ready()) == 6
    oldest = min(sim.running(), key=lambda i: (i.created, i.replica_id)).replica_id
    sim.scale("d", 1)
    sim.settle()
    assert [i.replica_id for i in sim.state.intents.values()] != []
    assert len(sim.ready()) == len(sim.state.intents) == 1
    assert sim.running()[0].created == 1000.0 + 1.0 or sim.running()[0].replica_id == oldest


def test_what_is_not_ready_goes_before_what_is() -> None:
    sim = cluster(8)
    sim.deploy(replicas=1)
    sim.settle()
    first = sim.running()[0].replica_id
    sim.scale("d", 3)
    sim.step()
    sim.scale("d", 1)
    sim.settle()
    assert [i.replica_id for i in sim.running()] == [first]


def test_a_deleted_deployment_is_drained_and_forgotten() -> None:
    sim = cluster(4)
    sim.deploy(replicas=2)
    sim.settle()
    sim.delete("d")
    sim.plan()
    assert {i.goal for i in sim.state.intents.values()} == {Goal.STOP}
    assert sim.state.revisions, "kept while replicas exist"
    sim.settle()
    assert not sim.state.intents
    assert not sim.state.revisions
    assert not sim.nodes[NodeId("1")].replicas


def test_a_stopping_replica_holds_its_place_until_its_node_says_that_it_is_gone() -> None:
    sim = cluster(1)
    sim.deploy("a")
    sim.settle()
    sim.nodes[NodeId("1")].connected = False
    sim.delete("a")
    sim.deploy("b")
    sim.plan()
    sim.step()
    assert sim.running("b") == []
    assert "b" in sim.reasons
    assert not sim.stuck
    sim.nodes[NodeId("1")].connected = True
    sim.settle()
    assert len(sim.ready("b")) == 1


def test_says_why_when_nothing_fits() -> None:
    sim = cluster(4)
    sim.deploy(replicas=1, need=Resources(1.0, 0, 1))
    sim.plan()
    assert sim.reasons == {"d": "needs 1 GPU; node 1 has 0"}
    assert sim.stuck == {"d"}
    sim.nodes.clear()
    sim.plan()
    assert not sim.stuck  # a scheduler may be on its way
    assert sim.reasons == {"d": "no scheduler has joined; start one with: headrace scheduler"}


def test_the_old_revision_serves_until_the_new_one_is_ready() -> None:
    sim = cluster(8)
    sim.deploy(replicas=2)
    sim.settle()
    sim.deploy(replicas=2, tag="2")
    for _ in range(30):
        sim.step()
        assert len(sim.ready()) >= 2
        assert len(sim.running()) <= 2 + surge(2)
    assert [r for r, _ in sim.ready()] == [2, 2]
    assert len(sim.state.intents) == 2


def test_a_new_revision_that_fails_leaves_the_old_one_serving() -> None:
    sim = cluster(8)
    sim.deploy(replicas=3)
    sim.settle()
    sim.fails = lambda s: s.revision == 2
    sim.deploy(replicas=3, tag="broken")
    for _ in range(30):
        sim.step()
        assert [r for r, _ in sim.ready()] == [1, 1, 1]
    assert sum(i.revision == 2 for i in sim.running()) == surge(3), "failed ones are kept, and not made again"
    sim.fails = lambda s: False
    sim.deploy(replicas=3, tag="good")
    sim.settle()
    assert [r for r, _ in sim.ready()] == [3, 3, 3]
    assert len(sim.state.intents) == 3


def test_without_room_for_both_the_old_one_gives_way_one_at_a_time() -> None:
    sim = cluster(2)
    sim.deploy(replicas=2)
    sim.settle()
    sim.deploy(replicas=2, tag="2")
    for _ in range(40):
        sim.step()
        assert len(sim.ready()) >= 1
    assert [r for r, _ in sim.ready()] == [2, 2]


def test_without_room_a_failing_revision_takes_one_old_replica_and_no_more() -> None:
    sim = cluster(2)
    sim.deploy(replicas=2)
    sim.settle()
    sim.fails = lambda s: s.revision == 2
    sim.deploy(replicas=2, tag="broken")
    for _ in range(40):
        sim.step()
    assert [r for r, _ in sim.ready()] == [1]


def test_a_bigger_new_revision_displaces_as_many_as_it_needs() -> None:
    sim = cluster(2)
    sim.deploy(replicas=2)
    sim.settle()
    sim.deploy(replicas=1, need=Resources(2.0))
    sim.settle()
    assert [r for r, _ in sim.ready()] == [2]


def test_a_revision_that_can_fit_nowhere_displaces_nothing() -> None:
    sim = cluster(2)
    sim.deploy(replicas=2)
    sim.settle()
    sim.deploy(replicas=2, need=Resources(3.0))
    sim.settle()
    assert [r for r, _ in sim.ready()] == [1, 1]
    assert sim.reasons == {"d": "needs 3 CPUs; node 1 has 0 free of 2"}


def test_failed_replicas_are_kept_and_not_replaced() -> None:
    sim = cluster(8)
    sim.fails = lambda s: True
    sim.deploy(replicas=2)
    for _ in range(20):
        sim.step()
    assert len(sim.state.intents) == 2


def cut(sim: Sim, node_id: str, seconds: int) -> None:
    sim.nodes[NodeId(node_id)].connected = False
    for _ in range(seconds):
        sim.step()


def test_a_short_cut_changes_nothing() -> None:
    sim = cluster(4, 4)
    sim.deploy(replicas=2)
    sim.settle()
    before = sim.state
    cut(sim, "1", 9)
    assert sim.state == before


def test_a_lost_replica_is_made_up_for_and_the_original_stays_when_it_returns() -> None:
    sim = cluster(4, 4)
    sim.deploy(replicas=2)
    sim.settle()
    before = set(sim.state.intents)
    cut(sim, "1", 14)
    assert [n for _, n in sim.ready()] == ["2", "2"]
    assert before < set(sim.state.intents), "the lost one is not forgotten"
    sim.nodes[NodeId("1")].connected = True
    sim.settle()
    assert set(sim.state.intents) == before
    assert [n for _, n in sim.ready()] == ["1", "2"]


def test_a_node_that_returns_empty_does_not_get_its_replicas_back() -> None:
    sim = cluster(4, 4)
    sim.deploy(replicas=1)
    sim.settle()
    cut(sim, "1", 15)
    sim.nodes[NodeId("1")].replicas.clear()
    sim.nodes[NodeId("1")].connected = True
    sim.settle()
    assert [n for _, n in sim.ready()] == ["2"]
    assert len(sim.state.intents) == 1


def test_nodes_that_never_return_are_forgotten_at_last() -> None:
    sim = cluster(4, 4)
    sim.deploy(replicas=1)
    sim.deploy("e", replicas=1)
    sim.settle()
    cut(sim, "1", 15)
    assert len(sim.state.intents) == 4
    sim.delete("e")
    sim.now += 4000
    sim.nodes[NodeId("2")].heard_at = sim.now
    sim.settle()
    assert {i.node_id for i in sim.state.intents.values()} == {"2"}
    assert len(sim.ready()) == 1


def test_says_that_a_node_does_not_answer() -> None:
    sim = cluster(4)
    sim.deploy(replicas=1)
    sim.settle()
    cut(sim, "1", 15)
    assert sim.reasons == {"d": "node 1 does not answer; start its scheduler again"}


def test_nothing_is_stopped_while_a_started_head_has_not_heard_of_all() -> None:
    sim = cluster(4, 4)
    sim.deploy(replicas=2)
    sim.settle()
    sim.scale("d", 1)
    for n in sim.nodes.values():  # a new head: it has the state, and knows nothing of the nodes
        n.connected, n.reported_at, n.seen = False, 0.0, {}
        n.heard_at = sim.now
    before = sim.state
    sim.step()
    assert sim.state == before
    for n in sim.nodes.values():
        n.connected = True
    sim.settle()
    assert len(sim.running()) == 1


def test_remembers_where_a_ready_replica_listens() -> None:
    sim = cluster(4)
    sim.deploy(replicas=1)
    sim.settle()
    intent = sim.running()[0]
    assert intent.address == f"h:{intent.replica_id}"


def test_gpus_of_a_replica_that_was_forgotten_but_still_runs_are_not_given_out() -> None:
    sim = cluster(4, gpus=1)
    stray = ReplicaStatus(ReplicaId("x-1-0"), "x", 1, Phase.READY, gpu_indices=(0,))
    sim.nodes[NodeId("1")].seen = {stray.replica_id: stray}
    sim.deploy(replicas=1, need=Resources(1.0, 0, 1))
    sim.plan()
    assert sim.state.intents == {}
    sim.nodes[NodeId("1")].seen = {stray.replica_id: replace(stray, phase=Phase.STOPPED)}
    sim.plan()
    assert [i.gpu_indices for i in sim.state.intents.values()] == [(0,)]


def test_a_name_used_again_never_gets_a_living_revision_number() -> None:
    sim = cluster(4)
    sim.deploy()
    sim.settle()
    sim.nodes[NodeId("1")].connected = False
    sim.delete("d")
    sim.plan()
    sim.deploy(tag="other")
    assert sim.state.deployments["d"].revision == 2
    sim.nodes[NodeId("1")].connected = True
    sim.settle()
    assert [r for r, _ in sim.ready()] == [2]


actions = st.lists(
    st.one_of(
        st.tuples(st.just("deploy"), st.sampled_from("de"), st.integers(0, 3)),
        st.tuples(st.just("scale"), st.sampled_from("de"), st.integers(0, 3)),
        st.tuples(st.just("delete"), st.sampled_from("de"), st.just(0)),
        st.tuples(st.just("cut"), st.sampled_from("123"), st.integers(1, 15)),
        st.tuples(st.just("die"), st.sampled_from("123"), st.integers(1, 15)),
        st.tuples(st.just("heal"), st.sampled_from("123"), st.integers(0, 6)),
        st.tuples(st.just("wait"), st.just(""), st.integers(1, 8)),
        st.tuples(st.just("restart head"), st.just(""), st.integers(0, 3)),
    ),
    max_size=14,
)


@settings(max_examples=60, deadline=None)
@given(actions, st.integers(0, 2**32), st.booleans(), st.booleans())
def test_converges_whatever_happened_before(
    script: list[tuple[str, str, int]], seed: int, breaks: bool, full_disk: bool
) -> None:
    """Idempotence and commitments are checked at every plan; here that in the end what runs is what is wanted."""
    sim = cluster(8, 8, 8, gpus=2)
    if breaks:
        sim.fails = lambda s: random.Random(f"{seed}{s.replica_id}").random() < 0.2
    rng = random.Random(seed)
    if full_disk:
        sim.commit_fails = lambda: rng.random() < 0.3
    for verb, who, n in script:
        match verb:
            case "deploy":
                sim.deploy(who, n, Resources(1.0, 0, n % 2), tag=str(n))
            case "scale" if who in sim.state.deployments:
                sim.scale(who, n)
            case "delete":
                sim.delete(who)
            case "cut" | "die":
                node = sim.nodes[NodeId(who)]
                node.connected = False
                if verb == "die":
                    node.replicas.clear()
            case "heal":
                sim.nodes[NodeId(who)].connected = True
            case "restart head":
                for node in sim.nodes.values():
                    node.reported_at, node.heard_at, node.seen = 0.0, sim.now, {}
        for _ in range(n if verb not in ("deploy", "scale") else 1):
            sim.step()
    sim.fails, sim.commit_fails = lambda s: False, lambda: False
    for node in sim.nodes.values():
        node.connected = True
    sim.settle(80)

    assert all(i.goal is Goal.RUN for i in sim.state.intents.values()), "all that was to stop has gone"
    for k, node in sim.nodes.items():
        told = {s.replica_id for s in desired_on(sim.state, k, 0)}
        assert {r for r, s in node.replicas.items() if s.phase is not Phase.STOPPED} == told
    for name, d in sim.state.deployments.items():
        current = [i for i in sim.running(name) if i.revision == d.revision]
        failed = [i for i in current if sim.nodes[i.node_id].replicas[i.replica_id].phase is Phase.FAILED]
        old = [i for i in sim.running(name) if i.revision != d.revision]
        assert len(current) + len(old) >= d.replicas
        if not failed:
            assert not old
            assert len(current) == d.replicas
            spread = [sum(i.node_id == k for i in current) for k in sim.nodes]
            assert len(sim.ready(name)) == d.replicas, spread
    before = sim.state
    for _ in range(5):
        sim.step()
    assert sim.state == before, "a settled cluster stays as it is"


def test_what_fits_once_another_has_gone_waits_and_is_not_stuck() -> None:
    sim = cluster(1)
    sim.deploy("a")
    sim.settle()
    sim.delete("a")
    sim.deploy("b")
    sim.plan()
    assert sim.reasons == {"b": "waits for another replica to stop"}
    assert not sim.stuck
    sim.settle()
    assert len(sim.ready("b")) == 1


def restarted(sim: Sim, revision: int, times: int = 1) -> None:
    """READY replicas of a revision crash and are READY again."""
    for n in sim.nodes.values():
        for k, s in n.replicas.items():
            if s.revision == revision and s.phase is Phase.READY:
                n.replicas[k] = replace(s, restarts=s.restarts + times, started_at=sim.now)
        n.seen = dict(n.replicas)


def test_a_revision_that_crashes_at_work_does_not_use_up_the_old_one() -> None:
    sim = cluster(8)
    sim.deploy(replicas=4)
    sim.settle()
    sim.deploy(replicas=4, tag="2")
    for _ in range(int(PROVEN_S * 3)):
        restarted(sim, 2)  # every second, so that none is ever proven
        sim.step()
    assert [r for r, _ in sim.ready()].count(1) >= 3, "none went but the one for the first that was READY"


def test_a_replica_that_was_started_again_is_trusted_once_it_has_run_for_a_while() -> None:
    sim = cluster(8)
    sim.deploy(replicas=2)
    sim.settle()
    sim.deploy(replicas=2, tag="2")
    while not any(r == 2 for r, _ in sim.ready()):
        sim.step()
    restarted(sim, 2)
    crashed_at = sim.now
    while any(r == 1 for r, _ in sim.ready()):
        sim.step()
        assert sim.now < crashed_at + PROVEN_S + 30
        if sim.now < crashed_at + PROVEN_S:
            assert any(r == 1 for r, _ in sim.ready())
    assert sim.now >= crashed_at + PROVEN_S
    assert [r for r, _ in sim.ready()] == [2, 2]
