"""One proxy's session: what is on its way to the proxy, and the frame of the step at hand."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from headrace.core.types import Finished, Frame, Load, Rejected, Result, Started, TokenLogprob

if TYPE_CHECKING:
    from headrace.replica.streams import Stream

MAX_FRAMES = 1024
MAX_BYTES = 8 * 1024 * 1024


@dataclass(slots=True)
class _Columns:
    streams: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    started: list[Started] = field(default_factory=list)
    finished: list[Finished] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    logprobs: list[tuple[int, tuple[TokenLogprob, ...]]] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)

    def size(self) -> int:
        """About how many bytes the frame takes."""
        rows = 16 * len(self.streams) + 4 * len(self.token_ids) + sum(map(len, self.texts)) * 2
        rows += sum(16 + 4 * len(r.values) for r in self.results)
        others = 32 * (len(self.started) + len(self.finished) + len(self.rejected))
        return 64 + rows + others + sum(32 * (1 + len(t.top)) for _, tokens in self.logprobs for t in tokens)


class Session:
    """Collects a step's news and queues it as one frame. Belongs to the event loop."""

    def __init__(self, proxy_id: str) -> None:
        self.proxy_id = proxy_id
        self.streams: dict[int, Stream] = {}
        self.ended = asyncio.Event()
        self.why_ended = ""
        self._columns = _Columns()
        self._queue: deque[tuple[Frame, int]] = deque()
        self._queued_bytes = 0
        self._wake = asyncio.Event()
        self._written = asyncio.Event()
        self.sent_at = 0.0

    @property
    def columns(self) -> _Columns:
        return self._columns

    def send(self, load: Load | None, draining: bool, now: float) -> None:
        """Queue what was collected, with the load, as one frame. Ends the session if the proxy does not read."""
        if self.ended.is_set():
            return
        c, self._columns = self._columns, _Columns()
        size = c.size()
        frame = Frame(
            c.streams, c.positions, c.counts, c.token_ids, c.texts, c.started, c.finished, c.rejected, c.logprobs,
            load, draining, results=c.results,
        )  # fmt: skip
        self._queue.append((frame, size))
        self._queued_bytes += size
        self.sent_at = now
        self._wake.set()
        self._written.clear()
        if len(self._queue) > MAX_FRAMES or self._queued_bytes > MAX_BYTES:
            self.end(f"Proxy {self.proxy_id} does not read its frames.")

    async def next(self) -> Frame:
        """The next frame to write. Asking for it says that the one before is written."""
        while not self._queue:
            self._written.set()
            self._wake.clear()
            await self._wake.wait()
        frame, size = self._queue.popleft()
        self._queued_bytes -= size
        return frame

    async def written(self) -> None:
        """Return when nothing is left to write."""
        await self._written.wait()

    def end(self, why: str = "") -> None:
        """No more frames; the handler closes the call."""
        if not self.ended.is_set():
            self.why_ended = why
            self.ended.set()
            self._written.set()
