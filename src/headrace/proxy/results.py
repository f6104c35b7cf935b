"""The answers of requests that generate nothing: one JSON object when the last result is there."""

from __future__ import annotations

import base64
import struct
from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from headrace.core.streams import Result
from headrace.errors import HeadraceError, InvalidRequest
from headrace.proxy.extras import Extra
from headrace.proxy.generation import Usage
from headrace.proxy.place import HasPlace
from headrace.proxy.shapes import dumps_in_turns
from headrace.proxy.tasks import MAX_NUMBERS, EmbeddingRequest, RerankRequest
from headrace.proxy.writer import Headers, Writer

Body = Callable[[Sequence[Result], Usage], dict[str, Any]]


class Results:
    """Collects one result per input, in the order of the inputs."""

    def __init__(self, writer: Writer, count: int, body: Body, headers: Headers) -> None:
        self.writer = writer
        self._headers = headers
        self._body = body
        self._results = [Result(0) for _ in range(count)]
        self._numbers = 0

    def delta(self, index: int, text: str, logprobs: Any, place: HasPlace | None = None) -> None:
        """There is none."""

    def extra(self, index: int, item: Extra, place: HasPlace | None = None) -> None:
        if isinstance(item, Result):
            self._numbers += len(item.values)
            # Four bytes a number, as they came; and none of more than will be told.
            values = array("f", item.values if self._numbers <= MAX_NUMBERS else ())
            self._results[index] = replace(item, values=values)

    def choice_done(self, index: int, reason: str) -> None:
        pass

    def waiting(self, what: str) -> None:
        """Without headers, so that a failure keeps its status."""

    def restart(self, index: int) -> bool:
        return True

    async def complete(self, usage: Usage) -> None:
        if self._numbers > MAX_NUMBERS:
            raise InvalidRequest(
                f"The answer has {self._numbers} numbers; at most {MAX_NUMBERS} are told at once: ask for fewer texts.",
                param="input",
            )
        body = await dumps_in_turns(self._body(self._results, usage))
        length = (b"content-length", str(len(body)).encode())
        self.writer.start(200, [(b"content-type", b"application/json"), length, *self._headers])
        self.writer.end(body)

    def fail(self, error: HeadraceError) -> None:
        self.writer.break_off()


def usage_object(u: Usage) -> dict[str, int]:
    return {"prompt_tokens": u.prompt_tokens, "total_tokens": u.prompt_tokens}


def embeddings(request: EmbeddingRequest) -> Body:
    def vector(values: Sequence[float]) -> list[float] | str:
        if request.encoding_format == "base64":
            return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()
        return list(values)

    return lambda results, usage: {
        "object": "list",
        "model": request.model,
        "data": ({"object": "embedding", "index": i, "embedding": vector(r.values)} for i, r in enumerate(results)),
        "usage": usage_object(usage),
    }


def scores(request_id: str, model: str, created: int) -> Body:
    return lambda results, usage: {
        "id": request_id,
        "object": "list",
        "created": created,
        "model": model,
        "data": [{"index": i, "object": "score", "score": r.values[0]} for i, r in enumerate(results)],
        "usage": usage_object(usage),
    }


def ranks(request_id: str, request: RerankRequest) -> Body:
    def body(results: Sequence[Result], usage: Usage) -> dict[str, Any]:
        best = sorted(range(len(results)), key=lambda i: (-results[i].values[0], i))
        found: list[dict[str, Any]] = []
        for i in best[: request.top_n or None]:
            item: dict[str, Any] = {"index": i, "relevance_score": results[i].values[0]}
            if request.return_documents is not False:
                item["document"] = {"text": request.documents[i]}
            found.append(item)
        return {"id": request_id, "model": request.model, "results": found, "usage": usage_object(usage)}

    return body


def tokens(context_tokens: Callable[[], int], names: bool) -> Body:
    """`context_tokens` is asked when the answer is there: by then the model is loaded, and its context known."""
    return lambda results, usage: {
        "count": len(results[0].token_ids),
        "max_model_len": context_tokens() or None,
        "tokens": results[0].token_ids,
        "token_strs": results[0].tokens if names else None,
    }


def text(results: Sequence[Result], usage: Usage) -> dict[str, Any]:
    return {"prompt": results[0].text}
