"""LoRA adapters of deployments: what they are called in public, and how they stand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from headrace.core.types import Adapter, AdapterStatus, ReplicaId, ReplicaStatus, Route, RouteState
from headrace.errors import Conflict

Known = Mapping[str, Sequence[Adapter]]
"""Every model that can be called, deployed or catalogued, with its adapters."""


def public_name(model: str, adapter: str) -> str:
    """What a client calls an adapter of a model."""
    return f"{model}:{adapter}"


def model_of(name: str, known: Known) -> str | None:
    """The model that answers to `name`, which may be an adapter of it; None: there is none."""
    if name in known:
        return name
    model, _, adapter = name.rpartition(":")  # no adapter's name has a colon
    return model if any(a.name == adapter for a in known.get(model, ())) else None


def check_clash(name: str, known: Known) -> None:
    """Conflict if the model `name`, or one of its adapters, is called as something else is."""
    model, _, adapter = name.rpartition(":")
    if any(a.name == adapter for a in known.get(model, ())):
        raise Conflict(f"{name} is the adapter {adapter} of {model} already; choose another name.", param="name")
    for a in known.get(name, ()):
        if (public := public_name(name, a.name)) in known:
            raise Conflict(
                f"The adapter {a.name} of {name} would be called as the model {public} is; choose another name.",
                param="adapters",
            )


@dataclass(frozen=True, slots=True)
class Standing:
    """How one adapter stands. `reason`: why a replica refused it; empty: none did."""

    adapter: Adapter
    loaded: int
    reason: str


def standing(adapter: Adapter, replicas: Iterable[ReplicaStatus]) -> Standing:
    """How `adapter` stands at `replicas`, those that serve its deployment."""
    said = [a for r in replicas for a in r.adapters if a.adapter == adapter]
    return Standing(adapter, sum(a.loaded for a in said), next((a.reason for a in said if a.reason), ""))


def adapter_route(adapter: Adapter, model: Route, told: Mapping[ReplicaId, Sequence[AdapterStatus]]) -> Route:
    """The route of one adapter, from that of its model: the replicas of that which have it loaded.

    told: what replicas say of their adapters. One on a lost node that has not been heard of since the head's start may
    have it: a replica that has not refuses, and the request goes elsewhere.
    """
    route = replace(model, name=public_name(model.name, adapter.name), adapter=adapter.name, endpoints=())
    if model.state is not RouteState.READY:
        return route
    said = {e: next((a for a in told.get(e.replica_id, ()) if a.adapter == adapter), None) for e in model.endpoints}
    has = tuple(e for e, a in said.items() if (a.loaded if a else e.lost and e.replica_id not in told))
    if has:
        return replace(route, endpoints=has)
    reasons = [a.reason for a in said.values() if a and a.reason]
    if reasons and len(reasons) == len(said):
        return replace(route, state=RouteState.FAILED, reason=f"the adapter {adapter.name} cannot be loaded")
    return replace(route, state=RouteState.STARTING, reason=f"loading the adapter {adapter.name}")
