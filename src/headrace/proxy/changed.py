"""A wake-up for any number of waiters who look at shared state again after every change."""

from __future__ import annotations

import asyncio
from typing import Any


class Changed:
    """`notify` wakes everyone who waits now. Look at the state, then wait, with no await between the two."""

    def __init__(self) -> None:
        self._next: asyncio.Future[None] | None = None

    def notify(self) -> None:
        if self._next is not None:
            if not self._next.done():
                self._next.set_result(None)
            self._next = None

    async def wait(self, timeout_s: float | None = None, *others: asyncio.Future[Any]) -> bool:
        """Wait for the next change, or for one of `others`; False if `timeout_s` passed without one."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        done, _ = await asyncio.wait([self._next, *others], timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        return bool(done)
