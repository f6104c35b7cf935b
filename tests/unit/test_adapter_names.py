"""Names of adapters: what a model and its adapters may be called, and whose a name is."""

from __future__ import annotations

import pytest

from headrace.core.adapters import check_clash, model_of, standing
from headrace.core.catalog import MAX_ADAPTERS, check_adapters, parse, resolve
from headrace.core.phase import Phase
from headrace.core.plan import plan
from headrace.core.state import PutDeployment, State, apply
from headrace.core.types import (
    Adapter,
    AdapterStatus,
    CatalogEntry,
    Deployment,
    DeployRequest,
    ModelSpec,
    ReplicaId,
    ReplicaStatus,
    Resources,
)
from headrace.errors import Conflict, InvalidRequest

A, B = Adapter("a", "hf://o/a"), Adapter("b", "hf://o/b", "v1")
ENTRY = CatalogEntry("m", ModelSpec("hf://o/m"), Resources(1.0), adapters=(A,))


def test_a_name_is_a_models_or_an_adapters() -> None:
    known = {"m": [A], "m:8b": [B]}
    assert [model_of(n, known) for n in ("m", "m:a", "m:8b", "m:8b:b")] == ["m", "m", "m:8b", "m:8b"]
    assert [model_of(n, known) for n in ("m:b", "a", "m:8b:a", ":a", "")] == [None] * 5


def test_a_name_that_is_taken_is_refused() -> None:
    check_clash("m", {"m": [A], "m:b": []})
    with pytest.raises(Conflict, match="m:a is the adapter a of m already"):
        check_clash("m:a", {"m": [A], "m:a": []})
    with pytest.raises(Conflict, match="The adapter a of m would be called as the model m:a is"):
        check_clash("m", {"m": [A], "m:a": []})


@pytest.mark.parametrize("name", ["", "a:b", "a/b", "-a", "a b", "ä", "a" * 65])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(InvalidRequest, match="not an adapter's name"):
        check_adapters([Adapter(name, "/x")])


def test_what_a_deployment_can_have() -> None:
    assert check_adapters([B, A]) == (A, B)
    with pytest.raises(InvalidRequest, match="the same name"):
        check_adapters([A, Adapter("a", "/other")])
    with pytest.raises(InvalidRequest, match="is not a source"):
        check_adapters([Adapter("a", "relative")])
    with pytest.raises(InvalidRequest, match="needs a source"):
        check_adapters([Adapter("a", "builtin:demo")])
    with pytest.raises(InvalidRequest, match="not a revision"):
        check_adapters([Adapter("a", "hf://o/x", "no such")])
    with pytest.raises(InvalidRequest, match=f"at most {MAX_ADAPTERS} adapters"):
        check_adapters([Adapter(f"a{n}", "/x") for n in range(MAX_ADAPTERS + 1)])


def test_a_catalog_names_adapters_by_source_or_in_full() -> None:
    text = {
        "models": {"m": {"source": "/m", "adapters": {"b": {"source": "hf://o/b", "revision": "v1"}, "a": "hf://o/a"}}}
    }
    assert parse(text, "f", "file")["m"].adapters == (A, B)


@pytest.mark.parametrize(
    ("adapters", "told"),
    [
        (["a"], "f: m: adapters must be a mapping, not list"),
        ({"a": 3}, "f: m: adapters: a must be a mapping, not int"),
        ({"a": {"src": "/x"}}, "f: m: adapters: a: unknown key 'src'; did you mean source?"),
        ({"a:b": "/x"}, "f: m: 'a:b' is not an adapter's name"),
        ({"a": {}}, "f: m: '' is not a source"),
    ],
)
def test_what_is_wrong_in_a_catalog_is_told(adapters: object, told: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse({"models": {"m": {"source": "/m", "adapters": adapters}}}, "f", "file")
    assert caught.value.message.startswith(told)


def test_a_deploy_says_all_adapters_or_keeps_them() -> None:
    catalog = {"m": ENTRY}
    there = Deployment("m", 1, ENTRY.model, ENTRY.resources, 1, 1, 1, 0, (B,))
    assert resolve(DeployRequest("m"), catalog).adapters == (A,)
    assert resolve(DeployRequest("m"), catalog, there).adapters == (B,)
    assert resolve(DeployRequest("m", adapters=(B, A)), catalog, there).adapters == (A, B)
    assert resolve(DeployRequest("m", adapters=()), catalog, there).adapters == ()
    assert resolve(DeployRequest("/m"), catalog).adapters == ()


def test_how_an_adapter_stands() -> None:
    def replica(*said: AdapterStatus) -> ReplicaStatus:
        return ReplicaStatus(ReplicaId("r"), "m", 1, Phase.READY, adapters=said)

    replicas = [replica(AdapterStatus(A, True), AdapterStatus(B, False, "too big")), replica(AdapterStatus(A))]
    assert (standing(A, replicas).loaded, standing(A, replicas).reason) == (1, "")
    assert (standing(B, replicas).loaded, standing(B, replicas).reason) == (0, "too big")


def test_other_adapters_change_no_replica() -> None:
    d = Deployment("m", 1, ENTRY.model, Resources(), 0, 0, 0, 0)
    state = apply(State(), [PutDeployment(d)])
    other = apply(state, [PutDeployment(Deployment("m", 1, ENTRY.model, Resources(), 0, 0, 0, 0, (A,)))])
    assert other.revisions == state.revisions
    assert plan(other, {}, 0.0, lambda name, n: ReplicaId(name)).changes == ()
