"""The requests that generate nothing: embeddings, scores, ranks, and a model's tokens."""

from __future__ import annotations

import json
from typing import Literal

from pydantic import Field

from headrace.core.streams import Prompt, Submit, Task, TextPrompt
from headrace.proxy.fields import MAX_INPUTS, MAX_MESSAGES, Inputs, Texts, Tokens
from headrace.proxy.messages import Message, chat_prompt
from headrace.proxy.strict import Rejected, Strict
from headrace.proxy.ticket import PRIORITIES, Asked
from headrace.proxy.tools import TemplateArgs


class _Request(Strict):
    model: str = Field(min_length=1, max_length=256)
    user: str | None = None
    priority: int | None = Field(
        None, ge=PRIORITIES[0], le=PRIORITIES[1], description="Of those who wait the lowest is served first; 0."
    )


MAX_NUMBERS = 2**22
"""Of all vectors of an answer: 2,048 texts of 2,048 dimensions, some 80 MB of JSON."""


class EmbeddingRequest(_Request):
    """POST /v1/embeddings"""

    ids_in = frozenset({"input"})
    input: Inputs
    encoding_format: Literal["float", "base64"] | None = Field(None, description="float, if nothing is said.")
    dimensions: int | None = Field(None, ge=1, le=2**16, description="For models that can shorten their vectors.")

    def check(self) -> None:
        if self.dimensions and self.dimensions * len(self.input) > MAX_NUMBERS:
            raise Rejected(f"and the number of texts make more than {MAX_NUMBERS} numbers: ask for fewer", "dimensions")

    def submits(self, asked: Asked) -> list[Submit]:
        return [
            Submit(0, asked.request_id, p, task=Task.EMBED, dimensions=self.dimensions or 0, owner=asked.owner)
            for p in self.input
        ]


def _score(asked: Asked, text: str, document: str) -> Submit:
    return Submit(0, asked.request_id, TextPrompt(text), task=Task.SCORE, document=document, owner=asked.owner)


class ScoreRequest(_Request):
    """POST /score"""

    text_1: Texts = Field(description="One, or as many as text_2 has.")
    text_2: Texts

    def check(self) -> None:
        if len(self.text_1) not in (1, len(self.text_2)):
            raise Rejected(f"must be one text or {len(self.text_2)}, as many as text_2 has", "text_1")

    def submits(self, asked: Asked) -> list[Submit]:
        first = self.text_1 if len(self.text_1) > 1 else self.text_1 * len(self.text_2)
        return [_score(asked, a, b) for a, b in zip(first, self.text_2, strict=True)]


class RerankRequest(_Request):
    """POST /rerank"""

    query: str = Field(min_length=1)
    documents: Texts
    top_n: int | None = Field(None, ge=0, le=MAX_INPUTS, description="0: all.")
    return_documents: bool | None = Field(None, description="true, if nothing is said.")

    def submits(self, asked: Asked) -> list[Submit]:
        return [_score(asked, self.query, d) for d in self.documents]


class TokenizeRequest(_Request):
    """POST /tokenize"""

    prompt: str | None = None
    messages: list[Message] | None = Field(None, min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    add_special_tokens: bool | None = Field(None, description="true for a prompt, false for messages.")
    add_generation_prompt: bool | None = Field(None, description="With messages; true, if nothing is said.")
    return_token_strs: bool | None = None
    chat_template_kwargs: TemplateArgs | None = None

    def check(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            raise Rejected("or messages must be given, one of the two", "prompt")
        for field in ("add_generation_prompt", "chat_template_kwargs"):
            if self.prompt is not None and getattr(self, field) is not None:
                raise Rejected("is only allowed with messages", field)

    def submits(self, asked: Asked) -> list[Submit]:
        special = self.add_special_tokens
        if special is None:
            special = self.messages is None
        args = dict(self.chat_template_kwargs or {})
        if self.add_generation_prompt is not None:
            args["add_generation_prompt"] = self.add_generation_prompt
        prompt: Prompt = chat_prompt(self.messages) if self.messages else TextPrompt(self.prompt or "")
        return [
            Submit(
                0,
                asked.request_id,
                prompt,
                task=Task.TOKENIZE,
                template_args_json=json.dumps(args, ensure_ascii=False).encode() if args else b"",
                echo=bool(self.return_token_strs),
                no_special_tokens=not special,
                owner=asked.owner,
            )
        ]


class DetokenizeRequest(_Request):
    """POST /detokenize"""

    ids_in = frozenset({"tokens"})
    tokens: Tokens

    def submits(self, asked: Asked) -> list[Submit]:
        return [Submit(0, asked.request_id, self.tokens, task=Task.DETOKENIZE, owner=asked.owner)]


TaskRequest = EmbeddingRequest | ScoreRequest | RerankRequest | TokenizeRequest | DetokenizeRequest
