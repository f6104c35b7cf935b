"""The answers of OpenAI's API: whole objects, and the events of a stream.

An event's bytes are made once per request and choice, but for the text in the middle.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from json.encoder import encode_basestring as quote
from typing import Any, Protocol

from headrace.core.types import TokenLogprob
from headrace.proxy.generation import Usage

DONE = b"data: [DONE]\n\n"


@dataclass(slots=True)
class Choice:
    """One finished choice, collected."""

    text: str = ""
    reason: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)


def dumps(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def event(value: Any) -> bytes:
    return b"data: " + dumps(value) + b"\n\n"


def usage_object(u: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": u.prompt_tokens,
        "completion_tokens": u.completion_tokens,
        "total_tokens": u.prompt_tokens + u.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": u.cached_tokens},
    }


def _token(t: TokenLogprob) -> dict[str, Any]:
    return {
        "token": t.token.decode("utf-8", "replace"),
        "logprob": max(t.logprob, -9999.0),  # JSON has no -inf
        "bytes": list(t.token),
    }


class Shape(Protocol):
    """How one endpoint's answer looks. `logprobs`: whether they were asked for."""

    def prelude(self) -> bytes:
        """The events before any text, for all choices."""
        ...

    def head(self, index: int) -> bytes:
        """What comes before the quoted text in an event of a choice."""
        ...

    tail: bytes

    def with_logprobs(self, index: int, text: str, tokens: Sequence[TokenLogprob]) -> bytes: ...
    def finish(self, index: int, reason: str) -> bytes: ...
    def usage(self, usage: Usage) -> bytes: ...
    def whole(self, choices: Sequence[Choice], usage: Usage) -> dict[str, Any]: ...


@dataclass(slots=True)
class ChatShape:
    """chat.completion and chat.completion.chunk"""

    id: str
    model: str
    created: int
    choices: int
    include_usage: bool = False
    logprobs: bool = False
    tail: bytes = b""

    def __post_init__(self) -> None:
        usage = b',"usage":null' if self.include_usage else b""
        self.tail = b'},"logprobs":null,"finish_reason":null}]' + usage + b"}\n\n"

    def _chunk(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> bytes:
        chunk = {"id": self.id, "object": "chat.completion.chunk", "created": self.created, "model": self.model}
        return event(chunk | {"choices": choices} | ({"usage": usage} if self.include_usage else {}))

    def _delta(self, index: int, delta: dict[str, Any], logprobs: Any = None, reason: str | None = None) -> bytes:
        return self._chunk([{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}])

    def prelude(self) -> bytes:
        return b"".join(self._delta(i, {"role": "assistant", "content": ""}) for i in range(self.choices))

    def head(self, index: int) -> bytes:
        whole = self._delta(index, {"content": ""})
        return whole[: whole.index(b'"content":') + len(b'"content":')]

    def with_logprobs(self, index: int, text: str, tokens: Sequence[TokenLogprob]) -> bytes:
        return self._delta(index, {"content": text}, self._logprobs(tokens))

    def _logprobs(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        return {
            "content": [_token(t) | {"top_logprobs": [_token(a) for a in t.top]} for t in tokens],
            "refusal": None,
        }

    def finish(self, index: int, reason: str) -> bytes:
        return self._delta(index, {}, None, reason)

    def usage(self, usage: Usage) -> bytes:
        return self._chunk([], usage_object(usage))

    def whole(self, choices: Sequence[Choice], usage: Usage) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "choices": [
                {
                    "index": i,
                    "message": {"role": "assistant", "content": c.text, "refusal": None},
                    "logprobs": self._logprobs(c.logprobs) if self.logprobs else None,
                    "finish_reason": c.reason,
                }
                for i, c in enumerate(choices)
            ],
            "usage": usage_object(usage),
        }


@dataclass(slots=True)
class CompletionShape:
    """text_completion, whole and in parts"""

    id: str
    model: str
    created: int
    choices: int
    include_usage: bool = False
    logprobs: bool = False
    tail: bytes = b""
    _offsets: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        usage = b',"usage":null' if self.include_usage else b""
        self.tail = b',"logprobs":null,"finish_reason":null}]' + usage + b"}\n\n"

    def _object(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }

    def _chunk(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> bytes:
        return event(self._object(choices) | ({"usage": usage} if self.include_usage else {}))

    def prelude(self) -> bytes:
        return b""

    def head(self, index: int) -> bytes:
        whole = self._chunk([{"index": index, "text": ""}])
        return whole[: whole.index(b'"text":') + len(b'"text":')]

    def with_logprobs(self, index: int, text: str, tokens: Sequence[TokenLogprob]) -> bytes:
        logprobs = self._logprobs(tokens, self._offsets.get(index, 0))
        self._offsets[index] = logprobs.pop("end")
        return self._chunk([{"index": index, "text": text, "logprobs": logprobs, "finish_reason": None}])

    @staticmethod
    def _logprobs(tokens: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
        names: list[str] = []
        offsets: list[int] = []
        for t in tokens:
            names.append(t.token.decode("utf-8", "replace"))
            offsets.append(offset)
            offset += len(names[-1])
        return {
            "tokens": names,
            "token_logprobs": [max(t.logprob, -9999.0) for t in tokens],
            "top_logprobs": [
                {a.token.decode("utf-8", "replace"): max(a.logprob, -9999.0) for a in (*t.top, t)} for t in tokens
            ],
            "text_offset": offsets,
            "end": offset,
        }

    def finish(self, index: int, reason: str) -> bytes:
        return self._chunk([{"index": index, "text": "", "logprobs": None, "finish_reason": reason}])

    def usage(self, usage: Usage) -> bytes:
        return self._chunk([], usage_object(usage))

    def whole(self, choices: Sequence[Choice], usage: Usage) -> dict[str, Any]:
        made: list[dict[str, Any]] = []
        for i, c in enumerate(choices):
            logprobs = None
            if self.logprobs:
                logprobs = self._logprobs(c.logprobs, 0)
                del logprobs["end"]
            made.append({"index": i, "text": c.text, "logprobs": logprobs, "finish_reason": c.reason})
        return self._object(made) | {"usage": usage_object(usage)}


__all__ = ["DONE", "ChatShape", "Choice", "CompletionShape", "Shape", "dumps", "event", "quote"]
