"""A cheap client: one process, epoll and raw sockets. While it measures it only stores what comes, and when.

Answers are read afterwards: every stream must have brought exactly the tokens it was to bring.
"""

from __future__ import annotations

import itertools
import multiprocessing
import re
import resource
import select
import socket
import time
from array import array
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

import httptools

CONTENT = re.compile(rb'"content": ?"((?:[^"\\]|\\.)*)"')
USAGE = re.compile(rb'"completion_tokens": ?(\d+)')
LIMIT_S = 240.0
KEY = "sk-" + "0123456789abcdef" * 4  # LiteLLM does not start without one; the others do not look at it
_END = b"0\r\n\r\n"


class Failed(Exception):
    """An answer was not what was asked for."""


@dataclass(frozen=True)
class Load:
    """Streams that begin evenly over `ramp_s` and are each to bring `tokens` tokens.

    expected: the text of every answer, whose tokens are words with a leading space; "": only what usage says counts.
    """

    port: int
    body: bytes
    streams: int
    tokens: int
    expected: str = ""
    ramp_s: float = 1.0
    path: str = "/v1/chat/completions"
    host: str = "127.0.0.1"


@dataclass(frozen=True)
class Answers:
    """What came: seconds, on the system's monotonic clock where they are times."""

    ttft_s: Sequence[float]
    gap_s: Sequence[float]  # between one stream's tokens; those that came together are 0 apart
    token_at: Sequence[float]  # all streams', ascending; where only usage counts, of events with text
    tokens: int
    reads: int
    cpu_s: float
    begun_at: float
    ended_at: float

    def tokens_between(self, begin: float, end: float) -> int:
        return bisect(self.token_at, end) - bisect(self.token_at, begin)


@dataclass(frozen=True)
class Calls:
    """Short calls without streaming, one after another on each of `connections`."""

    port: int
    body: bytes
    connections: int
    count: int
    path: str = "/v1/chat/completions"


@dataclass(frozen=True)
class Called:
    took_s: Sequence[float]
    wall_s: float
    cpu_s: float


def request(load: Load | Calls) -> bytes:
    head = (
        f"POST {load.path} HTTP/1.1\r\nHost: 127.0.0.1:{load.port}\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {KEY}\r\nContent-Length: {len(load.body)}\r\n\r\n"
    )
    return head.encode() + load.body


def connect(port: int, host: str = "127.0.0.1") -> socket.socket:
    s = socket.create_connection((host, port))
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    s.setblocking(False)
    return s


@dataclass(slots=True)
class _Stream:
    socket: socket.socket
    begun_at: float
    unsent: memoryview
    reads: list[tuple[float, bytes]] = field(default_factory=list)

    def send(self) -> bool:
        """True when all is sent."""
        while self.unsent:
            try:
                self.unsent = self.unsent[self.socket.send(self.unsent) :]
            except BlockingIOError:
                return False
        return True


def stream(load: Load, tell: Connection) -> Answers:
    """Tells "begun" when every stream has its first bytes, "ending" when one has its last, "ended" when all have."""
    data_to_send = memoryview(request(load))
    now = time.monotonic
    poll = select.epoll()
    live: dict[int, _Stream] = {}
    ended: list[_Stream] = []
    silent = load.streams
    begun_at, cpu = now(), time.process_time()
    started = 0
    while started < load.streams or live:
        due = begun_at + load.ramp_s * started / load.streams
        while started < load.streams and now() >= due:
            s = _Stream(connect(load.port, load.host), now(), data_to_send)
            live[s.socket.fileno()] = s
            sent = s.send()
            poll.register(s.socket.fileno(), select.EPOLLIN | (0 if sent else select.EPOLLOUT))
            started += 1
            due = begun_at + load.ramp_s * started / load.streams
        for fd, what in poll.poll(max(0.0, due - now()) if started < load.streams else 1.0):
            s = live[fd]
            if what & select.EPOLLOUT and s.send():
                poll.modify(fd, select.EPOLLIN)
            if not what & ~select.EPOLLOUT:
                continue
            data = s.socket.recv(262144)
            if not s.reads:
                silent -= 1
                if not silent:
                    tell.send("begun")
            s.reads.append((now(), data))
            end = data[-5:] if len(data) >= 5 else b"".join(d for _, d in s.reads[-3:])[-5:]
            if not data or end == _END:
                if not ended:
                    tell.send("ending")
                poll.unregister(fd)
                s.socket.close()
                ended.append(live.pop(fd))
        if now() - begun_at > LIMIT_S:
            raise Failed(f"{len(live)} of {load.streams} streams had not ended after {LIMIT_S:g} s")
    cpu, ended_at = time.process_time() - cpu, now()
    tell.send("ended")
    return read_all(load, ended, begun_at, ended_at, cpu)


class _Body:
    """Takes the body out of an answer's chunks."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.parser = httptools.HttpResponseParser(self)

    def on_body(self, body: bytes) -> None:
        self.data += body


def read_all(load: Load, streams: list[_Stream], begun_at: float, ended_at: float, cpu_s: float) -> Answers:
    first, gaps, times = array("d"), array("d"), array("d")
    for s in streams:
        at = read(load, s)
        first.append(at[0] - s.begun_at)
        gaps.extend(b - a for a, b in itertools.pairwise(at))
        times.extend(at)
    reads = sum(len(s.reads) for s in streams)
    return Answers(first, gaps, array("d", sorted(times)), load.streams * load.tokens, reads, cpu_s, begun_at, ended_at)


def read(load: Load, s: _Stream) -> list[float]:
    """When each token came. Failed unless they are all there."""
    body = _Body()
    at: list[float] = []
    said: list[bytes] = []
    done = 0
    for when, data in s.reads:
        if data:
            body.parser.feed_data(data)
        whole = body.data.rfind(b"\n\n", done) + 2
        if whole < 2:
            continue
        for piece in CONTENT.findall(body.data, done, whole):
            said.append(piece)
            at.extend([when] * (piece.count(b" ") if load.expected else bool(piece)))
        done = whole
    status = body.parser.get_status_code()
    if status != 200 or b"data: [DONE]" not in body.data[-100:]:
        raise Failed(f"an answer was cut, status {status}: {bytes(body.data[-300:])!r}")
    if load.expected:
        if b"".join(said) != load.expected.encode():
            raise Failed(f"an answer is not what was to be said: {len(at)} of {load.tokens} tokens")
    elif not (told := USAGE.findall(body.data)) or int(told[-1]) != load.tokens:
        raise Failed(f"usage says {told[-1:]} of {load.tokens} tokens")
    return at or [s.reads[0][0]]


class _Caller:
    """One connection, one call after another."""

    def __init__(self, port: int) -> None:
        self.socket = connect(port)
        self.socket.setblocking(True)  # it only waits where a long request does not fit into the socket
        self.parser = httptools.HttpResponseParser(self)
        self.begun_at = 0.0
        self.done = False
        self.body = b""

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.done = True

    def call(self, data: bytes) -> None:
        self.done, self.body, self.begun_at = False, b"", time.monotonic()
        self.parser = httptools.HttpResponseParser(self)
        self.socket.sendall(data)


def call(calls: Calls) -> Called:
    data = request(calls)
    callers = {c.socket.fileno(): c for c in (_Caller(calls.port) for _ in range(calls.connections))}
    poll = select.epoll()
    took: list[float] = []
    begin, cpu = time.monotonic(), time.process_time()
    asked = 0
    for fd, c in callers.items():
        poll.register(fd, select.EPOLLIN)
        if asked < calls.count:
            c.call(data)
            asked += 1
    while len(took) < calls.count:
        for fd, _ in poll.poll(1.0):
            c = callers[fd]
            if not (got := c.socket.recv(65536)):
                raise Failed("a connection was closed between calls")
            c.parser.feed_data(got)
            if c.done:
                if c.parser.get_status_code() != 200:
                    raise Failed(f"a call was answered {c.parser.get_status_code()}: {c.body[-300:]!r}")
                took.append(time.monotonic() - c.begun_at)
                if asked < calls.count:
                    c.call(data)
                    asked += 1
        if time.monotonic() - begin > LIMIT_S:
            raise Failed(f"{len(took)} of {calls.count} calls were answered in {LIMIT_S:g} s")
    wall_s, cpu = time.monotonic() - begin, time.process_time() - cpu
    for c in callers.values():
        c.socket.close()
    return Called(array("d", took), wall_s, cpu)


def hold(load: Load, tell: Connection) -> str:
    """Streams that are open and get nothing, until something is said on the pipe."""
    data = request(load)
    sockets = []
    for _ in range(load.streams):
        sockets.append(connect(load.port))
        sockets[-1].send(data)
        time.sleep(0.001)
    tell.send("held")
    tell.recv()
    for s in sockets:
        s.close()
    return "released"


def serve(tell: Connection) -> None:
    """The generator's process: a Load, Calls or ("hold", Load) in, the figures or a Failed out."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    while (order := tell.recv()) is not None:
        try:
            if isinstance(order, Load):
                tell.send(stream(order, tell))
            elif isinstance(order, Calls):
                tell.send(call(order))
            else:
                tell.send(hold(order[1], tell))
        except (Failed, OSError, httptools.HttpParserError, BlockingIOError) as e:
            tell.send(Failed(str(e) or type(e).__name__))


class Generator:
    """Drives a generator's process; a context manager."""

    def __enter__(self) -> Generator:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        return self

    def __exit__(self, *error: object) -> None:
        self._pipe.send(None)
        self._process.join(10)

    def send(self, order: object) -> None:
        self._pipe.send(order)

    def next(self) -> object:
        """What it says next. Failed, if that is what it says."""
        if not self._pipe.poll(LIMIT_S + 60):
            raise Failed("the generator said nothing")
        said = self._pipe.recv()
        if isinstance(said, Failed):
            raise said
        return said
