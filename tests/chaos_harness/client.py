"""One HTTP exchange over a raw connection, as cheap as Python has it: the clients share two cores with the system."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

_STALL_S = 75.0  # longer than anything that the system promises to decide
_COME_BACK_S = 8.0  # for another proxy to answer; replicas keep the stream not much longer


@dataclass
class Seen:
    """What one client has seen when its exchange is over."""

    status: str = "broken"  # completed, error, cancelled, broken, refused, stalled
    http: int = 0
    text: str = ""
    pieces: list[tuple[float, int, int]] = field(default_factory=list)  # (time, characters so far, moves so far)
    places: list[int] = field(default_factory=list)  # tokens so far, by the ids of the events
    finishes: list[str] = field(default_factory=list)
    done: int = 0
    after_end: int = 0  # events after the end marker
    error: dict[str, Any] | None = None
    tokens: int | None = None  # as `usage` says
    why: str = ""
    last_id: str = ""  # of the last event that had one
    returns: list[tuple[float, int]] = field(default_factory=list)  # when it came back, and the HTTP status


class Exchange(asyncio.Protocol):
    """Sends one POST; `over` is set with its end. Server-sent events are taken in as they come, on top of `seen`."""

    def __init__(
        self, request: bytes, clock: Callable[[], float], on_piece: Callable[[Exchange], None], seen: Seen
    ) -> None:
        self.seen = seen
        self.over = asyncio.Event()
        self.transport: asyncio.Transport | None = None
        self.heard_at = clock()
        self._request, self._clock, self._on_piece = request, clock, on_piece
        self._raw = bytearray()
        self._body = bytearray()
        self._length: int | None = None
        self._events = self._chunked = self._whole = False
        self._came_back = bool(seen.last_id)
        self._moves = int(seen.last_id.partition(".")[0] or 0)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._raw += data
        if not self.seen.http:
            head, found, rest = bytes(self._raw).partition(b"\r\n\r\n")
            if not found:
                return
            self._read_head(head.decode("latin-1"))
            self._raw = bytearray(rest)
        self._take_body()
        if self._events:
            self._take_events()
        if self._whole:
            self._end()

    def _read_head(self, head: str) -> None:
        first, *lines = head.split("\r\n")
        self.seen.http = int(first.split()[1])
        if self._came_back:
            self.seen.returns.append((round(self._clock(), 3), self.seen.http))
        fields = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
        self._chunked = fields.get("transfer-encoding") == "chunked"
        self._length = int(fields["content-length"]) if "content-length" in fields else None
        self._events = fields.get("content-type", "").startswith("text/event-stream")

    def _take_body(self) -> None:
        if not self._chunked:
            self._body, self._raw = self._body + self._raw, bytearray()
            self._whole = self._length is not None and len(self._body) >= self._length
            return
        while (end := self._raw.find(b"\r\n")) >= 0:
            size = int(self._raw[:end], 16)
            if len(self._raw) < end + 2 + size + 2:
                return
            self._body += self._raw[end + 2 : end + 2 + size]
            del self._raw[: end + size + 4]
            if size == 0:
                self._whole = True
                return

    def _take_events(self) -> None:
        *events, rest = bytes(self._body).split(b"\n\n")
        self._body = bytearray(rest)
        for event in events:
            for line in sorted(event.split(b"\n"), reverse=True):  # the id first: it says where the text is from
                if line.startswith(b"id: "):
                    self.seen.last_id = line[4:].decode()
                    moves, tokens, *_ = self.seen.last_id.split(".")
                    self._moves = int(moves)
                    self.seen.places.append(int(tokens))
                elif line.startswith(b"data: "):
                    self.heard_at = self._clock()  # comments are no news
                    self._take_event(line[6:])

    def _take_event(self, data: bytes) -> None:
        seen = self.seen
        if seen.done or seen.error:
            seen.after_end += 1
        if data == b"[DONE]":
            seen.done += 1
            return
        event = json.loads(data)
        if error := event.get("error"):
            seen.error = error
            return
        if usage := event.get("usage"):
            seen.tokens = usage["completion_tokens"]
        for choice in event["choices"]:
            if seen.finishes and (choice.get("text") or (choice.get("delta") or {}).get("content")):
                seen.after_end += 1
            if text := choice["text"] if "text" in choice else choice["delta"].get("content"):
                seen.text += text
                seen.pieces.append((self._clock(), len(seen.text), self._moves))
                self._on_piece(self)
            if choice["finish_reason"]:
                seen.finishes.append(choice["finish_reason"])

    def _end(self) -> None:
        """The response is whole."""
        seen = self.seen
        if self._events:
            seen.status = "error" if seen.error else "completed" if seen.done else "broken"
        elif seen.http == 200:
            answer = json.loads(self._body)
            choice = answer["choices"][0]
            seen.text = choice["text"] if "text" in choice else choice["message"]["content"]
            seen.finishes, seen.done = [choice["finish_reason"]], 1
            seen.tokens, seen.status = answer["usage"]["completion_tokens"], "completed"
        else:
            seen.status = "error"
            try:
                seen.error = json.loads(self._body)["error"]
            except (ValueError, KeyError):
                seen.why = f"an error without its object: {bytes(self._body[:200])!r}"
        self.over.set()
        if self.transport:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.over.is_set():
            self.seen.why = str(exc) if exc else "the connection was closed before the end"
            if self.seen.error:  # what came before was a typed error; plain closing is how that may end
                self.seen.status = "error"
            self.over.set()

    def leave(self) -> None:
        """Go away, rudely."""
        if not self.over.is_set():
            self.seen.status = "cancelled"
            self.over.set()
            if self.transport:
                self.transport.abort()


async def exchange(
    address: tuple[str, int], path: str, body: dict[str, Any], request_id: str, clock: Callable[[], float],
    on_piece: Callable[[Exchange], None], seen: Seen | None = None,
) -> Seen:  # fmt: skip
    """POST `body` and follow the answer to its end, however that comes; on top of `seen` for who comes back."""
    data = json.dumps(body).encode()
    seen = seen or Seen()
    place = f"Last-Event-ID: {seen.last_id}\r\n" if seen.last_id else "X-Event-Ids: true\r\n"
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {address[0]}:{address[1]}\r\nContent-Type: application/json\r\n"
        f"X-Request-Id: {request_id}\r\n{place}Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    )
    made = Exchange(head.encode() + data, clock, on_piece, seen)
    loop = asyncio.get_running_loop()
    try:
        await asyncio.wait_for(loop.create_connection(lambda: made, *address), 10)
    except (OSError, TimeoutError) as e:
        seen.status, seen.why = "refused", str(e) or "no connection within 10 s"
        return seen
    try:
        while not made.over.is_set():
            try:
                await asyncio.wait_for(made.over.wait(), 5)
            except TimeoutError:
                if clock() - made.heard_at > _STALL_S:
                    seen.status, seen.why = "stalled", f"nothing was heard for {_STALL_S:g} s"
                    break
    finally:
        if made.transport:
            made.transport.close() if made.over.is_set() else made.transport.abort()
    return seen


async def exchange_returning(
    address: tuple[str, int], path: str, body: dict[str, Any], request_id: str, clock: Callable[[], float],
    on_piece: Callable[[Exchange], None],
) -> Seen:  # fmt: skip
    """As `exchange`, by a client that comes back to whoever is there when its connection breaks off in mid-stream."""
    seen = await exchange(address, path, body, request_id, clock, on_piece)
    lost_at = clock()
    while seen.status in ("broken", "refused") and seen.last_id and clock() < lost_at + _COME_BACK_S:
        # Without an end marker it does not know the end yet, and is told again.
        seen.status, seen.http, seen.why, seen.finishes, seen.tokens = "broken", 0, "", [], None
        await exchange(address, path, body, request_id, clock, on_piece, seen)
        if seen.http:
            lost_at = clock()
        else:
            await asyncio.sleep(0.1)
    return seen
