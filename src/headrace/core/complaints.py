"""How often to say the same thing about the same one: at once, and then once a minute with a count."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

EVERY_S = 60.0


@dataclass(slots=True)
class _Kept:
    said_at: float
    times: int = 0  # since then


class Complaints(Generic[K]):
    """A bounded number of things that are being said. What finds no room counts as `others`."""

    def __init__(self, others: K, most: int = 1000, every_s: float = EVERY_S) -> None:
        self._others, self._most, self._every_s = others, most, every_s
        self._kept: dict[K, _Kept] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def saw(self, what: K, now: float) -> K | None:
        """It has happened once more. What to say now that it happened, for the first time; None: nothing yet."""
        if what not in self._kept and len(self._kept) >= self._most:
            what = self._others
        kept = self._kept.get(what)
        if kept is None:
            self._kept[what] = _Kept(now)
            return what
        kept.times += 1
        return None

    def due(self, now: float) -> list[tuple[K, int]]:
        """What has been kept back for long enough, and how often it happened meanwhile. To be asked now and then."""
        told: list[tuple[K, int]] = []
        for what, kept in list(self._kept.items()):
            if now - kept.said_at < self._every_s:
                break  # in the order in which they were said
            del self._kept[what]
            if kept.times:
                told.append((what, kept.times))
                self._kept[what] = _Kept(now)
        return told
