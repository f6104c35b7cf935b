"""The HTTP endpoints."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import structlog
from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from headrace import __version__
from headrace.core.types import Route, RouteState
from headrace.errors import HeadraceError, InvalidRequest, NotFound, Unavailable, UnsupportedMedia
from headrace.proxy import api_tasks, docs
from headrace.proxy.answering import CALLER, REQUEST_ID, STARTED, Answering, Serving, asked, unix_now
from headrace.proxy.body import content_type, header, read_body
from headrace.proxy.charsets import codec_of
from headrace.proxy.chat_shape import ChatShape
from headrace.proxy.completion_shape import CompletionShape
from headrace.proxy.edge import error_response
from headrace.proxy.front import front
from headrace.proxy.openai import ChatRequest, CompletionRequest, ModelChatRequest
from headrace.proxy.parse import (
    LARGE_BYTES,
    M,
    decode_text,
    parse_json,
    parse_large_json,
    plain_request,
    query_fields,
    unknown_charset,
)
from headrace.proxy.place import Place, new_nonce
from headrace.proxy.routes import Routes
from headrace.proxy.shapes import Shape
from headrace.proxy.sinks import Answer, Collected, Events, Text
from headrace.proxy.ticket import ANYONE
from headrace.proxy.writer import Headers, Writer

log = structlog.get_logger()


class MethodNotAllowed(HeadraceError):
    kind, status, type, default_code = "method_not_allowed", 405, "invalid_request_error", "method_not_allowed"


def build(serving: Serving, routes: Routes) -> ASGIApp:
    """The application, without its edge."""
    app = FastAPI(title="Headrace", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    app.router.redirect_slashes = False
    endpoints = _Endpoints(serving, routes)
    limit = serving.settings.max_body_bytes

    async def read_json(request: Request, model: type[M], query: Mapping[str, Any] | None = None) -> M:
        media, charset = content_type(request)
        if media not in ("application/json", "") or charset not in ("", "utf-8", "utf8"):
            raise UnsupportedMedia("The body must be JSON in UTF-8: send Content-Type: application/json.")
        body = [await read_body(request, limit, serving.bodies.hold(request.scope))]
        if len(body[0]) <= LARGE_BYTES:
            return parse_json(body.pop(), model, query)
        async with serving.bodies.large:
            return await parse_large_json(body, model, query)

    async def chat(request: Request) -> Response:
        """Answer a conversation."""
        return endpoints.chat(request, await read_json(request, ChatRequest))

    async def complete(request: Request) -> Response:
        """Continue a text, or several."""
        return endpoints.complete(request, await read_json(request, CompletionRequest))

    async def chat_with(request: Request) -> Response:
        """Answer a prompt: plain text in, plain text out as it is made; or JSON."""
        model: str = request.path_params["model"]
        media, charset = content_type(request)
        if media in ("text/plain", ""):
            if charset and codec_of(charset) is None:
                raise unknown_charset(charset)
            body = await read_body(request, limit, serving.bodies.hold(request.scope))
            text = decode_text(body, charset or "utf-8")
            return endpoints.plain(request, model, plain_request(text, request.query_params.multi_items()))
        if media != "application/json":
            raise UnsupportedMedia(
                f"A body of type {media} is not taken here: send Content-Type: text/plain or application/json."
            )
        parsed = await read_json(request, ModelChatRequest, query_fields(request.query_params.multi_items()))
        if parsed.model and parsed.model != model:
            raise InvalidRequest(f"'model' is '{parsed.model}', but the path says '{model[:100]}'.", param="model")
        return endpoints.chat(request, parsed, model)

    app.post("/v1/chat/completions", **docs.chat)(chat)
    app.post("/v1/chat/{model:path}", **docs.chat_with)(chat_with)
    app.post("/v1/completions", **docs.complete)(complete)
    api_tasks.add(app, serving, read_json)
    for path, handler, described in (
        ("/v1/models", endpoints.models, docs.models),
        ("/v1/models/{name:path}", endpoints.model, docs.model),
        ("/health", endpoints.health, docs.health),
        ("/ready", endpoints.ready, docs.ready),
        ("/metrics", endpoints.metrics, docs.metrics),
    ):
        app.get(path, **described)(handler)
        app.add_route(path, handler, methods=["HEAD"], include_in_schema=False)

    async def openapi(request: Request) -> Response:
        return JSONResponse(docs.document(app))

    async def page(request: Request) -> Response:
        return HTMLResponse(docs.page(docs.document(app)))

    app.add_route("/", front, methods=["GET", "HEAD"], include_in_schema=False)
    app.add_route("/openapi.json", openapi, include_in_schema=False)
    app.add_route("/docs", page, include_in_schema=False)
    app.add_exception_handler(HeadraceError, _tell)
    app.add_exception_handler(HTTPException, _tell_http)
    app.add_exception_handler(ClientDisconnect, _tell_nobody)
    app.add_exception_handler(Exception, _tell_unexpected)
    return _Direct(app, {"/v1/chat/completions": chat, "/v1/completions": complete})


class _Direct:
    """The busiest endpoints, past the framework's layers, which cost a fifth of a request and do nothing for these."""

    def __init__(self, app: FastAPI, handlers: Mapping[str, Callable[[Request], Awaitable[Response]]]) -> None:
        self._app, self._handlers = app, handlers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        handler = self._handlers.get(scope["path"]) if scope["method"] == "POST" else None
        if handler is None:
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive, send)
        try:
            response = await handler(request)
            await response(scope, receive, send)
        except HeadraceError as e:
            await _respond(e)(scope, receive, send)
        except ClientDisconnect as e:
            await (await _tell_nobody(request, e))(scope, receive, send)
        except Exception as e:
            if STARTED not in scope:
                await (await _tell_unexpected(request, e))(scope, receive, send)
            raise  # to the server, which writes the traceback into the log


def _respond(error: HeadraceError, more: dict[str, str] | None = None) -> Response:
    status, headers, body = error_response(error)
    named = {k.decode(): v.decode() for k, v in headers}
    return Response(body, status, {**named, **(more or {})})


async def _tell(request: Request, error: Any) -> Response:
    return _respond(error)


async def _tell_http(request: Request, error: Any) -> Response:
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        text = f"{request.method} is not possible on {request.url.path}" + (f"; use {allowed}." if allowed else ".")
        return _respond(MethodNotAllowed(text), {"Allow": allowed} if allowed else None)
    text = f"There is nothing at {request.url.path[:200]}; /docs lists what there is."
    return _respond(NotFound(text, code="unknown_url"))


async def _tell_nobody(request: Request, error: Any) -> Response:
    return Response(status_code=400)  # the client left while it sent its body


async def _tell_unexpected(request: Request, error: Any) -> Response:
    log.error("request_failed", request_id=request.scope[REQUEST_ID], path=request.url.path)
    return _respond(HeadraceError("Internal error; the proxy's log says more under this request's X-Request-Id."))


class _Endpoints:
    def __init__(self, serving: Serving, routes: Routes) -> None:
        self._serving = serving
        self._routes = routes

    def _answer(
        self, request: Request, parsed: ChatRequest | CompletionRequest, model: str, shape: Shape, count: int
    ) -> Response:
        # What a client that comes back can be told the rest of.
        stream, usage, n = bool(parsed.stream), parsed.wants_usage(), parsed.choices()
        single = stream and count == 1 and parsed.only_text()
        last = header(request.scope, b"last-event-id")
        if last is not None and not single:
            raise InvalidRequest(
                "Last-Event-ID goes only with one streamed choice, without tools and log-probabilities.",
                param="Last-Event-ID",
            )
        place, nonce = None, ""
        if last is not None:
            place, nonce = Place.read(last.decode("latin-1"))
        elif _wants_ids(request) and single:
            nonce = new_nonce()  # so that only who has seen the stream can have the rest of it
        submits = parsed.submits(asked(request.scope, self._serving.settings.keep_s if nonce else 0.0, nonce))
        coalescer = self._serving.coalescer

        def make(writer: Writer, headers: Headers) -> Answer:
            # Not a word of the request, which may be large and is not needed any more.
            if stream:
                return Events(writer, shape, count, usage, headers, place is not None, coalescer, nonce)
            return Collected(writer, shape, count, headers)

        return Answering(self._serving, model, submits, n, make, place, priority=parsed.priority or 0)

    def chat(self, request: Request, parsed: ChatRequest, model: str = "") -> Response:
        model = model or parsed.model
        count = parsed.choices()
        shape = ChatShape(
            "chatcmpl-" + request.scope[REQUEST_ID],
            model,
            unix_now(),
            count,
            parsed.wants_usage(),
            logprobs=bool(parsed.logprobs),
        )
        return self._answer(request, parsed, model, shape, count)

    def complete(self, request: Request, parsed: CompletionRequest) -> Response:
        count = len(parsed.prompt) * parsed.choices()
        shape = CompletionShape(
            "cmpl-" + request.scope[REQUEST_ID],
            parsed.model,
            unix_now(),
            count,
            parsed.wants_usage(),
            logprobs=parsed.logprobs is not None,
            echo=bool(parsed.echo),
            prompt_logprobs=parsed.prompt_logprobs is not None,
        )
        return self._answer(request, parsed, parsed.model, shape, count)

    def plain(self, request: Request, model: str, parsed: ModelChatRequest) -> Response:
        if parsed.choices() != 1:
            raise InvalidRequest("'n' must be 1 for a plain text answer.", param="n")
        if parsed.logprobs:
            raise InvalidRequest("'logprobs' cannot be part of a plain text answer; ask with JSON.", param="logprobs")
        submits = parsed.submits(asked(request.scope))
        priority = parsed.priority or 0
        return Answering(self._serving, model, submits, 1, Text, priority=priority)

    async def models(self, request: Request) -> Response:
        """All models that can be called."""
        may_call = request.scope.get(CALLER, ANYONE).may_call
        found = [_model(r) for r in self._table().routes.values() if may_call(r.name)]
        return JSONResponse({"object": "list", "data": found})

    async def model(self, request: Request) -> Response:
        """One model."""
        self._table()
        route = self._serving.admission.route(request.path_params["name"], request.scope.get(CALLER, ANYONE))
        assert route is not None
        return JSONResponse(_model(route))

    async def health(self, request: Request) -> Response:
        """Whether the process works."""
        return JSONResponse({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """Whether a model can be called."""
        routes = self._routes
        if self._serving.draining:
            raise Unavailable("This proxy is shutting down.")
        callable_now = sorted(
            r.name
            for r in self._table().routes.values()
            if r.state is RouteState.READY or (routes.connected and r.state is RouteState.AVAILABLE)
        )
        if not callable_now:
            raise Unavailable("No model can be called yet.")
        return JSONResponse({"status": "ready", "models": callable_now})

    async def metrics(self, request: Request) -> Response:
        """Metrics for Prometheus, of all the proxies of this port."""
        body, media = self._serving.metrics.render()
        return Response(body, media_type=media)

    def _table(self) -> Any:
        if self._routes.table is None:
            raise Unavailable("This proxy has not heard from the head yet.", retry_after_s=2.0)
        return self._routes.table


def _wants_ids(request: Request) -> bool:
    """Whether X-Event-Ids asks for them: some clients trip over events that have more than their data."""
    given = (header(request.scope, b"x-event-ids") or b"false").lower()
    if given not in (b"true", b"1", b"false", b"0"):
        raise InvalidRequest("X-Event-Ids must be true or false.", param="X-Event-Ids")
    return given in (b"true", b"1")


def _model(r: Route) -> dict[str, Any]:
    """OpenAI's model object, with `root`, `parent` and `max_model_len` as vLLM has them, and our state and reason."""
    return {
        "id": r.name,
        "object": "model",
        "created": r.created_unix_s,
        "owned_by": "headrace",
        "root": r.model,
        "parent": r.model if r.adapter else None,
        "max_model_len": r.context_tokens or None,
        "state": r.state.value,
        "reason": r.reason or None,
    }
