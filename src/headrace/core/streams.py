"""Requests and streams: what a proxy asks of a replica, and what comes back. Plain, standard library only.

Durations are in seconds, times in seconds of Unix time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from headrace.core.types import Load

FinishReason = Literal["stop", "length", "tool_calls", "abort", "error"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose tokens. None: the model's generation_config.json, else neutral."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None  # 0: off
    min_p: float | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: Mapping[int, float] | None = None
    logprobs: int | None = None  # the chosen token's, and this many alternatives
    ignore_eos: bool | None = None
    min_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class TextPrompt:
    text: str


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    messages_json: bytes  # OpenAI messages, a JSON array


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    ids: Sequence[int]


Prompt = TextPrompt | ChatPrompt | TokenPrompt


@dataclass(frozen=True, slots=True)
class Resume:
    """What the client has had already, when a stream goes on from another replica."""

    token_ids: Sequence[int]
    text_chars: int
    reasoning_chars: int = 0


class Task(StrEnum):
    """What a stream is to bring: text, or one Result."""

    GENERATE = "generate"
    EMBED = "embed"
    SCORE = "score"
    TOKENIZE = "tokenize"
    DETOKENIZE = "detokenize"


@dataclass(frozen=True, slots=True)
class Guide:
    """The form that an answer must have. `value`: the schema, expression or grammar; a JSON list for "choices"."""

    kind: Literal["json_schema", "json_object", "regex", "grammar", "choices"]
    value: str = ""


@dataclass(frozen=True, slots=True)
class Submit:
    """Starts a stream: one choice of one request. `stream` is never used twice in a session."""

    stream: int
    request_id: str
    prompt: Prompt
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    resume: Resume | None = None
    task: Task = Task.GENERATE
    adapter: str = ""  # "": the model itself
    guide: Guide | None = None
    tools_json: bytes = b""  # OpenAI tools, a JSON array
    tool_choice: str = ""  # "none", "auto", "required", "function"; "": "auto" with tools
    tool_name: str = ""  # for "function"
    one_tool_call: bool = False
    template_args_json: bytes = b""  # for the chat template, a JSON object
    echo: bool = False
    document: str = ""  # SCORE; the prompt is the query
    dimensions: int = 0  # EMBED; 0: the model's own
    no_special_tokens: bool = False  # TOKENIZE
    prompt_logprobs: int | None = None
    received_unix_s: int = 0
    keep_s: float = 0.0
    take_over: int | None = None
    moves: int = 0
    prefix: Sequence[int] = ()  # the blocks of the prompt, see core/prefix.py
    owner: str = ""  # a digest of who called
    nonce: str = field(default="", repr=False)  # the secret by which the stream's reader is known again


def prompt_size(submit: Submit) -> int:
    """About how many bytes a submit takes with its prompt."""
    match submit.prompt:
        case TextPrompt(text):
            size = len(text)
        case ChatPrompt(messages_json):
            size = len(messages_json)
        case TokenPrompt(ids):
            size = 4 * len(ids)
    return size + len(submit.document) + len(submit.tools_json)


@dataclass(frozen=True, slots=True)
class Failure:
    """An error as it travels; errors.from_kind makes the exception of it."""

    kind: str
    message: str
    param: str | None = None
    retry_after_s: float | None = None
    code: str | None = None


@dataclass(frozen=True, slots=True)
class Started:
    stream: int
    prompt_tokens: int
    echo: str = ""
    delivered: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    stream: int
    reason: str
    cached_tokens: int = 0
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Rejected:
    stream: int
    failure: Failure


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    id: int
    token: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A piece of a tool call, as OpenAI streams it: id and name come once, arguments in pieces."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a parser took out of a stream's text."""

    stream: int
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """All that a stream brings which generates nothing; see Task."""

    stream: int
    values: Sequence[float] = ()
    token_ids: Sequence[int] = ()
    text: str = ""
    tokens: Sequence[str] = ()  # TOKENIZE with echo: each as the vocabulary spells it


@dataclass(slots=True)
class Frame:
    """The news of one engine step for one proxy, by column; see protos/headrace/v1/replica.proto."""

    streams: Sequence[int] = ()
    positions: Sequence[int] = ()
    counts: Sequence[int] = ()
    token_ids: Sequence[int] = ()
    texts: Sequence[str] = ()
    started: Sequence[Started] = ()
    finished: Sequence[Finished] = ()
    rejected: Sequence[Rejected] = ()
    logprobs: Sequence[tuple[int, tuple[TokenLogprob, ...]]] = ()
    load: Load | None = None
    draining: bool = False
    parsed: Sequence[Parsed] = ()
    results: Sequence[Result] = ()
    prompt_logprobs: Sequence[tuple[int, tuple[TokenLogprob, ...]]] = ()
    fingerprint: str = ""
    prefixes: Mapping[int, bool] = field(default_factory=dict[int, bool])  # held from now on, or no longer
    keeps_prefixes: bool = False
    took_prompts: bool = False
