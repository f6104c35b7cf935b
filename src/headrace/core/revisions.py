"""Going back to an earlier revision: which one, and what the deployment is then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from headrace.core.state import Revision, State, next_revision, renewed
from headrace.core.types import Deployment
from headrace.errors import InvalidRequest, NotFound


def history(state: State, d: Deployment) -> tuple[Revision, ...]:
    """The revisions of `d` that are kept, newest first."""
    found = (r for (name, number), r in state.revisions.items() if name == d.name and number <= d.revision)
    return tuple(sorted(found, key=lambda r: -r.revision))


def rolled_back(state: State, d: Deployment, to: int, now: int) -> Deployment:
    """`d` with a new revision whose contents are those of revision `to`; 0: of the newest that differs from now.

    The range of replicas and the adapters stay. NotFound, or InvalidRequest where nothing would change.
    """
    target = _target(history(state, d), d, to)
    new = renewed(d, next_revision(state, d.name), now, repeats=target.revision)
    return replace(new, model=target.model, resources=target.resources)


def _target(kept: Sequence[Revision], d: Deployment, to: int) -> Revision:
    if to:
        found = next((r for r in kept if r.revision == to), None)
        if found is None:
            there = ", ".join(str(r.revision) for r in kept)
            raise NotFound(f"{d.name} has no revision {to} to go back to; kept are: {there}.", param="revision")
        if not _differs(found, d):
            same = "is the current one" if to == d.revision else f"is the same as the current one ({d.revision})"
            raise InvalidRequest(f"Revision {to} of {d.name} {same}; there is nothing to go back to.", param="revision")
        return found
    former = next((r for r in kept if _differs(r, d)), None)
    if former is None:
        raise InvalidRequest(
            f"{d.name} has no earlier revision that differs from its current one ({d.revision}); there is nothing to go"
            " back to.",
            param="name",
        )
    return former


def _differs(r: Revision, d: Deployment) -> bool:
    return (r.model, r.resources) != (d.model, d.resources)
