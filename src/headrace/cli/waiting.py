"""How a deployment stands for somebody who waits for it. Pure functions of ClusterStatus."""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import Enum

from headrace.core.adapters import public_name
from headrace.core.adapters import standing as adapter_stands
from headrace.core.phase import Phase
from headrace.core.types import Adapter, ClusterStatus, DeploymentStatus, PlacedReplica, ReplicaStatus, RouteState

_COMING = (Phase.READY, Phase.LOADING, Phase.STARTING, Phase.PENDING)


class Outcome(Enum):
    WAITING = "waiting"
    READY = "ready"
    FAILED = "failed"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class Standing:
    """One deployment while it loads. `text`: what is going on, or why it failed. `progress`: 0..1, or None."""

    name: str
    outcome: Outcome
    text: str
    progress: float | None = None


def standing(status: ClusterStatus, name: str, revision: int, replicas: int = 1) -> Standing:
    """How `name` stands for somebody who waits for `replicas` replicas of `revision` (or a newer one) to be ready."""
    found = next((d for d in status.deployments if d.deployment.name == name), None)
    if found is None or found.deployment.revision < revision:
        # A head that has just started again may not say yet; one that knows others does.
        gone = found is None and bool(status.deployments)
        return Standing(name, Outcome.DELETED if gone else Outcome.WAITING, "was deleted" if gone else "waiting")
    newest = found.deployment.revision
    mine = [r for r in status.replicas if r.status.deployment == name and r.status.revision == newest]
    ready = sum(r.status.phase is Phase.READY for r in mine)
    if ready >= min(replicas, found.deployment.replicas):
        return Standing(name, Outcome.READY, "ready", 1.0)
    failed = [r for r in mine if r.status.phase is Phase.FAILED]
    coming = [r for r in mine if r.status.phase in _COMING and r.status.phase is not Phase.READY]
    if failed and not coming and not (ready and len(mine) < found.deployment.replicas):
        why = failed[0].status.reason or found.reason or "no reason was given"
        # The head says which revision serves instead.
        return Standing(name, Outcome.FAILED, found.reason if found.ready and why.rstrip(".") in found.reason else why)
    if (found.state is RouteState.FAILED or found.stuck) and not mine:
        return Standing(name, Outcome.FAILED, found.reason or "no reason was given")
    return _on_the_way(found, coming, ready, min(replicas, found.deployment.replicas))


def _on_the_way(found: DeploymentStatus, coming: list[PlacedReplica], ready: int, wanted: int) -> Standing:
    name = found.deployment.name
    if not coming:
        return Standing(name, Outcome.WAITING, found.reason or "waiting for a place")
    nearest = max(coming, key=lambda r: (_COMING[::-1].index(r.status.phase), r.status.progress)).status
    text = doing(nearest)
    if wanted > 1:
        text = f"{ready} of {wanted} ready; {text}"
    return Standing(name, Outcome.WAITING, text, nearest.progress if nearest.progress >= 0 else None)


def adapter_standing(status: ClusterStatus, name: str, adapter: Adapter) -> Standing:
    """How an adapter of the deployment `name` stands for somebody who waits until all that are ready have it."""
    public = public_name(name, adapter.name)
    found = next((d for d in status.deployments if d.deployment.name == name), None)
    if found is None or adapter not in found.deployment.adapters:
        gone = bool(status.deployments)  # a head that has just started again may not say yet
        return Standing(public, Outcome.DELETED if gone else Outcome.WAITING, "was removed" if gone else "waiting")
    ready = [r.status for r in status.replicas if r.status.deployment == name and r.status.phase is Phase.READY]
    now = adapter_stands(adapter, ready)
    if now.reason or found.state is RouteState.FAILED:
        return Standing(public, Outcome.FAILED, now.reason or found.reason or "no reason was given")
    if ready and now.loaded == len(ready):
        return Standing(public, Outcome.READY, "ready", 1.0)
    return Standing(public, Outcome.WAITING, "loading" if ready else found.reason or f"waiting for {name}")


def doing(replica: ReplicaStatus, now: float | None = None) -> str:
    """What a replica is doing, in a few words: "loading 40 %", "starting", "pending: was killed; again in 2 s".

    now: Unix time; None: that of the clock.
    """
    text = replica.activity or replica.phase.value.lower()
    if replica.progress >= 0:
        text += f" {replica.progress:.0%}".replace("%", " %")
    if replica.next_try:
        wait_s = max(0.0, replica.next_try - (time.time() if now is None else now))
        return f"{text}: {replica.reason.rstrip('.')}; again in {wait_s:.0f} s"
    return f"{text}: {replica.reason}" if replica.reason else text
