"""Writes a response from inside a callback, without a task; holds back what a slow client does not read, up to a limit.

What comes between the first and the last message goes to the connection itself. When that does not take it, ASGI's
`send` is asked, a coroutine that waits only while the client does not read: it is driven by hand, and its future
wakes us.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

from headrace.proxy.server import UNSENT_BYTES

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

# What the transport itself holds before it makes `send` wait, and the kernel before it takes no more (server.py).
_TRANSPORT_BYTES = 64 * 1024 + UNSENT_BYTES

_LEAST_BYTES = 16 * 1024


class Connection(Protocol):
    """The client's connection; see server.py."""

    def chunk(self, data: bytes) -> bool: ...

    def abort(self) -> None:
        """Break it at once."""
        ...

    def close(self) -> None:
        """Break it when all that was written has been sent."""
        ...


class Writer:
    """One response. `start`: another `send` for its head, if wrappers want to see that.

    `on_overflow` is called once, when the client has left more than `limit_bytes` unread. One that reads nothing for
    long is cut by the connection.
    """

    __slots__ = (
        "_blocked",
        "_connection",
        "_ended",
        "_finished",
        "_held",
        "_held_bytes",
        "_last_given",
        "_limit_bytes",
        "_loop",
        "_send",
        "_send_start",
        "broken",
        "on_overflow",
        "overflowed",
        "started",
    )

    def __init__(
        self,
        send: Send,
        connection: Connection | None,
        *,
        start: Send | None = None,
        limit_bytes: int,
    ) -> None:
        self.started = False
        self.overflowed = False
        self.broken = False  # by us: the answer is not whole
        self.on_overflow: Callable[[], None] = lambda: None
        self._send = send
        self._send_start = start or send
        self._connection = connection
        self._limit_bytes = max(limit_bytes - _TRANSPORT_BYTES, _LEAST_BYTES)
        self._loop = asyncio.get_running_loop()
        self._blocked: Any = None
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._finished = False  # nothing more will come
        self._last_given = False  # the last message is with `send`
        self._ended: asyncio.Future[None] = self._loop.create_future()

    def start(self, status: int, headers: Headers) -> None:
        self.started = True
        if self._blocked is not None:
            raise RuntimeError("a response starts before anything else")
        self._drive(self._send_start({"type": "http.response.start", "status": status, "headers": headers}))

    def write(self, data: bytes) -> None:
        """Send now, or hold. After an overflow all is dropped, also if the reader is back: better an end than a gap."""
        if self._finished or self.overflowed:
            return
        if self._blocked is not None:
            self._hold(data)
        elif self._connection is None or not self._connection.chunk(data):
            self._drive(self._send({"type": "http.response.body", "body": data, "more_body": True}))

    def end(self, data: bytes = b"") -> None:
        """The last data, which is never dropped. Idempotent."""
        if self._finished:
            return
        self._finished = True
        if self._blocked is None:
            self._drive_last(data)
        else:
            self._held.append(data)

    def cut(self) -> None:
        """Break the connection: the client sees that the answer is not whole."""
        self._finished = self.broken = True
        if self._connection is not None:
            self._connection.abort()
        self._release()

    def break_off(self) -> None:
        """Break the connection when what was written is sent, so that the client sees that the answer is not whole."""
        if self._blocked is not None or self._connection is None:
            self.cut()
            return
        self._finished = self.broken = True
        self._connection.close()
        self._release()

    async def ended(self) -> None:
        """Wait until all is with the transport, or the connection was cut."""
        await asyncio.shield(self._ended)

    def close(self) -> None:
        """Drop everything; the client is gone."""
        self._finished = True
        self._release()

    def _release(self) -> None:
        self._held.clear()
        self._held_bytes = 0
        if not self._ended.done():
            self._ended.set_result(None)

    def _hold(self, data: bytes) -> None:
        self._held.append(data)
        self._held_bytes += len(data)
        if self._held_bytes > self._limit_bytes:
            self.overflowed = True
            self.on_overflow()

    def _drive(self, step: Any) -> None:
        try:
            waits_for = step.send(None)
        except StopIteration:
            return
        self._blocked = step
        self._await(waits_for)

    def _drive_last(self, data: bytes) -> None:
        self._last_given = True
        self._drive(self._send({"type": "http.response.body", "body": data, "more_body": False}))
        if self._blocked is None:
            self._release()

    def _await(self, future: Any) -> None:
        # As asyncio.Task does with what a coroutine yields.
        future._asyncio_future_blocking = False
        future.add_done_callback(self._resume)

    def _resume(self, _: object) -> None:
        step = self._blocked
        try:
            waits_for = step.send(None)
        except StopIteration:
            self._blocked = None
        else:
            self._await(waits_for)
            return
        if self._last_given:
            self._release()
        if self._ended.done():
            return
        data, self._held, self._held_bytes = b"".join(self._held), [], 0
        if self._finished:
            self._drive_last(data)
        elif data:
            self._drive(self._send({"type": "http.response.body", "body": data, "more_body": True}))
