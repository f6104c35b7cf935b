"""What a stream may bring beside its text."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.core.streams import Parsed, Result, TokenLogprob


@dataclass(frozen=True, slots=True)
class Echo:
    """The prompt's text."""

    text: str


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """One per token of the prompt."""

    tokens: tuple[TokenLogprob, ...]


Extra = Parsed | Result | Echo | PromptLogprobs
