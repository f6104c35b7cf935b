"""Whether a prompt can fit a model's context at all: what cannot needs no tokenizing to be refused.

No token stands for more bytes than the longest of its vocabulary, so that a text has at least so many tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, cast

from headrace.core.streams import ChatPrompt, Submit, Task, TextPrompt, TokenPrompt
from headrace.errors import ContextExceeded

_TALK_BYTES = 4096
"""Of JSON around its texts that a conversation may have before anybody looks into it."""


def check_room(submit: Submit, context_tokens: int, prompt_bytes: int) -> None:
    """ContextExceeded if the prompt has more tokens than the context, whatever its tokens are. 0: that is not known."""
    param = _param(submit)
    match submit.prompt:
        case TokenPrompt(ids):
            if context_tokens and len(ids) > context_tokens:
                raise ContextExceeded(
                    f"The prompt has {len(ids)} tokens; this model's context is {context_tokens} tokens.", param=param
                )
            size = size_of(submit.document, prompt_bytes)
        case TextPrompt(text):
            size = size_of(text, prompt_bytes) + size_of(submit.document, prompt_bytes)
        case ChatPrompt(messages_json):
            size = len(messages_json)
            if prompt_bytes and size > prompt_bytes + _TALK_BYTES:
                size = sum(size_of(text, prompt_bytes) for text in _contents(messages_json))
            else:
                size = 0  # the template's output will be looked at
    check_bytes(size, context_tokens, prompt_bytes, param)


def check_bytes(size: int, context_tokens: int, prompt_bytes: int, param: str | None) -> None:
    """ContextExceeded if a text of `size` bytes has more tokens than the context."""
    if prompt_bytes and size > prompt_bytes:
        raise ContextExceeded(
            f"The prompt is too long: this model's context of {context_tokens} tokens holds no text of more than"
            f" {prompt_bytes} bytes.",
            param=param,
        )


def size_of(text: str, limit: int) -> int:
    """Bytes of `text` in UTF-8; if that is more than `limit`, perhaps fewer, but more than `limit`."""
    if len(text) > limit or text.isascii():
        return len(text)
    return len(text.encode("utf-8", "surrogatepass"))


def _param(submit: Submit) -> str:
    if submit.task in (Task.EMBED, Task.SCORE):
        return "input"
    return "messages" if isinstance(submit.prompt, ChatPrompt) else "prompt"


def _contents(messages_json: bytes) -> Iterator[str]:
    """What the messages say. Nothing, if they are no messages: then the replica will say so."""
    messages: Any = None
    with suppress(ValueError, RecursionError):
        messages = json.loads(messages_json)
    for message in cast("list[Any]", messages) if isinstance(messages, list) else ():
        content: Any = cast("dict[str, Any]", message).get("content") if isinstance(message, dict) else None
        if isinstance(content, str):
            yield content
        for part in cast("list[Any]", content) if isinstance(content, list) else ():
            text: Any = cast("dict[str, Any]", part).get("text") if isinstance(part, dict) else None
            if isinstance(text, str):
                yield text
