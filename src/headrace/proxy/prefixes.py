"""The beginnings of prompts that one replica is likely to hold: as it says, and those that were sent there just now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from headrace.core.prefix import matched


class Prefixes:
    """Kept by the session. Costs nothing per token."""

    def __init__(self) -> None:
        self._said: set[int] = set()
        self._sent: Counter[int] = Counter()  # blocks of streams that are there
        self._of: dict[int, Sequence[int]] = {}  # those of each
        self.kept = False  # by the replica: its engine has a prefix cache

    def __len__(self) -> int:
        return len(self._said)

    def matched(self, blocks: Sequence[int]) -> int:
        """How many of a prompt's first blocks it is likely to hold."""
        if not blocks or not self.kept:
            return 0
        said = matched(blocks, self._said)
        return said if said == len(blocks) or not self._sent else max(said, matched(blocks, self._sent))

    def told(self, added: Iterable[int], removed: Iterable[int]) -> None:
        """A frame has come."""
        self._said.update(added)
        self._said.difference_update(removed)

    def sent(self, number: int, blocks: Sequence[int]) -> None:
        """A stream goes there. The replica will say what it holds of it, with its next frame."""
        if blocks:
            self._of[number] = blocks
            self._sent.update(blocks)

    def ended(self, number: int) -> None:
        """A stream is there no longer. Idempotent."""
        for block in self._of.pop(number, ()):
            if self._sent[block] > 1:
                self._sent[block] -= 1
            else:
                del self._sent[block]

    def clear(self) -> None:
        """The session is gone; the replica may have begun anew."""
        self._said.clear()
        self._sent.clear()
        self._of.clear()
        self.kept = False
