"""The contract between a replica's front end and the engine that runs its model.

An engine knows token ids only. Text, chat templates and stop strings belong to the front end, which is the same for all
engines. An engine runs a thread (or a task) of its own and calls `on_step` once per step, from that thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from headrace.core.streams import Guide, Sampling, Task, ToolCall
from headrace.core.types import Load, ModelInfo


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One sequence to generate. `sampling` holds no None that has a default: the front end has filled it in.

    `prompt_ids` already contains the delivered ids of a resumed stream; `delivered` says how many of them are the
    answer's own, so that penalties and min_tokens can count them. `max_tokens` counts new tokens only.
    """

    id: int
    prompt_ids: Sequence[int]
    max_tokens: int
    sampling: Sampling
    stop_token_ids: tuple[int, ...] = ()
    delivered: int = 0
    adapter: str = ""  # a LoRA adapter that `set_adapters` has named; "": the model itself
    guide: Guide | None = None  # the form that the answer must have
    prompt_logprobs: int | None = None
    parsing: Parsing | None = None  # what is taken out of the answer; the form is that of what is left
    caller: str = ""  # whose it is, where callers are told apart


@dataclass(frozen=True, slots=True)
class EncodeRequest:
    """A text to make numbers of: a vector (EMBED), or how well `document` fits the text (SCORE).

    `ids`: of the text, or of the pair where the tokenizer joins them, then with the `types` that tell the two apart;
    the texts are there for engines that want those.
    """

    id: int
    task: Task
    ids: Sequence[int]
    text: str = ""
    document: str = ""
    dimensions: int = 0
    adapter: str = ""
    types: Sequence[int] = ()


@dataclass(slots=True)
class Row:
    """The news of one request: new token ids, and why it ended if it did.

    `logprobs`: one per token, (chosen, ((id, logprob) of alternatives…)); empty unless asked for.
    `tokens` leaves out the end-of-sequence token and stop tokens.
    """

    id: int
    tokens: Sequence[int]
    finish: str | None = None  # "stop", "length", "abort", "error"
    logprobs: Sequence[tuple[float, Sequence[tuple[int, float]]]] = ()
    cached_tokens: int = 0
    error: str = ""
    kind: str = "internal"  # of the error: "invalid_request" if the request is at fault, "overloaded", "internal"
    values: Sequence[float] = ()  # of an EncodeRequest, with finish "stop"
    # Once, with or before the first tokens: (token, its, alternatives) of every prompt token; the first's number says
    # nothing.
    prompt_logprobs: Sequence[tuple[int, float, Sequence[tuple[int, float]]]] = ()


@dataclass(slots=True)
class Step:
    """What one engine step brought, for all requests."""

    rows: list[Row] = field(default_factory=list)
    load: Load = field(default_factory=Load)


@dataclass(frozen=True, slots=True)
class Delta:
    """What a parser makes of a piece of an answer's text."""

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()


class OutputParser(Protocol):
    """Takes reasoning and tool calls out of one answer as it comes.

    Calls may come without an id: the front end gives them one. A parser with an attribute `special_tokens` that is true
    is given text in which the special tokens of the answer are spelled out.
    """

    def push(self, text: str, ids: Sequence[int]) -> Delta:
        """The next piece; `ids`: the tokens that brought it (they may be ahead of the text)."""
        ...

    def finish(self) -> Delta:
        """The rest, when no more text comes."""
        ...


@dataclass(frozen=True, slots=True)
class Parsing:
    """What to take out of an answer: tool calls of `tools` (OpenAI's objects; none: no calls), and always reasoning.

    Where a call is demanded the front end guides the engine to plain JSON and reads it itself: then `tools` is empty.
    """

    tools: Sequence[Mapping[str, Any]] = ()
    prompt_ids: Sequence[int] = ()
    template_args: Mapping[str, Any] = field(default_factory=dict)  # some models reason only if these say so


class Engine(Protocol):
    """One model, loaded.

    `info.features` names what it honours: the fields of Sampling and "top_logprobs"; the kinds of Guide ("json_schema",
    "json_object", "regex", "grammar", "choices"); "tool_parser" if `parser` can find tool calls; "prompt_logprobs",
    "adapters", and "dimensions" of vectors; "resumed_penalties" if presence and frequency count delivered ids too.
    What is not named is refused before it gets here.
    """

    info: ModelInfo
    eos_ids: tuple[int, ...]
    defaults: Sampling  # from the model's generation_config.json
    stall_s: float  # so long without a step, with requests to work on, means that it is dead
    prefix_tokens: int  # that its prefix cache can hold; 0: it has none

    def parser(self, parsing: Parsing) -> OutputParser | None:
        """A new answer's parser, as the deployment's tool_parser and reasoning_parser say; None if neither applies."""
        ...

    def start(self, on_step: Callable[[Step], None], on_death: Callable[[str], None]) -> None:
        """Begin to step. `on_death` is called once, with a reason, if the engine can never step again."""
        ...

    def submit(self, request: EngineRequest) -> None:
        """Queue a request. Thread-safe. A request that cannot run ends with a row of finish "error"."""
        ...

    def encode(self, request: EncodeRequest) -> None:
        """Queue a request for numbers; only if `info.tasks` names its task. Thread-safe; ends with one row."""
        ...

    def set_adapters(self, adapters: Mapping[str, Path]) -> Mapping[str, str]:
        """Have exactly these LoRA adapters (name → PEFT folder): load what is new, drop what is gone.

        Slow; called in a thread after `start`, one call at a time. Nothing that was not aborted runs with what is gone,
        and a name never changes its folder without having been gone. Returns name → why it was not loaded, for those
        that were not; for all, if `info.features` does not name "adapters".
        """
        ...

    def abort(self, request_id: int) -> None:
        """End a request soon. Thread-safe, idempotent; a last row with a finish always follows."""
        ...

    def load(self) -> Load:
        """The load now. Thread-safe, cheap."""
        ...

    def close(self) -> None:
        """Stop stepping and free everything; requests in flight end without a row."""
        ...
