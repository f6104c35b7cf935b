"""What a replica says of itself, and who is told when it changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

from headrace.core.phase import Phase, move
from headrace.core.types import Load, ReplicaStatus


class StatusBoard:
    """The replica's status. Everything here belongs to the event loop."""

    def __init__(self, status: ReplicaStatus) -> None:
        self._status = status
        self._changed = asyncio.Event()
        self.load: Callable[[], Load] = Load

    @property
    def now(self) -> ReplicaStatus:
        """The status with the load of this moment."""
        return replace(self._status, load=self.load())

    def change(self, phase: Phase | None = None, **fields: Any) -> None:
        """Set fields (and the phase, if the table allows) and wake the watchers."""
        old = self._status
        new = move(old.replica_id, old.phase, phase, str(fields.get("reason", ""))) if phase else old.phase
        self._status = replace(old, phase=new, **fields)
        self._changed.set()
        self._changed = asyncio.Event()

    async def follow(self, at_least_every_s: float) -> AsyncIterator[ReplicaStatus]:
        """The status now, at every change, and after so many seconds without one."""
        while True:
            # Taken before the status is read: what changes while a slow reader has it is not missed.
            changed = self._changed
            yield self.now
            try:
                await asyncio.wait_for(changed.wait(), at_least_every_s)
            except TimeoutError:
                pass
