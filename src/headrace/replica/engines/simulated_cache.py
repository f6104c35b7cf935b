"""The simulated engine's prefix cache: whole blocks of tokens, the least recently used forgotten first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

BLOCK_TOKENS = 16


class SimulatedCache:
    """Holds what the KV cache of `kv_tokens` has room for beside the requests that run. For the engine's thread.

    `queries`, `hits`: tokens of prompts that were looked for, and found.
    """

    def __init__(self, kv_tokens: int) -> None:
        self.queries = self.hits = 0
        self._kv_tokens = kv_tokens
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def find(self, adapter: str, ids: Sequence[int]) -> int:
        """How many tokens of a prompt need not be taken in; never all: the last one makes the first of the answer."""
        found = 0
        for key in _chain(adapter, ids[:-1]):
            if key not in self._blocks:
                break
            found += BLOCK_TOKENS
        self.queries += len(ids)
        self.hits += found
        return found

    def add(self, adapter: str, ids: Sequence[int], used_tokens: int) -> None:
        """Its blocks are there now; forget others, while requests that run use so many tokens."""
        for key in reversed(list(_chain(adapter, ids))):  # the beginning is forgotten last
            self._blocks.pop(key, None)
            self._blocks[key] = None
        most = max(0, self._kv_tokens - used_tokens) // BLOCK_TOKENS
        while len(self._blocks) > most:
            self._blocks.popitem(last=False)


def _chain(adapter: str, ids: Sequence[int]) -> Iterator[int]:
    key = hash(adapter)
    for at in range(0, len(ids) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        key = hash((key, *ids[at : at + BLOCK_TOKENS]))
        yield key
