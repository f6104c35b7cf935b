"""What the front end makes of a submit: a request for the engine and what its answer needs, or a result at once."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.core.streams import Result
from headrace.replica.engine import Delta, EncodeRequest, EngineRequest
from headrace.replica.reader import Reader
from headrace.replica.text import Answer

NOTHING = Delta()


@dataclass(slots=True)
class Prepared:
    """A request that may start. `finish` is set when nothing is left to generate: a resumed stream was complete."""

    request: EngineRequest
    answer: Answer
    prompt_tokens: int
    position: int  # index of the next token in the answer
    text: str  # certain by now, not sent yet
    logprobs: int | None
    finish: str | None = None
    reader: Reader | None = None
    echo: str = ""
    parsed: Delta = NOTHING  # of a resumed stream: reasoning and calls that are certain by now, not sent yet
    discard: bool = False  # only the prompt was of interest: what the engine generates is thrown away

    @property
    def plain(self) -> bool:
        """Whether its rows are tokens and text, and nothing else."""
        return self.reader is None and not self.discard and self.request.prompt_logprobs is None


@dataclass(slots=True)
class PreparedEncoding:
    """A request for numbers that may start."""

    request: EncodeRequest
    prompt_tokens: int


@dataclass(slots=True)
class PreparedResult:
    """A request that needs no engine."""

    result: Result
    prompt_tokens: int


Ready = Prepared | PreparedEncoding | PreparedResult
