"""One proxy's session: what is on its way to the proxy, and the frame of the step at hand."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from headrace.core.streams import Finished, Frame, Parsed, Rejected, Result, Started, TokenLogprob
from headrace.core.types import Load

if TYPE_CHECKING:
    from headrace.replica.rows import Stream

MAX_FRAMES = 1024
MAX_BYTES = 8 * 1024 * 1024
MAX_MERGED_BYTES = 512 * 1024
"""A frame grows no more; a message of gRPC may have 4 MiB."""
MAX_ENTRIES = 128 * 1024
"""Log-probabilities of prompts in one frame, about; more go into several frames."""


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
    parsed: list[Parsed] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    prompt_logprobs: list[tuple[int, tuple[TokenLogprob, ...]]] = field(default_factory=list)
    prefixes: dict[int, bool] = field(default_factory=dict)
    took_prompts: bool = False

    def size(self) -> int:
        """About how many bytes of a flow the frame has: without what a stream brings once, which it may be late for."""
        rows = 16 * len(self.streams) + 4 * len(self.token_ids) + sum(map(len, self.texts)) * 2
        others = 32 * (len(self.started) + len(self.finished) + len(self.rejected))
        others += sum(2 * len(s.echo) for s in self.started) + 8 * len(self.prefixes)
        for p in self.parsed:
            others += 32 + 2 * len(p.reasoning) + sum(64 + 2 * len(c.arguments) for c in p.tool_calls)
        return 64 + rows + others + sum(32 * (1 + len(t.top)) for _, tokens in self.logprobs for t in tokens)

    @property
    def plain(self) -> bool:
        """Whether what comes later may go into the same frame: nothing here has a place among its stream's texts."""
        return not (self.logprobs or self.parsed or self.results or self.prompt_logprobs)

    def add(self, later: _Columns) -> None:
        """Put what came later behind what is here; both plain."""
        self.streams += later.streams
        self.positions += later.positions
        self.counts += later.counts
        self.token_ids += later.token_ids
        self.texts += later.texts
        self.started += later.started
        self.finished += later.finished
        self.rejected += later.rejected
        self.prefixes |= later.prefixes
        self.took_prompts |= later.took_prompts

    def join_rows(self) -> None:
        """Make one row of all that a stream has, so that it leaves as one event."""
        at: dict[int, int] = {}
        ids: list[list[int]] = []
        texts: list[list[str]] = []
        positions: list[int] = []
        begin = 0
        for number, position, count, text in zip(self.streams, self.positions, self.counts, self.texts, strict=True):
            if (row := at.get(number)) is None:
                row = at[number] = len(ids)
                ids.append([])
                texts.append([])
                positions.append(position)
            ids[row] += self.token_ids[begin : begin + count]
            texts[row].append(text)
            begin += count
        self.streams, self.positions, self.counts = list(at), positions, [len(i) for i in ids]
        self.token_ids = [i for row in ids for i in row]
        self.texts = ["".join(t) for t in texts]


@dataclass(slots=True)
class _Queued:
    """A frame that waits to be written. `merged`: of several steps."""

    columns: _Columns
    size: int
    load: Load | None
    draining: bool
    fingerprint: str = ""
    keeps_prefixes: bool = False
    merged: bool = False

    def frame(self) -> Frame:
        c = self.columns
        if self.merged:
            c.join_rows()
        return Frame(
            c.streams, c.positions, c.counts, c.token_ids, c.texts, c.started, c.finished, c.rejected, c.logprobs,
            self.load, self.draining, c.parsed, c.results, c.prompt_logprobs, self.fingerprint, c.prefixes,
            self.keeps_prefixes, c.took_prompts,
        )  # fmt: skip


class Session:
    """Collects a step's news and queues it as one frame; while that waits, the next steps' join it.

    Belongs to the event loop.
    """

    def __init__(self, proxy_id: str) -> None:
        self.proxy_id = proxy_id
        self.streams: dict[int, Stream] = {}
        self.ended = asyncio.Event()
        self.why_ended = ""
        self._columns = _Columns()
        self._queue: deque[_Queued] = deque()
        self._queued_bytes = 0
        self._wake = asyncio.Event()
        self._written = asyncio.Event()
        self.sent_at = 0.0
        self._soon: asyncio.TimerHandle | None = None

    @property
    def columns(self) -> _Columns:
        return self._columns

    def send(
        self,
        load: Load | None,
        draining: bool,
        now: float,
        fingerprint: str = "",
        keeps_prefixes: bool = False,
    ) -> None:
        """Queue what was collected, with the load, as one frame. Ends the session if the proxy does not read."""
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        if self.ended.is_set():
            return
        c, self._columns = self._columns, _Columns()
        if c.prompt_logprobs:
            self._send_prompts(c, draining)
        size = c.size()
        last = self._queue[-1] if self._queue else None
        if last and last.size + size <= MAX_MERGED_BYTES and c.plain and last.columns.plain:
            last.columns.add(c)
            last.size, last.load, last.draining, last.merged = last.size + size, load, draining, True
        else:
            self._queue.append(_Queued(c, size, load, draining, fingerprint, keeps_prefixes))
        self._queued_bytes += size
        self.sent_at = now
        self._wake.set()
        self._written.clear()
        if len(self._queue) > MAX_FRAMES or self._queued_bytes > MAX_BYTES:
            self.end(f"Proxy {self.proxy_id} does not read its frames.")

    def send_within(self, seconds: float, send: Callable[[Session], None]) -> None:
        """Have `send` called for what was collected, unless a frame goes out before."""
        if self._soon is None and not self.ended.is_set():
            self._soon = asyncio.get_running_loop().call_later(seconds, send, self)

    def _send_prompts(self, c: _Columns, draining: bool) -> None:
        """Queue all but the last of them in frames of their own, none too large to be sent."""
        entries, part = 0, []
        while len(c.prompt_logprobs) > 1:
            part.append(c.prompt_logprobs.pop(0))
            entries += sum(1 + len(t.top) for t in part[-1][1])
            if entries >= MAX_ENTRIES:
                part_of = _Columns(started=c.started, prompt_logprobs=part)
                self._queue.append(_Queued(part_of, 0, None, draining))
                c.started, entries, part = [], 0, []
        c.prompt_logprobs[:0] = part

    def discard(self) -> None:
        """Forget what was collected."""
        self._columns = _Columns()

    async def next(self) -> Frame:
        """The next frame to write. Asking for it says that the one before is written."""
        while not self._queue:
            self._written.set()
            self._wake.clear()
            await self._wake.wait()
        first = self._queue.popleft()
        self._queued_bytes -= first.size
        return first.frame()

    async def written(self) -> None:
        """Return when nothing is left to write."""
        await self._written.wait()

    def end(self, why: str = "") -> None:
        """No more frames; the handler closes the call."""
        if not self.ended.is_set():
            self.why_ended = why
            if self._soon is not None:
                self._soon.cancel()
            self.ended.set()
            self._written.set()
