"""One client's connection as those see it who answer: past ASGI, and as an HTTP/1.0 client needs it."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl

CONNECTION = "headrace.connection"  # the scope's key of the client's Connection

_RESET = struct.pack("ii", 1, 0)
_NO_RESET = struct.pack("ii", 0, 0)


def nothing() -> None: ...


class Connection:
    """A client's connection, past ASGI: for tokens, and for an answer that must not look whole.

    `on_lost` is called when it is gone.
    """

    __slots__ = ("_flow", "_transport", "lost", "on_lost")

    def __init__(self, transport: asyncio.Transport, flow: FlowControl) -> None:
        self._transport, self._flow = transport, flow
        self.lost = False
        self.on_lost: Callable[[], None] = nothing

    def chunk(self, data: bytes) -> bool:
        """Write a piece of a body that has begun without a length, as the server's `send` would.

        False, and nothing is written, if `send` must be asked: the client does not read, or is gone.
        """
        if self.lost or self._flow.write_paused:
            return False
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return True

    def abort(self) -> None:
        """Break it at once."""
        self._transport.abort()

    def close(self) -> None:
        """Break it when all that was written has been sent."""
        self.lost = True
        self._transport.close()


class Unframed(Connection):
    """Of an HTTP/1.0 client, which knows no chunks."""

    __slots__ = ()

    def chunk(self, data: bytes) -> bool:
        if self.lost or self._flow.write_paused:
            return False
        self._transport.write(data)
        return True


def to_the_end(app: Any, cycle: Any, sock: Any) -> Any:
    """An app for one HTTP/1.0 request: an answer without a length goes on to the end of the connection.

    Until it is whole every end of the connection, also that of this process, is a reset: nothing else would tell.
    """

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        unframed = False

        async def sent(message: Any) -> None:
            nonlocal unframed
            if message["type"] == "http.response.start":
                unframed = not any(name.lower() == b"content-length" for name, _ in message.get("headers", ()))
                if unframed:
                    cycle.chunked_encoding = False
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            elif unframed:
                cycle.expected_content_length = len(message.get("body", b""))
                if not message.get("more_body", False) and not cycle.disconnected:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_RESET)
            await send(message)

        await app(scope, receive, sent)

    return answer
