"""Questions about single requests, which only the proxies can answer: their records stay with them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from headrace.core.story import Explanation, Story

ANSWER_S = 1.0


@dataclass(slots=True)
class _Open:
    """A question that is being asked. `left`: proxies that have not answered."""

    left: int
    stories: list[Story] = field(default_factory=list)
    done: asyncio.Event = field(default_factory=asyncio.Event)


class Questions:
    """Every proxy listens once; whoever asks waits for all of them, but not for long."""

    def __init__(self) -> None:
        self._listeners: set[asyncio.Queue[tuple[int, str]]] = set()
        self._open: dict[int, _Open] = {}
        self._ids = itertools.count(1)

    async def listen(self) -> AsyncGenerator[tuple[int, str]]:
        """The questions for one proxy, as they come: their number, and the request's id."""
        queue: asyncio.Queue[tuple[int, str]] = asyncio.Queue()
        self._listeners.add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._listeners.discard(queue)

    def answer(self, number: int, story: Story | None) -> None:
        """What one proxy says. Too late is no harm."""
        question = self._open.get(number)
        if question is None:
            return
        if story is not None:
            question.stories.append(story)
        question.left -= 1
        if question.left <= 0:
            question.done.set()

    async def ask(self, request_id: str) -> Explanation:
        """What the proxies that are there know of a request."""
        number, asked = next(self._ids), len(self._listeners)
        question = self._open[number] = _Open(asked)
        for queue in self._listeners:
            queue.put_nowait((number, request_id))
        try:
            async with asyncio.timeout(ANSWER_S):
                if asked:
                    await question.done.wait()
        except TimeoutError:
            pass  # what has come is what there is
        finally:
            del self._open[number]
        stories = sorted(question.stories, key=lambda s: s.received_unix_s)
        return Explanation(asked, asked - max(question.left, 0), tuple(stories))
