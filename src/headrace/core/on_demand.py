"""What clients may start from the catalog by just calling it, and when that is taken away again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from headrace.core.types import CatalogEntry, Deployment, Load


class Rule(StrEnum):
    """Which models of the catalog the first request deploys."""

    OFF = "off"
    LISTED = "listed"  # those whose entry says `on_demand: true`
    ALL = "all"


def startable(rule: Rule, catalog: Mapping[str, CatalogEntry]) -> dict[str, CatalogEntry]:
    """The entries that a request may deploy."""
    if rule is Rule.OFF:
        return {}
    return {name: e for name, e in catalog.items() if rule is Rule.ALL or e.on_demand}


def started(deployments: Iterable[Deployment]) -> list[Deployment]:
    """Those that requests have made and that are to have replicas."""
    return [d for d in deployments if d.on_demand and d.replicas]


Mark = tuple[object, ...]


def mark_of(loads: Iterable[Load]) -> Mark:
    """Differs from one made before if a replica has worked meanwhile."""
    return tuple((x.step, x.tokens_total, x.prefix_query_tokens, x.running, x.waiting) for x in loads)


@dataclass(frozen=True, slots=True)
class Use:
    """`mark`: as last seen; None: it was in use at that moment. `since`: when that was seen first."""

    mark: Mark | None
    since: float


def uses(before: Mapping[str, Use], marks: Mapping[str, Mark | None], now: float) -> dict[str, Use]:
    """How each deployment of `marks` is used, from what was seen before. None: it works, or cannot work yet."""
    found: dict[str, Use] = {}
    for name, mark in marks.items():
        had = before.get(name)
        found[name] = had if had and mark is not None and had.mark == mark else Use(mark, now)
    return found


def idle(seen: Mapping[str, Use], now: float, after_s: float) -> list[str]:
    """Those that nobody has used for `after_s`."""
    return sorted(name for name, use in seen.items() if use.mark is not None and now - use.since >= after_s)
