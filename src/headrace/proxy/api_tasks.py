"""The HTTP endpoints of requests that generate nothing. They are admitted, routed and tried again as the others are."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from fastapi import FastAPI, Request
from starlette.responses import Response

from headrace.proxy import docs, results
from headrace.proxy.answering import Answering, Serving, asked, new_id, unix_now
from headrace.proxy.results import Body, Results
from headrace.proxy.tasks import (
    DetokenizeRequest,
    EmbeddingRequest,
    RerankRequest,
    ScoreRequest,
    TaskRequest,
    TokenizeRequest,
)

R = TypeVar("R", bound=TaskRequest)
ReadJson = Callable[[Request, type[R]], Awaitable[R]]

PATHS = {
    "embed": ("/v1/embeddings",),
    "score": ("/v1/score", "/score"),
    "rerank": ("/v1/rerank", "/rerank", "/v2/rerank"),
    "tokenize": ("/tokenize", "/v1/tokenize"),
    "detokenize": ("/detokenize", "/v1/detokenize"),
}


def add(app: FastAPI, serving: Serving, read_json: ReadJson) -> None:
    """Add the endpoints to the application."""

    def answer(request: Request, parsed: TaskRequest, body: Body) -> Response:
        submits = parsed.submits(asked(request.scope))
        return Answering(
            serving,
            parsed.model,
            submits,
            1,
            lambda writer, headers: Results(writer, len(submits), body, headers),
            priority=parsed.priority or 0,
        )

    async def embed(request: Request) -> Response:
        """Make vectors of texts."""
        parsed = await read_json(request, EmbeddingRequest)
        return answer(request, parsed, results.embeddings(parsed))

    async def score(request: Request) -> Response:
        """Say how well pairs of texts go together."""
        parsed = await read_json(request, ScoreRequest)
        return answer(request, parsed, results.scores(new_id("score-"), parsed.model, unix_now()))

    async def rerank(request: Request) -> Response:
        """Order documents by how well they go with a query."""
        parsed = await read_json(request, RerankRequest)
        return answer(request, parsed, results.ranks(new_id("rerank-"), parsed))

    async def tokenize(request: Request) -> Response:
        """Make a model's tokens of a text or of messages."""
        parsed = await read_json(request, TokenizeRequest)

        def context_tokens() -> int:
            route = serving.admission.route(parsed.model)
            return route.context_tokens if route else 0

        return answer(request, parsed, results.tokens(context_tokens, bool(parsed.return_token_strs)))

    async def detokenize(request: Request) -> Response:
        """Make text of a model's tokens."""
        parsed = await read_json(request, DetokenizeRequest)
        return answer(request, parsed, results.text)

    for handler, described in (
        (embed, docs.embed),
        (score, docs.score),
        (rerank, docs.rerank),
        (tokenize, docs.tokenize),
        (detokenize, docs.detokenize),
    ):
        first, *others = PATHS[handler.__name__]
        app.post(first, **described)(handler)
        for path in others:
            app.add_route(path, handler, methods=["POST"], include_in_schema=False)
