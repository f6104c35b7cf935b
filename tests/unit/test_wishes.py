"""What requests would like of their replica."""

from __future__ import annotations

import pytest

from headrace.core.affinity import NOTHING, Policy
from headrace.core.prefix import blocks_of
from headrace.core.streams import Submit, Task, TextPrompt
from headrace.core.types import Endpoint, ReplicaId, Route, RouteState
from headrace.proxy.wishes import Wishes

LONG = Submit(0, "", TextPrompt("x" * 2560))


def route(replicas: int, adapter: str = "") -> Route:
    endpoints = tuple(Endpoint(ReplicaId(f"r{i}"), "") for i in range(replicas))
    return Route(f"m:{adapter}" if adapter else "m", RouteState.READY, "", endpoints, adapter=adapter)


def test_blocks_where_there_is_a_choice():
    wishes = Wishes(Policy.AUTO)
    assert wishes.of(route(2), LONG).blocks == blocks_of(LONG)
    assert wishes.of(route(2, "a"), LONG).blocks == blocks_of(LONG, "a")
    assert wishes.of(route(2), LONG, "s").session == "s"
    assert wishes.of(route(1), LONG) == wishes.of(None, LONG) == NOTHING


@pytest.mark.parametrize("policy", [p for p in Policy if p is not Policy.AUTO])
def test_nothing_under_other_policies_and_for_other_tasks(policy: Policy):
    assert Wishes(policy).of(route(2), LONG, "s") == NOTHING
    embed = Submit(0, "", TextPrompt("x" * 2560), task=Task.EMBED)
    assert Wishes(Policy.AUTO).of(route(2), embed, "s") == NOTHING


def test_the_usual_length_is_learned_for_each_model():
    wishes = Wishes(Policy.AUTO)
    for _ in range(200):
        usual = wishes.of(route(2), Submit(0, "", TextPrompt("x" * 256 * 30))).usual_blocks
    assert 29 < usual <= 30
    other = Route("other", RouteState.READY, "", route(2).endpoints)
    assert wishes.of(other, LONG).usual_blocks == 10
