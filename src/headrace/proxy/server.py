"""uvicorn, run from code: our socket, our signals, limits on heads, and errors in OpenAI's shape."""

from __future__ import annotations

import asyncio
import contextlib
import http
import logging
import socket
from collections.abc import Callable, Iterator
from typing import Any

import httptools
import uvicorn
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from headrace.errors import HeadraceError, InvalidRequest, RequestTimeout, UserError
from headrace.proxy.shapes import dumps

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 200
HEAD_S = 30.0
BACKLOG = 4096
KEEP_ALIVE_S = 75
UNSENT_BYTES = 64 * 1024
"""What the kernel holds of an answer beside what is on its way; it would take megabytes of what nobody reads."""
CONNECTION = "headrace.connection"  # the scope's key of the client's Connection


class HeadTooLarge(HeadraceError):
    kind, status, type, default_code = "head_too_large", 431, "invalid_request_error", "headers_too_large"


def _head_too_large() -> HeadTooLarge:
    return HeadTooLarge(f"The request's head has more than {MAX_HEAD_BYTES} bytes or {MAX_HEADERS} fields.")


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


class _Protocol(HttpToolsProtocol):
    """Counts the bytes of a request's head and the time it takes."""

    _connection: Connection

    _head_bytes = 0  # received since the last head was complete
    _parsed_bytes = 0  # of this head's fields
    _in_head = True
    _too_large = False
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._connection = Connection(transport, self.flow)
        self._head_timer = self.loop.call_later(HEAD_S, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._connection.lost = True
        self._connection.on_lost()
        super().connection_lost(exc)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._parsed_bytes = 0
        scope: Any = self.scope
        scope[CONNECTION] = self._connection

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_bytes = 0
        self._stop_timer()
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if not self._in_head:
            return
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(_head_too_large())
        elif self._head_timer is None and not self.transport.is_closing():
            self._head_timer = self.loop.call_later(HEAD_S, self._too_slow)

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > MAX_HEAD_BYTES:
            self._too_large = True
            raise httptools.HttpParserError("url too long")

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._parsed_bytes += len(name) + len(value)
        if len(self.headers) > MAX_HEADERS or self._parsed_bytes > MAX_HEAD_BYTES:
            self._too_large = True
            raise httptools.HttpParserError("headers too large")

    def _too_slow(self) -> None:
        self._refuse(RequestTimeout(f"The request's head did not come within {HEAD_S:g} s."))

    def send_400_response(self, msg: str) -> None:
        self._refuse(_head_too_large() if self._too_large else InvalidRequest("This is not a valid HTTP/1.1 request."))

    def _refuse(self, error: HeadraceError) -> None:
        """Answer before there is a request, and hang up."""
        if self.transport.is_closing():
            return
        body = dumps(error.body())
        phrase = http.HTTPStatus(error.status).phrase
        head = (
            f"HTTP/1.1 {error.status} {phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


class Server(uvicorn.Server):
    """uvicorn without its signal handlers: ours decide."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def new_server(app: Any) -> Server:
    """A server for an ASGI app; `serve(sockets=[…])` runs it until `should_exit`."""
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    return Server(
        uvicorn.Config(
            app,
            http=_Protocol,
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            proxy_headers=False,  # no forwarded header is to be trusted
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            backlog=BACKLOG,
        )
    )


def bind(host: str, port: int) -> socket.socket:
    """A socket for an address that other proxies may share (SO_REUSEPORT), which does not listen yet.

    UserError if the address cannot be had.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, proto)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            # Accepted connections inherit it: a token must not wait for the next one.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if hasattr(socket, "TCP_NOTSENT_LOWAT"):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
            sock.bind(address)
        except OSError:
            sock.close()
            raise
    except OSError as e:
        raise UserError(
            f"Cannot listen on {host}:{port} ({e.strerror or e}): choose another with --http_host and --http_port."
        ) from e
    sock.setblocking(False)
    return sock
