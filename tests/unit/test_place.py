"""Placement: never more than there is, the same whatever the order, spread and then packed, with a reason in words."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.place import Candidate, Choice, Held, NoPlace, Placement, as_if_empty, choose, fits, usable_gpus
from headrace.core.types import Gpu, NodeId, NodeInfo, Resources

GIB = 2**30


def node(
    name: str = "1", cpus: float = 8, gpus: int = 0, memory: int = 64 * GIB, engines: tuple[str, ...] = ("openvino",)
) -> NodeInfo:
    described = tuple(Gpu(i, "H", 80 * GIB, 80 * GIB) for i in range(gpus))
    return NodeInfo(NodeId(name), 1, f"host-{name}", "0", Resources(cpus, memory, gpus), described, engines)


def reason(need: Resources, *nodes: NodeInfo, engine: str = "auto") -> str:
    outcome = choose("d", need, engine, [Candidate(n) for n in nodes])
    assert isinstance(outcome, NoPlace), outcome
    return outcome.reason


needs = st.builds(
    Resources,
    cpus=st.sampled_from([0.0, 0.1, 0.5, 1.0, 3.0]),
    memory_bytes=st.sampled_from([0, GIB, 5 * GIB]),
    gpus=st.integers(0, 3),
    gpu_memory_bytes=st.just(0),
)
infos = st.lists(
    st.builds(
        node,
        name=st.sampled_from("abcde"),
        cpus=st.sampled_from([0.3, 1.0, 4.0]),
        gpus=st.integers(0, 4),
        memory=st.sampled_from([GIB, 16 * GIB]),
        engines=st.sampled_from([("openvino",), ("vllm", "openvino")]),
    ),
    max_size=5,
    unique_by=lambda n: n.node_id,
)


@given(infos, st.lists(st.tuples(st.sampled_from(["x", "y"]), needs), max_size=25), st.randoms(use_true_random=False))
def test_never_over_commits_and_does_not_look_at_the_order(
    nodes: list[NodeInfo], asked: list[tuple[str, Resources]], rng: random.Random
) -> None:
    held: dict[NodeId, list[Held]] = {n.node_id: [] for n in nodes}
    for deployment, need in asked:
        view = [Candidate(n, tuple(held[n.node_id])) for n in nodes]
        mixed = [Candidate(n.info, tuple(rng.sample(n.held, len(n.held)))) for n in rng.sample(view, len(view))]
        where = choose(deployment, need, "auto", view)
        assert choose(deployment, need, "auto", mixed) == where
        if isinstance(where, Placement):
            held[where.node_id].append(Held(deployment, where.resources, where.gpu_indices))
            assert len(where.gpu_indices) == where.resources.gpus
            assert where.resources.gpus in (need.gpus, need.gpus or 1)
        else:
            assert where.reason
            assert not where.reason.startswith("needs ;"), "something is missing, and is named"
        assert fits(need, "auto", view) == isinstance(where, Placement)
    for n in nodes:
        mine = held[n.node_id]
        assert math.fsum(h.resources.cpus for h in mine) <= n.resources.cpus + 1e-6
        assert sum(h.resources.memory_bytes for h in mine) <= n.resources.memory_bytes
        given_out = [i for h in mine for i in h.gpu_indices]
        assert len(given_out) == len(set(given_out))
        assert set(given_out) <= {g.index for g in usable_gpus(n)}


@given(infos, needs, st.sampled_from(["auto", "vllm", "openvino"]), st.lists(st.sampled_from("xy"), max_size=9))
def test_one_after_another_goes_where_each_alone_would(
    nodes: list[NodeInfo], need: Resources, engine: str, there: list[str]
) -> None:
    held: dict[NodeId, list[Held]] = {n.node_id: [] for n in nodes}
    for n, name in zip(nodes * 9, there, strict=False):
        held[n.node_id].append(Held(name, Resources(0.1)))
    choice = Choice("x", need, engine, [Candidate(n, tuple(held[n.node_id])) for n in nodes])
    for _ in range(12):
        now = {n.node_id: Candidate(n, tuple(held[n.node_id])) for n in nodes}
        where = choice.next()
        assert where == choose("x", need, engine, now.values())
        if isinstance(where, NoPlace):
            break
        held[where.node_id].append(Held("x", where.resources, where.gpu_indices))
        choice.update(Candidate(now[where.node_id].info, tuple(held[where.node_id])))


@given(st.integers(1, 5), st.integers(1, 20))
def test_spreads_one_deployment_over_equal_nodes(nodes: int, replicas: int) -> None:
    infos = [node(str(i), cpus=100) for i in range(nodes)]
    held: dict[NodeId, list[Held]] = {n.node_id: [] for n in infos}
    for _ in range(replicas):
        where = choose("d", Resources(1.0), "auto", [Candidate(n, tuple(held[n.node_id])) for n in infos])
        assert isinstance(where, Placement)
        held[where.node_id].append(Held("d", Resources(1.0)))
    counts = [len(h) for h in held.values()]
    assert max(counts) - min(counts) <= 1


def test_packs_different_deployments_tightly_and_keeps_gpus_free() -> None:
    big, small, gpu = node("a", cpus=16), node("b", cpus=4), node("c", cpus=4, gpus=2)
    where = choose("d", Resources(2.0), "auto", [Candidate(big), Candidate(gpu), Candidate(small)])
    assert where == Placement(NodeId("b"), (), Resources(2.0))


def test_ten_tenths_of_a_cpu_fit_into_one() -> None:
    held: list[Held] = []
    for _ in range(10):
        where = choose("d", Resources(0.1), "auto", [Candidate(node(cpus=1), tuple(held))])
        assert isinstance(where, Placement)
        held.append(Held("d", Resources(0.1)))
    assert isinstance(choose("d", Resources(0.1), "auto", [Candidate(node(cpus=1), tuple(held))]), NoPlace)


def test_gpu_memory_takes_the_tightest_gpus_that_have_enough() -> None:
    gpus = (Gpu(0, "", 80 * GIB, 80 * GIB), Gpu(1, "", 80 * GIB, 10 * GIB), Gpu(2, "", 80 * GIB, 40 * GIB))
    info = NodeInfo(NodeId("1"), 1, "h", "0", Resources(8, GIB, 3), gpus, ("vllm",))
    for gpus_needed, indices in ((1, (2,)), (2, (0, 2))):
        need = Resources(1, 0, gpus_needed, 20 * GIB)
        assert choose("d", need, "vllm", [Candidate(info)]) == Placement(NodeId("1"), indices, need)
    three = reason(Resources(1, 0, 3, 20 * GIB), info, engine="vllm")
    assert three == "needs 3 GPUs with 20.0 GiB free; node 1 has 2 such"


def test_gpus_that_our_own_replicas_fill_count_as_empty() -> None:
    info = NodeInfo(NodeId("1"), 1, "h", "0", Resources(8, 0, 1), (Gpu(0, "", 80, 3),), ("vllm",))
    assert as_if_empty(info, [0]).gpus[0].memory_free_bytes == 80
    assert as_if_empty(info, []).gpus[0].memory_free_bytes == 3


def test_gpus_claimed_but_not_described_have_indices() -> None:
    info = NodeInfo(NodeId("1"), 1, "h", "0", Resources(8, 0, 3), (Gpu(1, "", 80, 80),), ("vllm",))
    assert [g.index for g in usable_gpus(info)] == [0, 1, 2]


def test_free_never_goes_below_zero() -> None:
    left = Candidate(node(cpus=1, gpus=1), (Held("d", Resources(4.0, 999 * GIB), (0,)),)).left
    assert (left.cpus, left.memory_bytes, left.gpus) == (0.0, 0, 0)


@pytest.mark.parametrize(
    ("need", "nodes", "said"),
    [
        (Resources(), [], "no scheduler has joined; start one with: headrace scheduler"),
        (Resources(0, 0, 1), [node()], "needs 1 GPU; node 1 has 0"),
        (Resources(0, 0, 2), [node("a"), node("b", gpus=1)], "needs 2 GPUs; node a has 0, node b has 1"),
        (
            Resources(0, 0, 1),
            [node(str(i)) for i in range(5)],
            "needs 1 GPU; node 0 has 0, node 1 has 0, node 2 has 0 and 2 more nodes have no room",
        ),
        (Resources(9), [node()], "needs 9 CPUs; node 1 has 8"),
        (Resources(9, 0, 1), [node()], "needs 1 GPU and 9 CPUs; node 1 has 0 GPUs and 8 CPUs"),
        (Resources(0, 99 * GIB), [node()], "needs 99.0 GiB of memory; node 1 has 64.0 GiB"),
        (Resources(9, 0, 1), [node("a", gpus=1), node("b", cpus=16)],
         "needs 9 CPUs and 1 GPU; node a has 8 CPUs, node b has 0 GPUs"),
        (Resources(9), [node("a"), node("b", cpus=16, engines=())], "needs 9 CPUs; node a has 8"),
    ],
)  # fmt: skip
def test_says_what_is_missing(need: Resources, nodes: list[NodeInfo], said: str) -> None:
    assert reason(need, *nodes) == said


def test_says_what_is_free_of_what_there_is() -> None:
    full = Candidate(node(gpus=1), (Held("x", Resources(6, 0, 1), (0,)),))
    outcome = choose("d", Resources(4, 0, 1), "auto", [full])
    assert outcome == NoPlace(
        "needs 1 GPU and 4 CPUs; node 1 has 0 free of 1 GPUs and 2 free of 8 CPUs (held by x: 1 GPU and 6 CPUs)"
    )


def test_says_who_holds_most_of_what_is_missing() -> None:
    held = [
        Held("a", Resources(1.0)),
        Held("b", Resources(2.0)),
        Held("a", Resources(1.5, GIB)),
        Held("c", Resources()),
    ]
    outcome = choose("d", Resources(4.0), "auto", [Candidate(node(cpus=5), tuple(held))])
    assert outcome == NoPlace("needs 4 CPUs; node 1 has 0.5 free of 5 (held by a: 2.5 CPUs, b: 2 CPUs)")
    many = tuple(Held(str(i), Resources(1.0)) for i in range(6))
    outcome = choose("d", Resources(1.0), "auto", [Candidate(node(cpus=6), many)])
    assert outcome == NoPlace("needs 1 CPU; node 1 has 0 free of 6 (held by 0: 1 CPU, 1: 1 CPU, 2: 1 CPU and 3 more)")


def test_an_engine_that_no_node_has_is_named() -> None:
    assert reason(Resources(), node(), engine="vllm") == "needs the engine vllm; node 1 has openvino"
    assert reason(Resources(), node(engines=()), engine="simulated") == "needs the engine simulated; node 1 has none"


def test_auto_prefers_nodes_with_an_engine_for_models_and_else_takes_any() -> None:
    bare = Candidate(node("a", cpus=1, engines=("simulated",)))
    good = Candidate(node("b"))
    assert choose("d", Resources(1.0), "auto", [bare, good]) == Placement(NodeId("b"), (), Resources(1.0))
    assert choose("d", Resources(1.0), "auto", [bare]) == Placement(NodeId("a"), (), Resources(1.0))


def test_auto_takes_a_gpu_where_vllm_has_one_free_and_goes_without_otherwise() -> None:
    plain, gpu = Candidate(node("a")), Candidate(node("b", gpus=1, engines=("vllm", "openvino")))
    need = Resources(1.0)
    assert choose("d", need, "auto", [plain, gpu]) == Placement(NodeId("b"), (0,), Resources(1.0, gpus=1))
    full = Candidate(gpu.info, (Held("x", Resources(1.0, gpus=1), (0,)),))
    assert choose("d", need, "auto", [full]) == Placement(NodeId("b"), (), need)
    assert choose("d", need, "openvino", [gpu]) == Placement(NodeId("b"), (), need)


def test_vllm_takes_a_gpu_of_a_node_that_has_some_and_the_cpu_of_one_that_has_none() -> None:
    gpu, cpu = node("a", gpus=1, engines=("vllm",)), node("b", engines=("vllm",))
    assert choose("d", Resources(1.0), "vllm", [Candidate(cpu)]) == Placement(NodeId("b"), (), Resources(1.0))
    taken = Candidate(gpu, (Held("x", Resources(gpus=1), (0,)),))
    outcome = choose("d", Resources(1.0), "vllm", [taken])
    assert outcome == NoPlace("needs 1 GPU; node a has 0 free of 1 (held by x: 1 GPU)")
