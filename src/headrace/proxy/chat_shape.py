"""chat.completion and chat.completion.chunk"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from headrace.core.streams import Parsed, TokenLogprob, ToolCall
from headrace.proxy.extras import Extra
from headrace.proxy.generation import Usage
from headrace.proxy.shapes import Choice, dumps, event, token_object, usage_object


def _reasoning(text: str) -> dict[str, str]:
    """vLLM's name for it, and the one that it had and that others have."""
    return {"reasoning": text, "reasoning_content": text}


def _call_piece(c: ToolCall) -> dict[str, Any]:
    if not c.name:
        return {"index": c.index, "function": {"arguments": c.arguments}}
    return {"index": c.index, **_call(c)}


def _call(c: ToolCall) -> dict[str, Any]:
    return {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}


def _message(c: Choice) -> dict[str, Any]:
    content = c.text if c.text or not (c.calls or c.reasoning) else None
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
    if c.reasoning:
        message |= _reasoning(c.reasoning)
    if c.calls:
        message["tool_calls"] = [_call(c.calls[i]) for i in sorted(c.calls)]
    return message


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
    _open: bytes = b""  # an event up to its choices
    _close: bytes = b""  # and after them

    def __post_init__(self) -> None:
        chunk = {"id": self.id, "object": "chat.completion.chunk", "created": self.created, "model": self.model}
        self._open = event(chunk)[: -len(b"}\n\n")] + b',"choices":['
        self._close = b"]" + (b',"usage":null' if self.include_usage else b"") + b"}\n\n"
        self.tail = b'},"logprobs":null,"finish_reason":null}' + self._close

    def _delta(self, index: int, delta: dict[str, Any], logprobs: Any = None) -> bytes:
        choice = dumps({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": None})
        return self._open + choice + self._close

    def prelude(self) -> bytes:
        return b"".join(
            b'%b{"index":%d,"delta":{"role":"assistant","content":""%b' % (self._open, i, self.tail)
            for i in range(self.choices)
        )

    def head(self, index: int) -> bytes:
        return b'%b{"index":%d,"delta":{"content":' % (self._open, index)

    def with_logprobs(self, index: int, text: str, tokens: Sequence[TokenLogprob]) -> bytes:
        logprobs = self._logprobs(tokens)
        return self._delta(index, {"content": text}, logprobs | {"content": list(logprobs["content"])})

    def _logprobs(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        content = (token_object(t) | {"top_logprobs": [token_object(a) for a in t.top]} for t in tokens)
        return {"content": content, "refusal": None}

    def extra(self, index: int, item: Extra) -> bytes:
        if not isinstance(item, Parsed):
            return b""
        delta: dict[str, Any] = {}
        if item.reasoning:
            delta |= _reasoning(item.reasoning)
        if item.tool_calls:
            delta["tool_calls"] = [_call_piece(c) for c in item.tool_calls]
        return self._delta(index, delta)

    def finish(self, index: int, reason: str) -> bytes:
        ended = b'{"index":%d,"delta":{},"logprobs":null,"finish_reason":"%b"}' % (index, reason.encode())
        return self._open + ended + self._close

    def usage(self, usage: Usage) -> bytes:
        return self._open + b'],"usage":' + dumps(usage_object(usage)) + b"}\n\n"

    def whole(self, choices: Sequence[Choice], usage: Usage) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": "chat.completion",
            "created": self.created,
            "model": self.model,
            "choices": [
                {
                    "index": i,
                    "message": _message(c),
                    "logprobs": self._logprobs(c.logprobs) if self.logprobs else None,
                    "finish_reason": c.reason,
                }
                for i, c in enumerate(choices)
            ],
            "usage": usage_object(usage),
        }
