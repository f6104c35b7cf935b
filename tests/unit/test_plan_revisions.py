"""How a plan changes from one revision to the next."""

from __future__ import annotations

from dataclasses import replace

from unit.plan_cluster import Sim, cluster

from headrace.core.phase import Phase
from headrace.core.plan import PROVEN_S, surge
from headrace.core.types import NodeId, Resources


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
    assert sim.reasons == {"d": "needs 3 CPUs; node 1 has 0 free of 2 (held by d: 2 CPUs)"}


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
