"""Wake-ups without content: whoever wakes reads the state, so that no change is missed and none is acted on twice."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Topic:
    """Says that something changed. A listener clears its event *before* it reads what there is now."""

    def __init__(self) -> None:
        self._listeners: set[asyncio.Event] = set()

    def notify(self) -> None:
        for event in self._listeners:
            event.set()

    @contextmanager
    def listen(self, event: asyncio.Event | None = None) -> Iterator[asyncio.Event]:
        """An event (or `event`) that every notify sets; set from the start, as what is now is news to the listener."""
        event = event or asyncio.Event()
        event.set()
        self._listeners.add(event)
        try:
            yield event
        finally:
            self._listeners.discard(event)
