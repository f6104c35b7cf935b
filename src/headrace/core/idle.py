"""Which of those who only wait has to go when there is room for no more."""

from __future__ import annotations

from typing import Generic, TypeVar

T = TypeVar("T")


class Idle(Generic[T]):
    """Those who wait, by where they come from, in the order in which they began to."""

    def __init__(self) -> None:
        self._by_origin: dict[str, dict[T, None]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, who: T, origin: str) -> None:
        """Begins to wait; one that waits already stays where it is."""
        mine = self._by_origin.setdefault(origin, {})
        if who not in mine:
            mine[who] = None
            self._count += 1

    def remove(self, who: T, origin: str) -> None:
        """Waits no more; one that does not wait is no error."""
        mine = self._by_origin.get(origin)
        if mine is None or who not in mine:
            return
        del mine[who]
        self._count -= 1
        if not mine:
            del self._by_origin[origin]

    def first_to_go(self) -> T | None:
        """The one that has waited for longest, of the origin with most who wait: a crowd puts nobody else out."""
        if not self._count:
            return None
        most = max(self._by_origin.values(), key=len)
        return next(iter(most))
