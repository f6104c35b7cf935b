"""Reading prompts beside the event loop: in two threads, each caller in turn, the short ones not behind the long ones.

A long prompt takes seconds of one core, in code that lets go of the interpreter; in more threads the engine, and other
replicas, would want for cores.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass

from headrace.core.fair import Claim, FairQueue
from headrace.core.streams import Submit
from headrace.errors import Overloaded
from headrace.replica.frontend import size_in_bytes
from headrace.replica.prepared import Ready

SHORT_BYTES = 64 * 1024
MAX_WAITING_BYTES = 64 * 1024 * 1024
"""Of prompts that wait to be read; one that finds nobody there may have any size."""
_EACH_BYTES = 512
"""That a prompt counts for, beside its text."""


@dataclass(slots=True)
class _Item:
    engine_id: int
    submit: Submit
    size: int
    result: asyncio.Future[Ready | None]


class Reading:
    """Belongs to the event loop; `read` is called in its threads."""

    def __init__(self, read: Callable[[int, Submit], Ready]) -> None:
        self._read = read
        self._loop = asyncio.get_running_loop()
        self._changed = threading.Condition()
        self._short, self._long = FairQueue[int](), FairQueue[int]()
        self._items: dict[int, _Item] = {}  # that wait, by engine id
        self._bytes = 0
        self._closed = False
        self._threads = [
            threading.Thread(target=self._run, args=(queues,), name=f"reading-{i}", daemon=True)
            for i, queues in enumerate([(self._short,), (self._long, self._short)])
        ]
        self._started = itertools.count()

    async def ready(self, engine_id: int, submit: Submit, caller: str) -> Ready | None:
        """What is to be done for `submit`; None if `forget` was told meanwhile. Errors are those of `read`.

        Overloaded if too much waits. `caller`: whose turn it is.
        """
        size = size_in_bytes(submit) + _EACH_BYTES
        item = _Item(engine_id, submit, size, self._loop.create_future())
        with self._changed:
            if self._items and self._bytes + size > MAX_WAITING_BYTES:
                raise Overloaded(
                    f"This replica has {self._bytes // 2**20} MiB of prompts to read already.", retry_after_s=1.0
                )
            self._items[engine_id] = item
            self._bytes += size
            queue = self._short if size <= SHORT_BYTES else self._long
            queue.push(engine_id, Claim(caller, cost=float(size)))
            if next(self._started) == 0:
                for thread in self._threads:
                    thread.start()
            self._changed.notify_all()
        try:
            return await item.result
        finally:
            self.forget(engine_id)

    def forget(self, engine_id: int) -> None:
        """Nobody wants it any more. Idempotent."""
        with self._changed:
            item = self._take(engine_id)
        if item is not None and not item.result.done():
            item.result.set_result(None)

    def close(self) -> None:
        """End the threads, when they are done with what they have."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _take(self, engine_id: int) -> _Item | None:
        """Hold the lock."""
        item = self._items.pop(engine_id, None)
        if item is not None:
            self._bytes -= item.size
            self._short.remove(engine_id)
            self._long.remove(engine_id)
        return item

    def _next(self, queues: tuple[FairQueue[int], ...]) -> _Item | None:
        with self._changed:
            while not self._closed:
                for queue in queues:
                    if (engine_id := queue.pop()) is not None:
                        return self._take(engine_id)
                self._changed.wait()
        return None

    def _run(self, queues: tuple[FairQueue[int], ...]) -> None:
        while item := self._next(queues):
            result: Ready | None = None
            error: Exception | None = None
            try:
                result = self._read(item.engine_id, item.submit)
            except Exception as e:
                error = e
            try:
                self._loop.call_soon_threadsafe(_settle, item.result, result, error)
            except RuntimeError:
                return  # the loop has ended
            del item, result, error  # what was long is not kept until the next one comes


def _settle(future: asyncio.Future[Ready | None], result: Ready | None, error: Exception | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
