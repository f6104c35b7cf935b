"""What a cache drops to make room: the least recently used of what nobody uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One thing that is kept or dropped as a whole. `used_at`: when it was last used, Unix time."""

    name: str
    size_bytes: int
    used_at: float
    in_use: bool = False


def choose(entries: Sequence[CacheEntry], limit_bytes: int, needed_bytes: int) -> list[CacheEntry] | None:
    """What to drop so that `needed_bytes` more fit into the limit, in the order to drop it; none that is in use.

    None if that cannot be, whatever were dropped: then nothing need be.
    """
    over = sum(e.size_bytes for e in entries) + needed_bytes - limit_bytes
    dropped: list[CacheEntry] = []
    for entry in sorted((e for e in entries if not e.in_use), key=lambda e: (e.used_at, e.name)):
        if over <= 0:
            break
        if entry.size_bytes:
            dropped.append(entry)
            over -= entry.size_bytes
    return dropped if over <= 0 else None
