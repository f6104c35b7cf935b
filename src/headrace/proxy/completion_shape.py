"""text_completion, whole and in parts"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from headrace.core.streams import TokenLogprob
from headrace.proxy.extras import Echo, Extra, PromptLogprobs
from headrace.proxy.generation import Usage
from headrace.proxy.shapes import Choice, event, usage_object


class Offsets:
    """Where in the text each token begins, in characters; a token of half a character moves nothing."""

    def __init__(self, first: int = 0) -> None:
        self._at = first
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def of(self, tokens: Sequence[TokenLogprob]) -> list[int]:
        out: list[int] = []
        for t in tokens:
            out.append(self._at)
            self._at += len(self._decode(t.token))
        return out


def prompt_offsets(text: str, tokens: Sequence[TokenLogprob]) -> list[int]:
    """The same for a prompt, whose text lacks what the tokenizer added by itself."""
    data, at, out = text.encode(), 0, []
    for t in tokens:
        out.append(len(data[:at].decode("utf-8", "ignore")))
        for token in (t.token, t.token.removeprefix(b" ")):  # some tokenizers put a space before a text
            if token and data.startswith(token, at):
                at += len(token)
                break
    return out


def _number(logprob: float) -> float:
    return max(logprob, -9999.0)  # JSON has no -inf


def _logprobs(tokens: Sequence[TokenLogprob], offsets: list[int], prompt: bool = False) -> dict[str, Any]:
    """`prompt`: nothing came before the first token, so that it has no probability. `top_logprobs` is an iterator."""
    numbers: list[float | None] = [_number(t.logprob) for t in tokens]
    if prompt and tokens:
        numbers[0] = None
    tops = (None if n is None else _top(t) for n, t in zip(numbers, tokens, strict=True))
    return {
        "tokens": [t.token.decode("utf-8", "replace") for t in tokens],
        "token_logprobs": numbers,
        "top_logprobs": tops,
        "text_offset": offsets,
    }


def _top(t: TokenLogprob) -> dict[str, float]:
    return {a.token.decode("utf-8", "replace"): _number(a.logprob) for a in (*t.top, t)}


def _named(t: TokenLogprob) -> dict[str, Any]:
    """As vLLM has them: by token id, with the rank where it is known."""
    ranks = {a.id: rank for rank, a in enumerate(t.top, 1)}
    return {
        str(a.id): {
            "logprob": _number(a.logprob),
            "rank": ranks.get(a.id),
            "decoded_token": a.token.decode("utf-8", "replace"),
        }
        for a in (t, *t.top)
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
    echo: bool = False
    prompt_logprobs: bool = False
    _offsets: dict[int, Offsets] = field(default_factory=dict)
    _echoes: dict[int, str] = field(default_factory=dict)  # that wait for their log-probabilities

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
        offsets = self._offsets.setdefault(index, Offsets())
        return self._text(index, text, _logprobs(tokens, offsets.of(tokens)))

    def _text(self, index: int, text: str, logprobs: dict[str, Any] | None = None) -> bytes:
        if logprobs is not None:
            logprobs["top_logprobs"] = list(logprobs["top_logprobs"])
        return self._chunk([{"index": index, "text": text, "logprobs": logprobs, "finish_reason": None}])

    def extra(self, index: int, item: Extra) -> bytes:
        match item:
            case Echo(text) if self.logprobs:
                self._echoes[index] = text
            case Echo(text):
                return self._text(index, text)
            case PromptLogprobs(tokens) if index in self._echoes:
                echo = self._echoes.pop(index)
                self._offsets[index] = Offsets(len(echo))
                return self._text(index, echo, _logprobs(tokens, prompt_offsets(echo, tokens), prompt=True))
            case _:
                pass
        return b""

    def finish(self, index: int, reason: str) -> bytes:
        return self._chunk([{"index": index, "text": "", "logprobs": None, "finish_reason": reason}])

    def usage(self, usage: Usage) -> bytes:
        return self._chunk([], usage_object(usage))

    def whole(self, choices: Sequence[Choice], usage: Usage) -> dict[str, Any]:
        made = [self._choice(i, c) for i, c in enumerate(choices)]
        return self._object(made) | {"usage": usage_object(usage)}

    def _choice(self, index: int, c: Choice) -> dict[str, Any]:
        echo = c.echo or ""
        logprobs = None
        if self.logprobs:
            logprobs = _logprobs(c.logprobs, Offsets(len(echo)).of(c.logprobs))
            if self.echo:
                before = _logprobs(c.prompt_logprobs, prompt_offsets(echo, c.prompt_logprobs), prompt=True)
                tops = chain(before["top_logprobs"], logprobs["top_logprobs"])
                logprobs = {k: tops if k == "top_logprobs" else before[k] + logprobs[k] for k in logprobs}
        made = {"index": index, "text": echo + c.text, "logprobs": logprobs, "finish_reason": c.reason}
        if self.prompt_logprobs:
            made["prompt_logprobs"] = (_named(t) if i else None for i, t in enumerate(c.prompt_logprobs))
        return made
