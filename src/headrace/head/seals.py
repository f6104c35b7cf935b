"""The seals of a state file's rows, as its one writer knows them: a commit need not read them all to seal the whole."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping

from headrace.head import rows

Key = tuple[object, ...]
"""A table's name, and the primary key of one of its rows."""


class Seals:
    """A value: `after` leaves the one before as it was, should the commit fail."""

    def __init__(self, found: Mapping[Key, str]) -> None:
        self._of = dict(found)
        self._sorted = sorted(self._of.values())

    def after(self, news: Mapping[Key, str | None]) -> Seals:
        """With these; None: the row is no more."""
        made = Seals({})
        made._of, made._sorted = dict(self._of), list(self._sorted)
        for key, seal in news.items():
            if (old := made._of.pop(key, None)) is not None:
                del made._sorted[bisect_left(made._sorted, old)]
            if seal is not None:
                made._of[key] = seal
                insort(made._sorted, seal)
        return made

    def whole(self) -> str:
        """What stands for all rows together."""
        return rows.whole(self._sorted)
