"""uvicorn's HTTP protocol with limits on heads, time-outs for what does not come or is not read, and HTTP/1.0.

That a client leaves is no error.
"""

from __future__ import annotations

import asyncio
import http
from collections.abc import Callable
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from headrace.core.origins import valid_host
from headrace.errors import HeadraceError, InvalidRequest, RequestTimeout, Unavailable
from headrace.proxy.clients import Clients, origin_of
from headrace.proxy.connection import CONNECTION, Connection, Unframed, to_the_end
from headrace.proxy.shapes import dumps

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 200
HEAD_S = 30.0
LATE_BODY_S = 2.0  # for the rest of a body that has had its answer


class HeadTooLarge(HeadraceError):
    kind, status, type, default_code = "head_too_large", 431, "invalid_request_error", "headers_too_large"


class WrongVersion(HeadraceError):
    kind, status, type, default_code = "wrong_version", 505, "invalid_request_error", "http_version"


def _head_too_large() -> HeadTooLarge:
    return HeadTooLarge(f"The request's head has more than {MAX_HEAD_BYTES} bytes or {MAX_HEADERS} fields.")


class ClientProtocol(HttpToolsProtocol):
    """One connection. Between two requests it is idle, and may be closed to make room."""

    _connection: Connection
    parser: Any  # until the connection is lost
    origin = "unknown"
    descriptor = -1

    _head_bytes = 0  # received since the last head was complete
    _parsed_bytes = 0  # of this head's fields
    _in_head = True
    _hosts = 0
    _wrong: HeadraceError | None = None  # with the head that is being parsed
    _running: Any = None  # the cycle that is being answered, or was last
    _deaf = False  # what comes now is not looked at
    _timer: asyncio.TimerHandle | None = None  # for a head, or for the rest of a body
    _unread: asyncio.TimerHandle | None = None
    _unread_bytes = 0

    def __init__(self, clients: Clients, **given: Any) -> None:
        super().__init__(**given)
        self._clients = clients

    # --- the connection ---

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._connection = Connection(transport, self.flow)
        self.origin = origin_of(self.client)
        self.descriptor = transport.get_extra_info("socket").fileno()
        self._start_timer(HEAD_S, self._slow_head)
        self._clients.arrived(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._stop_watching()
        self._clients.left(self)
        self._connection.lost = True
        self._connection.on_lost()
        # uvicorn tells the last request alone; those before it would go on, and write to nobody.
        for cycle in (self._running, *(c for c, _ in self.pipeline)):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
        super().connection_lost(exc)

    def give_way(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    def turn_away(self) -> None:
        self._refuse(Unavailable("This proxy has as many connections as it can have.", retry_after_s=1.0))

    def _start_timer(self, seconds: float, then: Callable[[], None]) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, then)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # --- what comes ---

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._deaf:
            return
        if self._in_head:
            self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # answered as what it is besides
        except httptools.HttpParserError:
            self._bad_http()
            return
        if not self._in_head or self.transport.is_closing():
            return
        if self._head_bytes > MAX_HEAD_BYTES:
            self._wrong = _head_too_large()
            self._bad_http()
        elif self._timer is None:
            self._start_timer(HEAD_S, self._slow_head)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._parsed_bytes = self._hosts = 0
        scope: Any = self.scope
        scope[CONNECTION] = self._connection

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > MAX_HEAD_BYTES:
            self._wrong = _head_too_large()
            raise httptools.HttpParserError("url too long")

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._parsed_bytes += len(name) + len(value)
        if len(self.headers) > MAX_HEADERS or self._parsed_bytes > MAX_HEAD_BYTES:
            self._wrong = _head_too_large()
            raise httptools.HttpParserError("headers too large")
        if len(name) == 4 and name.lower() == b"host":
            self._hosts += 1
            if self._hosts > 1 or not valid_host(value):
                self._wrong = InvalidRequest("The Host header must be there once, with a name or address.")
                raise httptools.HttpParserError("bad host")

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_bytes = 0
        self._stop_timer()
        version = self.parser.get_http_version()
        if version == "1.0":
            self._old_client()
        elif version != "1.1":
            self._wrong = WrongVersion("This server speaks HTTP/1.1.")
            raise httptools.HttpParserError("version")
        elif not self._hosts:
            self._wrong = InvalidRequest("An HTTP/1.1 request needs a Host header.")
            raise httptools.HttpParserError("no host")
        self._clients.asks(self)
        super().on_headers_complete()

    def _old_client(self) -> None:
        if self._answering():
            self._wrong = InvalidRequest("An HTTP/1.0 request cannot follow another before that is answered.")
            raise httptools.HttpParserError("pipelined HTTP/1.0")
        self.expect_100_continue = False
        self._connection = Unframed(self.transport, self.flow)
        scope: Any = self.scope
        scope[CONNECTION] = self._connection

    def on_message_complete(self) -> None:
        super().on_message_complete()
        if self.cycle.response_complete and self.timeout_keep_alive_task is None and not self.transport.is_closing():
            # The rest of a body that had its answer before; uvicorn counts it as news, and waits without end.
            self._stop_timer()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _slow_head(self) -> None:
        self._complain("slow_head")
        self._refuse(RequestTimeout(f"The request's head did not come within {HEAD_S:g} s."))

    def _bad_http(self) -> None:
        self._complain("bad_http")
        self._refuse(self._wrong or InvalidRequest("This is not a valid HTTP/1.1 request."))

    def _complain(self, why: str) -> None:
        if not self.transport.is_closing():
            self._clients.complain(why, self.origin)

    def _refuse(self, error: HeadraceError) -> None:
        """Answer before there is a request, and hang up."""
        self._stop_timer()
        self._deaf = True
        if self.transport.is_closing():
            return
        running = self._running
        if self._answering() and (running.response_started or not running.more_body):
            # Good requests came before: they have their answers, and then this is the end.
            if self.pipeline and self.pipeline[0][0].more_body:
                self.pipeline.popleft()
            last = self.pipeline[0][0] if self.pipeline else running
            last.keep_alive = False
            return
        body = dumps(error.body())
        phrase = http.HTTPStatus(error.status).phrase
        retry = f"retry-after: {round(error.retry_after_s)}\r\n" if error.retry_after_s else ""
        head = (
            f"HTTP/1.1 {error.status} {phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n{retry}connection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
        self._watch_reader()

    # --- what goes ---

    def _answering(self) -> bool:
        return self._running is not None and not self._running.response_complete

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._running = cycle
        if cycle.scope["http_version"] == "1.0":
            app = to_the_end(app, cycle, self.transport.get_extra_info("socket"))
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._watch_reader()
            return
        if self._answering():
            return  # the next of several that came at once
        self._clients.rests(self)
        if self.cycle.more_body:
            self._unset_keepalive_if_required()
            self._start_timer(LATE_BODY_S, self._slow_body)

    def _slow_body(self) -> None:
        self._complain("slow_body")
        self.give_way()

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.get_write_buffer_size():
            self._complain("unread")
        self.give_way()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        self._stop_watching()
        super().resume_writing()

    def _watch_reader(self) -> None:
        """Break the connection if nothing of what is to be sent goes out for too long."""
        self._unread_bytes = self.transport.get_write_buffer_size()
        if self._unread is None and self._unread_bytes:
            self._unread = self.loop.call_later(self._clients.limits.stall_s, self._look_at_reader)

    def _look_at_reader(self) -> None:
        self._unread = None
        before, left = self._unread_bytes, self.transport.get_write_buffer_size()
        if left and left >= before:
            self._clients.complain("unread", self.origin)
            self.transport.abort()
        elif self.flow.write_paused or self.transport.is_closing():
            self._watch_reader()

    def _stop_watching(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
