"""The head's end of one scheduler's session: what is to be said to it, and the logs that are read through it."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from headrace.core.types import NodeInfo, ReplicaSpec
from headrace.errors import NotFound, Unavailable

_MAX_LOG_CHUNKS = 1024  # unread, of one reader


@dataclass(frozen=True, slots=True)
class Desired:
    replicas: tuple[ReplicaSpec, ...]


@dataclass(frozen=True, slots=True)
class ReadLog:
    request: int
    replica_id: str
    tail_lines: int
    follow: bool


@dataclass(frozen=True, slots=True)
class StopLog:
    request: int


@dataclass(frozen=True, slots=True)
class Fence:
    reason: str


@dataclass(frozen=True, slots=True)
class LogChunk:
    data: bytes
    end: bool = False
    error: str = ""


Outgoing = Desired | ReadLog | StopLog | Fence


class NodeSession:
    """Messages for one scheduler. Of Desired only the newest that was not sent yet is kept."""

    def __init__(self, info: NodeInfo, joined_at: float) -> None:
        self.info, self.joined_at = info, joined_at
        self.reported = False
        self._queue: deque[Outgoing] = deque()
        self._desired: Desired | None = None
        self._offered: Desired | None = None
        self._news = asyncio.Event()
        self._ended = False
        self._numbers = itertools.count(1)
        self._logs: dict[int, asyncio.Queue[LogChunk]] = {}

    def offer(self, replicas: tuple[ReplicaSpec, ...]) -> None:
        """Everything that the node should run; sent if it differs from what was offered last."""
        desired = Desired(replicas)
        if desired != self._offered and not self._ended:
            self._desired = self._offered = desired
            self._news.set()

    def end(self, fence: str = "") -> None:
        """Nothing more is sent but, if given, why the scheduler is fenced. Those who read logs are told."""
        if self._ended:
            return
        self._ended, self._desired = True, None
        self._queue.clear()
        if fence:
            self._queue.append(Fence(fence))
        self._news.set()
        for queue in self._logs.values():
            queue.put_nowait(LogChunk(b"", end=True, error=f"node {self.info.node_id} has gone"))

    async def next(self) -> Outgoing | None:
        """The next message; None: there will be no more."""
        while True:
            if self._queue:
                return self._queue.popleft()
            if self._desired is not None:
                desired, self._desired = self._desired, None
                return desired
            if self._ended:
                return None
            self._news.clear()
            await self._news.wait()

    async def read_log(self, replica_id: str, tail_lines: int, follow: bool) -> AsyncGenerator[bytes, None]:
        """The node's answer to ReadLog, piece by piece. NotFound if it says why there is none."""
        if self._ended:
            raise Unavailable(f"Node {self.info.node_id} is not connected; its logs are on that machine.")
        number = next(self._numbers)
        queue = self._logs[number] = asyncio.Queue[LogChunk]()
        self._send(ReadLog(number, replica_id, tail_lines, follow))
        ended = False
        try:
            while not ended:
                chunk = await queue.get()
                ended = chunk.end or bool(chunk.error)
                if chunk.error:
                    error = Unavailable if self._ended else NotFound
                    raise error(f"Cannot read the log of {replica_id}: {chunk.error}.")
                if chunk.data:
                    yield chunk.data
        finally:
            del self._logs[number]
            if not ended:
                self._send(StopLog(number))

    def log_chunk(self, number: int, chunk: LogChunk) -> None:
        """A piece of a log has come in. A reader that does not keep up is cut, for the node's reports wait behind."""
        queue = self._logs.get(number)
        if queue is None:
            return
        if queue.qsize() < _MAX_LOG_CHUNKS or chunk.end:
            queue.put_nowait(chunk)
        elif queue.qsize() == _MAX_LOG_CHUNKS:
            queue.put_nowait(LogChunk(b"", end=True, error="the reader does not keep up"))
            self._send(StopLog(number))

    def _send(self, message: Outgoing) -> None:
        if not self._ended:
            self._queue.append(message)
            self._news.set()
