"""What the answers of OpenAI's API have in common: whole objects, and the events of a stream.

An event's bytes are made once per request and choice, but for the text in the middle.
"""

from __future__ import annotations

import asyncio
import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from json.encoder import encode_basestring as quote
from typing import Any, Protocol, cast

from headrace.core.streams import Parsed, TokenLogprob, ToolCall
from headrace.proxy.extras import Echo, Extra, PromptLogprobs
from headrace.proxy.generation import Usage

DONE = b"data: [DONE]\n\n"


@dataclass(slots=True)
class Choice:
    """One finished choice, collected."""

    text: str = ""
    reason: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    reasoning: str = ""
    calls: dict[int, ToolCall] = field(default_factory=dict)  # by index, whole
    echo: str | None = None
    prompt_logprobs: Sequence[TokenLogprob] = ()

    def add(self, item: Extra) -> None:
        """Take in what came beside the text."""
        match item:
            case Parsed():
                self.reasoning += item.reasoning
                for c in item.tool_calls:
                    old = self.calls.get(c.index)
                    self.calls[c.index] = replace(old, arguments=old.arguments + c.arguments) if old else c
            case Echo(text):
                self.echo = text
            case PromptLogprobs(tokens):
                self.prompt_logprobs = tokens
            case _:
                pass


_NUMBERS, _OBJECTS = 20_000, 16
"""Numbers or short texts, and objects or vectors, that are encoded in one turn: some milliseconds."""

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def dumps(value: Any) -> bytes:
    return _encode(value).encode()


async def dumps_in_turns(value: Any) -> bytes:
    """The same of what may be very long, in turns, so that nobody waits for all of it. An iterator is a list."""
    parts: list[bytes] = []
    await _encode_in_turns(value, parts)
    return b"".join(parts)


async def _encode_in_turns(value: Any, parts: list[bytes]) -> None:
    match value:
        case Iterator():
            before = b"["
            for i, item in enumerate(cast("Iterator[Any]", value), 1):
                parts += (before, dumps(item))
                before = b","
                if i % _OBJECTS == 0:
                    await asyncio.sleep(0)
            parts.append(b"[]" if before == b"[" else b"]")
        case {"object": _} | {"content": _} | {"tokens": _} | {"message": _} | {"text": _}:
            before = b"{"
            for name, inner in cast("dict[str, Any]", value).items():
                parts.append(before + dumps(name) + b":")
                before = b","
                await _encode_in_turns(inner, parts)
            parts.append(b"}")
        case [dict(), *_]:
            for i, inner in enumerate(cast("list[Any]", value)):
                parts.append(b"," if i else b"[")
                await _encode_in_turns(inner, parts)
            parts.append(b"]")
        case list() | tuple() | array() if len(value) > _NUMBERS:
            for at in range(0, len(value), _NUMBERS):
                parts += (b"," if at else b"[", dumps(list(value[at : at + _NUMBERS]))[1:-1])
                await asyncio.sleep(0)
            parts.append(b"]")
        case array():
            parts.append(dumps(value.tolist()))
        case _:
            parts.append(dumps(value))


def event(value: Any) -> bytes:
    return b"data: " + dumps(value) + b"\n\n"


def usage_object(u: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": u.prompt_tokens,
        "completion_tokens": u.completion_tokens,
        "total_tokens": u.prompt_tokens + u.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": u.cached_tokens},
    }


def token_object(t: TokenLogprob) -> dict[str, Any]:
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

    def extra(self, index: int, item: Extra) -> bytes:
        """The events of what came beside the text; may be none."""
        ...

    def finish(self, index: int, reason: str) -> bytes: ...
    def usage(self, usage: Usage) -> bytes: ...
    def whole(self, choices: Sequence[Choice], usage: Usage) -> dict[str, Any]: ...


__all__ = ["DONE", "Choice", "Shape", "dumps", "event", "quote"]
