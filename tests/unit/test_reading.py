"""Whose prompt is read next, beside the loop."""

from __future__ import annotations

import asyncio
import threading
from typing import Any, cast

import pytest

from headrace.core.streams import Submit, TextPrompt
from headrace.errors import InvalidRequest, Overloaded
from headrace.replica import reading
from headrace.replica.prepared import Ready
from headrace.replica.reading import SHORT_BYTES, Reading

WAIT_S = 30.0
LONG = "x" * (SHORT_BYTES + 1)


class Reader:
    """Reads what has been let go; the rest waits. `texts`: in the order in which reading began."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.begun: list[int] = []
        self.free: set[int] = set()

    def __call__(self, engine_id: int, submit: Submit) -> Ready:
        with self.changed:
            self.begun.append(engine_id)
            self.changed.notify_all()
            assert self.changed.wait_for(lambda: engine_id in self.free, WAIT_S)
        if engine_id == 13:
            raise InvalidRequest("no")
        return cast("Ready", engine_id)

    def let(self, *ids: int) -> None:
        with self.changed:
            self.free.update(ids)
            self.changed.notify_all()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(WAIT_S):
            while len(self.begun) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.005)


def submit(text: str = "a") -> Submit:
    return Submit(1, "r", TextPrompt(text))


async def test_the_short_are_not_behind_the_long() -> None:
    read = Reader()
    r = Reading(read)
    async with asyncio.TaskGroup() as tasks:
        long = [tasks.create_task(r.ready(i, submit(LONG), "greedy")) for i in range(3)]
        await read.until(1)
        read.let(100)
        assert cast("Any", await r.ready(100, submit(), "other")) == 100
        assert not any(t.done() for t in long)
        read.let(*range(3))
    r.close()


async def test_callers_take_turns() -> None:
    read = Reader()
    r = Reading(read)
    async with asyncio.TaskGroup() as tasks:
        for i in range(5):
            tasks.create_task(r.ready(i, submit(LONG), "greedy"))
        await read.until(1)
        tasks.create_task(r.ready(50, submit(LONG), "modest"))
        await asyncio.sleep(0)
        read.let(*range(5), 50)
    assert read.begun.index(50) <= 2
    r.close()


async def test_what_nobody_wants_is_not_read() -> None:
    read = Reader()
    r = Reading(read)
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(r.ready(1, submit(LONG), ""))
        await read.until(1)
        told = tasks.create_task(r.ready(2, submit(LONG), ""))
        cancelled = tasks.create_task(r.ready(3, submit(LONG), ""))
        await asyncio.sleep(0)
        r.forget(2)
        cancelled.cancel()
        assert await told is None
        read.let(1, 2, 3)
        assert cast("Any", await first) == 1
        read.let(4)
        await r.ready(4, submit(LONG), "")
    assert read.begun == [1, 4]
    r.close()


async def test_errors_and_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MAX_WAITING_BYTES", 3 * len(LONG))
    read = Reader()
    r = Reading(read)
    read.let(13)
    with pytest.raises(InvalidRequest):
        await r.ready(13, submit(), "")
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(r.ready(1, submit(LONG * 9), ""))  # of any size, where nobody waits
        await read.until(2)
        tasks.create_task(r.ready(2, submit(LONG), ""))
        tasks.create_task(r.ready(3, submit(LONG), ""))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded) as e:
            await r.ready(4, submit(LONG), "")
        assert e.value.status == 429
        read.let(1, 2, 3)
    r.close()
