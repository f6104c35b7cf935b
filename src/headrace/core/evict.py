"""What to drop from the cache of weights so that something new fits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Kept:
    """One entry of the cache. `size_bytes`: what it has, or will have when its download is over."""

    name: str
    size_bytes: int
    last_used: float
    in_use: bool


@dataclass(frozen=True, slots=True)
class Room:
    """`drop`: these, in this order. `short_bytes`: what is then still too much; 0 if all is well."""

    drop: tuple[str, ...]
    short_bytes: int


def make_room(kept: Iterable[Kept], needed_bytes: int, limit_bytes: int) -> Room:
    """As few of the least recently used as are needed for `needed_bytes` more within the limit; never one in use."""
    entries = list(kept)
    over = sum(k.size_bytes for k in entries) + needed_bytes - limit_bytes
    drop: list[str] = []
    for k in sorted((k for k in entries if not k.in_use), key=lambda k: (k.last_used, k.name)):
        if over <= 0:
            break
        drop.append(k.name)
        over -= k.size_bytes
    return Room(tuple(drop), max(0, over))
