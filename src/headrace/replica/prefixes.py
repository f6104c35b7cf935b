"""Which prompts' beginnings the engine's prefix cache is likely to hold: a model of it, for the proxies' routing.

The blocks are the proxies' (core/prefix.py), their sizes are guessed. It forgets what was used longest ago, as engines
do, and of one prompt the end before the beginning: whatever is held is held with all that comes before it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence

MAX_ENTRIES = 16_384


class Prefixes:
    """Holds blocks of `capacity_tokens`, at most MAX_ENTRIES; `tell` hears which are held now, and which no more."""

    def __init__(
        self, capacity_tokens: int, tell: Callable[[Mapping[int, bool]], object], max_entries: int = MAX_ENTRIES
    ) -> None:
        self._capacity, self._tell, self._max_entries = capacity_tokens, tell, max_entries
        self._tokens: OrderedDict[int, float] = OrderedDict()  # by block; what was used longest ago comes first
        self._total = 0.0
        self._strangers = 0

    def held(self) -> Iterable[int]:
        return (block for block in self._tokens if block >= 0)

    def took(self, blocks: Sequence[int], tokens: int) -> int:
        """The engine takes in a prompt of so many tokens. Returns what `grew` is to be told of its answer."""
        if not blocks:  # it takes room all the same
            self._strangers -= 1
            blocks = (self._strangers,)
        each, changes = tokens / len(blocks), dict[int, bool]()
        for block in reversed(blocks):
            before = self._tokens.pop(block, None)
            if before is None:
                changes[block] = True
            self._tokens[block] = each
            self._total += each - (before or 0.0)
        self._trim(changes)
        return blocks[-1]

    def grew(self, leaf: int, tokens: int) -> None:
        """An answer of so many tokens has ended, which the engine holds after the prompt."""
        if leaf in self._tokens:
            self._tokens[leaf] += tokens
            self._total += tokens
        self._trim({})

    def _trim(self, changes: dict[int, bool]) -> None:
        while self._total > self._capacity or len(self._tokens) > self._max_entries:
            block, tokens = self._tokens.popitem(last=False)
            self._total -= tokens
            if changes.pop(block, False) is False:
                changes[block] = False
        if told := {b: held for b, held in changes.items() if b >= 0}:
            self._tell(told)
