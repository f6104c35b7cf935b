"""The life of a replica, and the moves in it that there are."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class Phase(StrEnum):
    """Where a replica is in its life. Stored, never inferred."""

    PENDING = "PENDING"
    STARTING = "STARTING"
    LOADING = "LOADING"
    READY = "READY"
    DRAINING = "DRAINING"
    STOPPED = "STOPPED"
    FAILED = "FAILED"
    LOST = "LOST"


_LIVE = (Phase.PENDING, Phase.STARTING, Phase.LOADING, Phase.READY, Phase.DRAINING)

ALLOWED_MOVES: Mapping[Phase, frozenset[Phase]] = {
    Phase.PENDING: frozenset({Phase.STARTING, Phase.STOPPED, Phase.FAILED, Phase.LOST}),
    Phase.STARTING: frozenset(
        {Phase.LOADING, Phase.READY, Phase.PENDING, Phase.DRAINING, Phase.STOPPED, Phase.FAILED, Phase.LOST}
    ),
    Phase.LOADING: frozenset({Phase.READY, Phase.PENDING, Phase.DRAINING, Phase.STOPPED, Phase.FAILED, Phase.LOST}),
    Phase.READY: frozenset({Phase.PENDING, Phase.DRAINING, Phase.STOPPED, Phase.FAILED, Phase.LOST}),
    Phase.DRAINING: frozenset({Phase.STOPPED, Phase.FAILED, Phase.LOST}),
    # PENDING from a live phase is a start again after back-off; FAILED is given up.
    Phase.FAILED: frozenset({Phase.STOPPED, Phase.LOST}),
    # The node came back: whatever it reports is true again.
    Phase.LOST: frozenset({*_LIVE, Phase.STOPPED, Phase.FAILED}),
    Phase.STOPPED: frozenset(),
}


class InvalidMove(Exception):
    """A replica was said to go from one phase to another that the table does not allow."""

    def __init__(self, replica_id: str, old: Phase, new: Phase, reason: str) -> None:
        super().__init__(f"replica {replica_id} cannot go from {old} to {new} ({reason or 'no reason given'})")
        self.replica_id, self.old, self.new = replica_id, old, new


def move(replica_id: str, old: Phase, new: Phase, reason: str = "") -> Phase:
    """`new`, if the table allows old → new (or they are the same); else InvalidMove."""
    if new is not old and new not in ALLOWED_MOVES[old]:
        raise InvalidMove(replica_id, old, new, reason)
    return new
