"""Route tables and the state of deployments, from what is wanted and what is seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from headrace.core.adapters import Known
from headrace.core.phase import Phase
from headrace.core.routes import settled, standing, table
from headrace.core.state import Goal, Intent, NodeView, PutDeployment, PutIntent, State, Unplaced, apply, desired_on
from headrace.core.types import (
    Adapter,
    AdapterStatus,
    Deployment,
    ModelInfo,
    ModelSpec,
    NodeId,
    NodeInfo,
    ReplicaId,
    ReplicaStatus,
    Resources,
    Route,
    RouteState,
)

X, Y = Adapter("x", "/x"), Adapter("y", "/y")
CATALOG = {"c": (X,), "d": (Y,)}


def world(
    *replicas: tuple[str, str, Phase | None],
    wanted: int = 1,
    revision: int = 1,
    lost: str = "",
    goal: Goal = Goal.RUN,
    adapters: tuple[Adapter, ...] = (),
    **said: object,
) -> tuple[State, dict[NodeId, NodeView]]:
    """A deployment "d" with replicas given as (id, node, phase as reported; None: nothing reported).

    Ids are "r", the revision and a letter.
    """
    d = Deployment("d", revision, ModelSpec("/m"), Resources(1.0), wanted, wanted, wanted, 7, adapters)
    intents = [
        Intent(
            ReplicaId(r), "d", int(r[1]), NodeId(n), d.resources, (), goal, 0, 0, address=f"old:{r}", context_tokens=9
        )
        for r, n, _ in replicas
    ]
    older = [PutDeployment(Deployment("d", i, d.model, d.resources, 1, 1, 1, 7)) for i in range(1, revision)]
    state = State()
    for intent in intents:
        state = apply(state, [*older, PutDeployment(d), PutIntent(intent)])
    state = apply(state, [PutDeployment(d), *map(PutIntent, intents)])
    nodes: dict[NodeId, NodeView] = {}
    for n in {n for _, n, _ in replicas}:
        statuses = {
            ReplicaId(r): ReplicaStatus(ReplicaId(r), "d", int(r[1]), p, address=f"new:{r}", **said)  # type: ignore[arg-type]
            for r, where, p in replicas
            if where == n and p
        }
        info = NodeInfo(NodeId(n), 1, "h", "0", Resources(4.0))
        nodes[NodeId(n)] = NodeView(info, n != lost, n == lost, 1.0, 1.0 if statuses or n != lost else 0.0, statuses)
    return state, nodes


def routes(
    state: State, nodes: Mapping[NodeId, NodeView], reasons: Mapping[str, Unplaced], known: Known
) -> dict[str, Route]:
    return table(standing(state, nodes, reasons), known)


def route(state: State, nodes: Mapping[NodeId, NodeView], reason: str = "", stuck: bool = False) -> Route:
    return routes(state, nodes, {"d": Unplaced(reason, stuck)} if reason else {}, CATALOG)["d"]


def endpoints(r: Route) -> list[tuple[str, str, bool]]:
    return [(e.replica_id, e.address, e.lost) for e in r.endpoints]


def test_catalogued_names_are_available_until_they_are_deployed() -> None:
    found = routes(*world(("r1a", "1", Phase.READY)), {}, CATALOG)
    assert list(found) == ["c", "c:x", "d"], "adapters of the catalogued d are not those of the deployed one"
    assert found["c"] == Route("c", RouteState.AVAILABLE)
    assert found["c:x"] == Route("c:x", RouteState.AVAILABLE, adapter="x")
    assert found["c:x"].model == "c"
    assert found["d"].state is RouteState.READY
    assert found["d"].created_unix_s == 7


@pytest.mark.parametrize("phase", [p for p in Phase if p is not Phase.READY])
def test_only_ready_replicas_are_endpoints(phase: Phase) -> None:
    r = route(*world(("r1a", "1", Phase.READY), ("r1b", "1", phase), wanted=2))
    assert endpoints(r) == [("r1a", "new:r1a", False)]


def test_a_replica_that_is_to_stop_gets_nothing_new() -> None:
    assert route(*world(("r1a", "1", Phase.READY), goal=Goal.STOP)).endpoints == ()


def test_replicas_of_a_lost_node_come_last_and_only_while_they_are_needed() -> None:
    cut = world(("r1a", "1", Phase.READY), ("r1b", "2", Phase.READY), wanted=2, lost="1")
    assert endpoints(route(*cut)) == [("r1a", "old:r1a", True), ("r1b", "new:r1b", False)]
    made_up = world(("r1a", "1", Phase.READY), ("r1b", "2", Phase.READY), wanted=1, lost="1")
    assert endpoints(route(*made_up)) == [("r1b", "new:r1b", False)]


def test_a_lost_replica_that_was_not_ready_is_no_endpoint() -> None:
    assert route(*world(("r1a", "1", Phase.LOADING), lost="1")).endpoints == ()


def test_after_a_restart_the_last_address_stands_for_a_node_that_has_not_come_back() -> None:
    r = route(*world(("r1a", "1", None), lost="1"))
    assert (r.state, endpoints(r), r.context_tokens) == (RouteState.READY, [("r1a", "old:r1a", True)], 9)


def test_the_smallest_context_counts() -> None:
    info = ModelInfo("e", "1", 512, 10)
    assert route(*world(("r1a", "1", Phase.READY), model=info)).context_tokens == 512


@pytest.mark.parametrize(
    ("replicas", "more", "state", "said"),
    [
        ([], {}, RouteState.STARTING, "waits to be placed"),
        ([("r1a", "1", Phase.LOADING)], {"activity": "downloading", "progress": 0.4}, RouteState.STARTING,
         "downloading, 40 %"),
        ([("r1a", "1", Phase.STARTING)], {}, RouteState.STARTING, "starting"),
        ([("r1a", "1", Phase.PENDING)], {"reason": "was killed", "next_try": 9.0}, RouteState.STARTING,
         "was killed; it is tried again"),
        ([("r1a", "1", Phase.FAILED)], {"reason": "no such folder"}, RouteState.FAILED, "no such folder"),
        ([("r1a", "1", Phase.FAILED), ("r1b", "1", Phase.LOADING)], {}, RouteState.STARTING, "loading"),
        ([("r1a", "1", Phase.FAILED), ("r1b", "1", Phase.READY)], {"reason": "broken"}, RouteState.READY,
         "a replica failed: broken"),
        ([("r1a", "1", Phase.READY), ("r2a", "1", Phase.FAILED)], {"reason": "broken", "revision": 2}, RouteState.READY,
         "revision 2 failed: broken; revision 1 goes on serving"),
        ([("r1a", "1", Phase.READY), ("r2a", "1", Phase.LOADING)], {"revision": 2}, RouteState.READY,
         "updating to revision 2: 0 of 1 ready; loading"),
        ([("r1a", "1", Phase.LOADING), ("r2a", "1", Phase.FAILED)], {"revision": 2},
         RouteState.STARTING, "loading"),
        ([("r1a", "1", Phase.READY)], {}, RouteState.READY, ""),
    ],
)  # fmt: skip
def test_how_a_deployment_stands(
    replicas: list[tuple[str, str, Phase]], more: dict[str, object], state: RouteState, said: str
) -> None:
    made = world(*replicas, **more)  # type: ignore[arg-type]
    status = standing(*made, {}).statuses["d"]
    assert (status.state, status.reason) == (state, said)
    assert status.ready == sum(p is Phase.READY for _, _, p in replicas)


def test_why_nothing_could_be_placed_is_told() -> None:
    state, nodes = world()
    why = "needs 1 GPU; node 1 has 0"
    assert standing(state, nodes, {"d": Unplaced(why)}).statuses["d"].reason == why
    assert route(state, nodes, why).reason == "waiting for room"


@pytest.mark.parametrize(
    ("replicas", "more", "told"),
    [
        ([], {}, "waiting for room"),
        ([("r1a", "1", Phase.LOADING)], {"activity": "downloading s3://own/models", "progress": 0.4}, "loading, 40 %"),
        ([("r1a", "1", Phase.PENDING)], {"reason": "starts again: /home/op/model is damaged"}, "pending"),
        ([("r1a", "1", Phase.FAILED)], {"reason": "OSError: /home/op/.netrc"}, "it cannot be started"),
        ([("r1a", "1", Phase.FAILED), ("r1b", "1", Phase.READY)], {"reason": "broken"}, ""),
    ],
)
def test_clients_are_not_told_what_only_concerns_who_runs_it(
    replicas: list[tuple[str, str, Phase]], more: dict[str, object], told: str
) -> None:
    assert route(*world(*replicas, **more)).reason == told  # type: ignore[arg-type]


def test_scaled_to_zero_is_available() -> None:
    assert route(*world(wanted=0)).state is RouteState.AVAILABLE


def test_settled_when_all_that_matter_have_reported_or_had_their_time() -> None:
    state, nodes = world(("r1a", "1", Phase.READY), ("r1b", "2", None), wanted=2, lost="2")
    assert not settled(state, nodes, now=9.9, started=0, lease_s=10)
    assert settled(state, nodes, now=10, started=0, lease_s=10)
    assert settled(*world(("r1a", "1", Phase.READY)), now=0, started=0, lease_s=10)
    assert settled(State(), {}, now=0, started=0, lease_s=10)
    assert not settled(state, {}, now=0, started=0, lease_s=10)


def test_desired_names_what_is_to_run_on_a_node_and_nothing_else() -> None:
    state, _ = world(("r1b", "1", None), ("r1a", "1", None), ("r1c", "2", None))
    assert [s.replica_id for s in desired_on(state, NodeId("1"), 3.0)] == ["r1a", "r1b"]
    stopping, _ = world(("r1a", "1", None), goal=Goal.STOP)
    assert desired_on(stopping, NodeId("1"), 3.0) == ()


def test_what_fits_nowhere_fails_for_callers_until_something_is_coming() -> None:
    why = "needs 1 GPU; node 1 has 0"
    assert route(*world(), why, stuck=True) == Route(
        "d", RouteState.FAILED, "the cluster has no room for it", created_unix_s=7
    )
    assert route(*world(), why).state is RouteState.STARTING
    assert route(*world(("r1a", "1", Phase.LOADING), wanted=2), why, stuck=True).state is RouteState.STARTING
    assert route(*world(("r1a", "1", Phase.READY), wanted=2), why, stuck=True).state is RouteState.READY


def adapter_route(*said: AdapterStatus | None, lost: str = "", name: str = "d:x") -> Route:
    """The route of the adapter X of a deployment whose replica of node n says `said[n]`; None: not heard of."""
    state, nodes = world(
        *[(f"r1{n}", str(n), Phase.READY if s else None) for n, s in enumerate(said)],
        wanted=len(said), lost=lost, adapters=(X,),
    )  # fmt: skip
    for n, s in enumerate(said):
        view = nodes[NodeId(str(n))]
        statuses = {k: replace(v, adapters=(s,)) for k, v in view.statuses.items() if s}
        nodes[NodeId(str(n))] = replace(view, statuses=statuses)
    return routes(state, nodes, {}, CATALOG)[name]


@pytest.mark.parametrize(
    ("said", "state", "reason", "where"),
    [
        ([AdapterStatus(X, loaded=True)], RouteState.READY, "", ["r10"]),
        ([AdapterStatus(X, loaded=True), AdapterStatus(X, False, "too big")], RouteState.READY, "", ["r10"]),
        ([AdapterStatus(X)], RouteState.STARTING, "loading the adapter x", []),
        ([AdapterStatus(Y, loaded=True)], RouteState.STARTING, "loading the adapter x", []),
        ([AdapterStatus(replace(X, source="/other"), loaded=True)], RouteState.STARTING, "loading the adapter x", []),
        ([AdapterStatus(X, False, "too big")], RouteState.FAILED, "the adapter x cannot be loaded", []),
        ([AdapterStatus(X, False, "too big"), AdapterStatus(X)], RouteState.STARTING, "loading the adapter x", []),
    ],
)
def test_an_adapter_is_served_where_it_is_loaded(
    said: list[AdapterStatus], state: RouteState, reason: str, where: list[str]
) -> None:
    r = adapter_route(*said)
    assert (r.name, r.adapter, r.model) == ("d:x", "x", "d")
    assert (r.state, r.reason, [e.replica_id for e in r.endpoints]) == (state, reason, where)
    assert adapter_route(*said, name="d").state is RouteState.READY, "the model is called as before"


def test_a_lost_replica_may_have_the_adapter_if_nothing_else_is_known() -> None:
    assert [e.lost for e in adapter_route(None, lost="0").endpoints] == [True]
    assert [e.lost for e in adapter_route(AdapterStatus(X, loaded=True), lost="0").endpoints] == [True]
    assert adapter_route(AdapterStatus(X), lost="0").endpoints == ()


def test_an_adapter_is_no_better_off_than_its_model() -> None:
    state, nodes = world(("r1a", "1", Phase.FAILED), adapters=(X,), reason="no such folder")
    r = routes(state, nodes, {}, {})["d:x"]
    assert (r.state, r.reason) == (RouteState.FAILED, "it cannot be started")
    assert routes(*world(wanted=0, adapters=(X,)), {}, {})["d:x"].state is RouteState.AVAILABLE


def test_nodes_are_told_the_adapters_of_the_deployment() -> None:
    state, _ = world(("r1a", "1", None), ("r2a", "1", None), revision=2, adapters=(X,))
    assert [s.adapters for s in desired_on(state, NodeId("1"), 3.0)] == [(X,), (X,)], "old revisions too"
