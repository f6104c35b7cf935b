"""The plan, against a simulated cluster that does what it is told, dies and comes back."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from unit.plan_cluster import Sim, cluster

from headrace.core.phase import Phase
from headrace.core.state import Goal, desired_on, status_of, unsaid
from headrace.core.types import (
    NodeId,
    ReplicaId,
    ReplicaStatus,
    Resources,
)


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


def test_failed_replicas_are_kept_and_not_replaced() -> None:
    sim = cluster(8)
    sim.fails = lambda s: True
    sim.deploy(replicas=2)
    for _ in range(20):
        sim.step()
    assert len(sim.state.intents) == 2
    assert {i.goal for i in sim.state.intents.values()} == {Goal.GIVEN_UP}


def test_what_was_given_up_holds_nothing_and_others_get_its_room() -> None:
    sim = cluster(2, gpus=1)
    sim.fails = lambda s: s.deployment in "ab"
    sim.deploy("a", need=Resources(1.0, 2**40, 1))
    sim.deploy("b", need=Resources(1.0))
    sim.settle()
    sim.deploy("good", need=Resources(2.0, 2**40, 1))
    sim.settle()
    assert len(sim.ready("good")) == 1
    (kept,) = sim.running("a")
    assert kept.reason == "broken"
    assert status_of(kept, sim.views()) == unsaid(kept, Phase.FAILED, "broken")
    sim.nodes[NodeId("1")].connected = False  # a head that does not hear of its node still knows
    sim.step()
    assert status_of(kept, {}) == unsaid(kept, Phase.FAILED, "broken")


def test_what_was_given_up_needs_room_to_be_tried_again_by_another_scheduler() -> None:
    sim = cluster(1)
    sim.fails = lambda s: s.deployment == "a"
    sim.deploy("a")
    sim.settle()
    sim.deploy("b")
    sim.settle()
    sim.fails = lambda s: False
    node = sim.nodes[NodeId("1")]
    node.info = replace(node.info, incarnation=2)
    sim.settle()
    assert (sim.ready("a"), len(sim.ready("b"))) == ([], 1)
    assert sim.reasons == {"a": "needs 1 CPU; node 1 has 0 free of 1 (held by b: 1 CPU)"}
    sim.delete("b")
    sim.settle()
    assert len(sim.ready("a")) == 1


def test_one_that_was_given_up_before_its_revision_worked_elsewhere_is_tried_again_once_a_minute() -> None:
    sim = cluster(1, 1)
    sim.fails = lambda s: s.replica_id in sim.nodes[NodeId("1")].replicas
    sim.deploy(replicas=2)
    sim.settle()
    assert sim.state.deployments["d"].proven
    assert [n for _, n in sim.ready()] == ["2"]
    tried = {i.replica_id for i in sim.running()}
    for _ in range(50):
        sim.step()
    assert {i.replica_id for i in sim.running()} == tried
    for _ in range(15):
        sim.step()
    assert len({i.replica_id for i in sim.running()} - tried) == 1
    sim.fails = lambda s: False
    for _ in range(65):
        sim.step()
    assert [n for _, n in sim.ready()] == ["1", "2"]


def test_a_revision_proves_itself_by_serving_alone() -> None:
    sim = cluster(4)
    sim.deploy(replicas=2)
    sim.step()
    assert not sim.state.deployments["d"].proven
    sim.settle()
    assert sim.state.deployments["d"].proven
    sim.deploy(replicas=2, tag="new")
    assert not sim.state.deployments["d"].proven
    while not any(r == 2 for r, _ in sim.ready()):
        sim.step()
    trials = [s for s in desired_on(sim.state, NodeId("1"), 0) if s.revision == 2]
    assert all(s.on_trial and not s.proven for s in trials)
    sim.settle()
    assert all(s.proven and not s.on_trial for s in desired_on(sim.state, NodeId("1"), 0))


def test_one_that_keeps_failing_is_made_up_for_elsewhere_and_goes_when_the_other_works() -> None:
    sim = cluster(4, 4)
    sim.deploy(replicas=1)
    sim.settle()
    sim.stumbles = lambda s, node_id: node_id == "1"
    node = sim.nodes[NodeId("1")]
    node.replicas = {r: replace(s, phase=Phase.LOADING, failures=1) for r, s in node.replicas.items()}
    sim.settle(30)
    assert [n for _, n in sim.ready()] == ["2"]
    assert len(sim.state.intents) == 1


def test_what_fails_everywhere_is_tried_on_no_more_nodes_than_twice_what_is_wanted() -> None:
    sim = cluster(4, 4, 4, 4)
    sim.deploy(replicas=1)
    sim.stumbles = lambda s, node_id: True
    for _ in range(60):
        sim.step()
    nodes = [i.node_id for i in sim.running()]
    assert len(nodes) == len(set(nodes)) == 2
    sim.stumbles = lambda s, node_id: False
    sim.settle()
    assert len(sim.ready()) == len(sim.state.intents) == 1


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
        sim.stumbles = lambda s, node_id: random.Random(f"{seed}{s.replica_id}{node_id}").random() < 0.3
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
    sim.fails, sim.stumbles, sim.commit_fails = lambda s: False, lambda s, n: False, lambda: False
    for node in sim.nodes.values():
        node.connected = True
    sim.settle(80)

    assert all(i.goal is not Goal.STOP for i in sim.state.intents.values()), "all that was to stop has gone"
    for k, node in sim.nodes.items():
        told = {s.replica_id for s in desired_on(sim.state, k, 0)}
        assert {r for r, s in node.replicas.items() if s.phase is not Phase.STOPPED} == told
    for name, d in sim.state.deployments.items():
        current = [i for i in sim.running(name) if i.revision == d.revision]
        failed = [i for i in current if i.goal is Goal.GIVEN_UP]
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
