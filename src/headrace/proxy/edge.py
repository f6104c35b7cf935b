"""The outermost layer: request ids, API keys, rules for web pages, and a count of every response. Plain ASGI."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

from headrace.errors import HeadraceError
from headrace.metrics import Metrics
from headrace.proxy.answering import RAW_SEND, RECEIVED_AT, REQUEST_ID, STARTED, new_id
from headrace.proxy.bodies import release
from headrace.proxy.browsers import Asker, Browsers
from headrace.proxy.key_file import KeyFile
from headrace.proxy.record import Records
from headrace.proxy.security import OPEN_PATHS
from headrace.proxy.shapes import dumps
from headrace.proxy.ticket import CALLER

_Answer = tuple[int, list[tuple[bytes, bytes]], bytes]

_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
_EXACT = {"/", "/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/ready", "/metrics", "/docs"}
_EXACT |= {"/v1/embeddings", "/v1/score", "/score", "/v1/rerank", "/v2/rerank", "/rerank"}
_EXACT |= {"/tokenize", "/v1/tokenize", "/detokenize", "/v1/detokenize"}


def _label(path: str) -> str:
    """A path as a metric's label: bounded, whatever clients ask for."""
    if path in _EXACT:
        return path
    if path.startswith("/v1/chat/"):
        return "/v1/chat/{model}"
    return "/v1/models/{id}" if path.startswith("/v1/models/") else "other"


def error_response(error: HeadraceError) -> _Answer:
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


def _message(body: bytes) -> str:
    """What the body of an error says; "" if it is not one of ours."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return ""


class Edge:
    """Wraps the application. Streams get the server's own `send`, past all wrappers, from the scope."""

    def __init__(self, app: Any, keys: KeyFile | None, browsers: Browsers, metrics: Metrics, records: Records) -> None:
        self._app = app
        self._records = records
        self._keys = keys
        self._browsers = browsers
        self._metrics = metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        given = authorization = host = b""
        origin = fetch_site = None
        for name, value in scope["headers"]:
            if name == b"x-request-id":
                given = value
            elif name == b"authorization":
                authorization = value
            elif name == b"host":
                host = value
            elif name == b"origin":
                origin = value
            elif name == b"sec-fetch-site":
                fetch_site = value
        asker = Asker(host, origin, fetch_site)
        request_id = given if _ID.fullmatch(given) else new_id("req-").encode()
        path = _label(scope["path"])
        more = [(b"x-request-id", request_id), *self._browsers.headers(asker)]

        refused = 0

        async def counted(message: Any) -> None:
            nonlocal refused
            if message["type"] == "http.response.start":
                scope[STARTED] = True
                refused = message["status"] if message["status"] >= 400 else 0
                message["headers"] = [*message.get("headers", ()), *more]
                self._metrics.count(self._metrics.responses, path, str(message["status"]))
            elif refused:
                request = f"{scope['method']} {scope['path']}"
                why = _message(message.get("body", b""))
                self._records.refused(scope[REQUEST_ID], request, scope[RECEIVED_AT], refused, why)
                refused = 0
            await send(message)

        scope[REQUEST_ID] = request_id.decode()
        scope[RECEIVED_AT] = asyncio.get_running_loop().time()
        scope[RAW_SEND] = counted, send
        try:
            answer = self._before_the_app(scope, asker, authorization)
            if answer is None:
                await self._app(scope, receive, counted)
            else:
                status, headers, body = answer
                await counted({"type": "http.response.start", "status": status, "headers": headers})
                await counted({"type": "http.response.body", "body": body})
        finally:
            release(scope)
            del scope[RAW_SEND]  # a cycle, for which the collector would have to look

    def _before_the_app(self, scope: Any, asker: Asker, authorization: bytes) -> _Answer | None:
        """The answer to what the application is not to see."""
        method = scope["method"]
        if (refusal := self._browsers.refusal(method, asker)) is not None:
            return error_response(refusal)
        if method == "OPTIONS" and (allowed := self._browsers.preflight(method, asker, scope["headers"])) is not None:
            return error_response(allowed) if isinstance(allowed, HeadraceError) else (204, allowed, b"")
        # The path that the router will use, nothing that a client can say beside it.
        if self._keys is not None and scope["path"] not in OPEN_PATHS:
            try:
                scope[CALLER] = self._keys.check(authorization)
            except HeadraceError as e:
                return error_response(e)
        return None
