"""Whether anybody needs this replica: its scheduler, which watches it, or a proxy, which has a session with it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Presence:
    """Counts who is there. Belongs to the event loop."""

    def __init__(self) -> None:
        self._there = 0
        self._somebody, self._nobody = asyncio.Event(), asyncio.Event()
        self._nobody.set()

    @contextmanager
    def somebody(self) -> Iterator[None]:
        """One more is there for the length of the block."""
        self._there += 1
        self._somebody.set()
        self._nobody.clear()
        try:
            yield
        finally:
            self._there -= 1
            if not self._there:
                self._somebody.clear()
                self._nobody.set()

    async def alone(self, limit_s: float) -> str:
        """Return when nobody has been there for `limit_s` without a break, and say so."""
        while True:
            await self._nobody.wait()
            try:
                async with asyncio.timeout(limit_s):
                    await self._somebody.wait()
            except TimeoutError:
                return f"neither its scheduler nor a proxy was there for {limit_s:g} s"
