"""The outermost layer: request ids, API keys, and what is counted of every response. Plain ASGI."""

from __future__ import annotations

import asyncio
import re
from typing import Any

from headrace.errors import HeadraceError
from headrace.metrics import Metrics
from headrace.proxy.answering import RAW_SEND, RECEIVED_AT, REQUEST_ID, STARTED, new_id
from headrace.proxy.bodies import release
from headrace.proxy.security import OPEN_PATHS, Keys
from headrace.proxy.shapes import dumps
from headrace.proxy.ticket import CALLER

_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
_EXACT = {"/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/ready", "/metrics", "/docs"}
_EXACT |= {"/v1/embeddings", "/v1/score", "/score", "/v1/rerank", "/v2/rerank", "/rerank"}
_EXACT |= {"/tokenize", "/v1/tokenize", "/detokenize", "/v1/detokenize"}


def _label(path: str) -> str:
    """A path as a metric's label: bounded, whatever clients ask for."""
    if path in _EXACT:
        return path
    if path.startswith("/v1/chat/"):
        return "/v1/chat/{model}"
    return "/v1/models/{id}" if path.startswith("/v1/models/") else "other"


def error_response(error: HeadraceError) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers and body that tell an error."""
    body = dumps(error.body())
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if error.retry_after_s:
        headers.append((b"retry-after", str(max(1, round(error.retry_after_s))).encode()))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if error.status in (408, 413, 415):
        headers.append((b"connection", b"close"))  # the body may not have been read
    return error.status, headers, body


class Edge:
    """Wraps the application. Streams get the server's own `send`, past all wrappers, from the scope."""

    def __init__(self, app: Any, keys: Keys | None, metrics: Metrics) -> None:
        self._app = app
        self._keys = keys
        self._metrics = metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        given = authorization = b""
        for name, value in scope["headers"]:
            if name == b"x-request-id":
                given = value
            elif name == b"authorization":
                authorization = value
        request_id = given if _ID.fullmatch(given) else new_id("req-").encode()
        path = _label(scope["path"])

        async def counted(message: Any) -> None:
            if message["type"] == "http.response.start":
                scope[STARTED] = True
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id)]
                self._metrics.count(self._metrics.responses, path, str(message["status"]))
            await send(message)

        scope[REQUEST_ID] = request_id.decode()
        scope[RECEIVED_AT] = asyncio.get_running_loop().time()
        scope[RAW_SEND] = counted, send
        try:
            await self._authorized(scope, receive, counted, authorization)
        finally:
            release(scope)
            del scope[RAW_SEND]  # a cycle, for which the collector would have to look

    async def _authorized(self, scope: Any, receive: Any, send: Any, authorization: bytes) -> None:
        # The path that the router will use, nothing that a client can say beside it.
        if self._keys is not None and scope["path"] not in OPEN_PATHS:
            try:
                scope[CALLER] = self._keys.check(authorization)
            except HeadraceError as e:
                status, headers, body = error_response(e)
                await send({"type": "http.response.start", "status": status, "headers": headers})
                await send({"type": "http.response.body", "body": body})
                return
        await self._app(scope, receive, send)
