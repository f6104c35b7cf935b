"""What clients are told of how a model stands: enough to know what to do, and nothing of machines, paths or logs.

Operators see all of it in `headrace status`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from headrace.core.phase import Phase
from headrace.core.types import DeploymentStatus, ReplicaStatus, RouteState

FAILED = "it could not be started; its operators see why in `headrace status`"
NO_ROOM = "no machine has room for it now"
NOT_LOADED = "its files could not be loaded; its operators see why in `headrace status`"
AGAIN = "starts again after a failure"
_COMING = (Phase.PENDING, Phase.STARTING, Phase.LOADING)
_PLAIN = re.compile(r"[A-Za-z0-9 ,:%-]{1,60}")  # an activity with a file's name in it is not


def public_reason(stand: DeploymentStatus, replicas: Sequence[ReplicaStatus]) -> str:
    """Of a deployment, from its newest replicas; "" while it can be called."""
    match stand.state:
        case RouteState.READY:
            return ""
        case RouteState.FAILED:
            return NO_ROOM if stand.stuck else FAILED
        case RouteState.AVAILABLE:
            return stand.reason
        case RouteState.STARTING:
            return _progress(replicas)


def _progress(replicas: Sequence[ReplicaStatus]) -> str:
    coming = [s for s in replicas if s.phase in _COMING]
    if not coming:
        return "waits for room"
    s = max(coming, key=lambda s: (_COMING.index(s.phase), s.progress, s.replica_id))
    if s.reason:
        return AGAIN
    doing = s.activity if _PLAIN.fullmatch(s.activity) else s.phase.value.lower()
    return f"{doing}, {s.progress:.0%}".replace("%", " %") if s.progress >= 0 else doing
