"""Deltas of route tables: applied, they give the table that they were made of, and they name what changed alone."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from headrace.core.route_delta import NOTHING, RouteChange, RouteDelta, apply, diff, follows, whole
from headrace.core.types import Endpoint, ReplicaId, Route, RouteState, RouteTable
from headrace.rpc import convert_head

ids = st.sampled_from("abcdef")
endpoints = st.dictionaries(ids, st.tuples(st.sampled_from(["h:1", "h:2"]), st.booleans()), max_size=5).map(
    lambda found: tuple(Endpoint(ReplicaId(k), *found[k]) for k in sorted(found))
)
routes = st.builds(
    Route,
    st.just(""),
    st.sampled_from(RouteState),
    st.sampled_from(["", "loading"]),
    endpoints,
    st.integers(0, 1),
    st.integers(0, 1),
    st.sampled_from(["", "x"]),
)
tables = st.lists(
    st.dictionaries(st.sampled_from("mno"), routes).map(lambda d: {k: replace(r, name=k) for k, r in d.items()}),
    min_size=1,
    max_size=5,
).map(lambda found: [RouteTable(7, n, each) for n, each in enumerate(found, 1)])


@given(tables)
def test_a_delta_makes_the_one_of_the_other_also_over_the_wire(versions: list[RouteTable]) -> None:
    held = NOTHING
    for table in versions:
        delta = diff(held, table)
        sent = convert_head.route_delta_from_pb(convert_head.route_delta_to_pb(delta))
        assert sent == delta
        assert follows(delta, held)
        held = apply(delta, held)
        assert held == table
    assert apply(whole(versions[-1]), versions[0]) == versions[-1], "all of a table needs none before it"


@given(tables)
def test_one_delta_over_several_versions_is_as_good_as_each(versions: list[RouteTable]) -> None:
    first, last = versions[0], versions[-1]
    assert apply(diff(first, last), first) == last


@given(tables)
def test_what_did_not_change_is_not_named(versions: list[RouteTable]) -> None:
    first, last = versions[0], versions[-1]
    delta = diff(first, last)
    assert {c.route.name for c in delta.changed} == {k for k, r in last.routes.items() if first.routes.get(k) != r}
    assert set(delta.removed) == first.routes.keys() - last.routes.keys()
    for c in delta.changed:
        before = first.routes.get(c.route.name)
        had = {e.replica_id: e for e in before.endpoints} if before else {}
        assert all(had.get(e.replica_id) != e for e in c.route.endpoints)
        assert set(c.gone) == had.keys() - {e.replica_id for e in last.routes[c.route.name].endpoints}


def test_one_replica_of_many_is_all_that_is_sent_when_it_dies() -> None:
    many = tuple(Endpoint(ReplicaId(f"r{i:03}"), f"h:{i}") for i in range(100))
    route, other = Route("m", RouteState.READY, "", many), Route("n", RouteState.READY, "", many)
    old = RouteTable(1, 4, {"m": route, "n": other})
    new = RouteTable(1, 5, {"m": replace(route, endpoints=many[1:]), "n": other})
    delta = diff(old, new)
    assert delta == RouteDelta(1, 5, 4, (RouteChange(replace(route, endpoints=()), (many[0].replica_id,)),))
    assert apply(delta, old).routes["n"] is other


def test_a_delta_follows_only_the_table_that_it_builds_upon() -> None:
    delta = diff(RouteTable(3, 8, {}), RouteTable(3, 9, {}))
    assert follows(delta, RouteTable(3, 8, {}))
    for other in (RouteTable(3, 7, {}), RouteTable(3, 9, {}), RouteTable(2, 8, {}), NOTHING):
        assert not follows(delta, other)
        assert follows(whole(RouteTable(3, 9, {})), other)
