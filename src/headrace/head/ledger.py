"""The desired state in memory, always equal to what the store has acknowledged. One task writes; all may read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from headrace.core.state import Change, State, apply
from headrace.head.store import Store
from headrace.head.topic import Topic

Decide = Callable[[State], Sequence[Change]]


class Ledger:
    """The state, and the queue of those who want it changed."""

    def __init__(self, store: Store, state: State, changed: Topic) -> None:
        self._store, self._state, self._changed = store, state, changed
        self._queue: asyncio.Queue[tuple[Decide, asyncio.Future[State]]] = asyncio.Queue()

    @property
    def state(self) -> State:
        """The newest acknowledged state; a value that does not change."""
        return self._state

    @property
    def epoch(self) -> int:
        return self._store.epoch

    async def transact(self, decide: Decide) -> State:
        """Commit what `decide` makes of the newest state and return the state after it.

        Nobody writes between the reading and the commit. What `decide` raises is raised here, and nothing is changed. A
        caller that is cancelled meanwhile does not undo a commit that has begun.
        """
        done: asyncio.Future[State] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((decide, done))
        return await done

    async def run(self) -> None:
        """Write, one after another, until cancelled."""
        while True:
            decide, done = await self._queue.get()
            if done.cancelled():
                continue
            try:
                changes = decide(self._state)
                if changes:
                    await self._store.commit(changes)
                    self._state = apply(self._state, changes)
                    self._changed.notify()
            except Exception as e:
                # To whom it concerns; the next one's write is its own affair.
                if not done.cancelled():
                    done.set_exception(e)
            else:
                if not done.cancelled():
                    done.set_result(self._state)
