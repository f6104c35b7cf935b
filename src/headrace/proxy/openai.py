"""The requests of OpenAI's API that we take: their fields, types and bounds.

What would change the answer and is not supported is refused, never ignored; what cannot change it is accepted. Fields
of the second group of `Common` are extensions that vLLM has too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema
from pydantic_core import core_schema

from headrace.core.types import ChatPrompt, Prompt, Sampling, Submit, TextPrompt, TokenPrompt

MAX_TOKENS = 2**31 - 1
MAX_CHOICES = 128  # prompts × n
MAX_STOP_CHARS = 256
MAX_MESSAGES = 4096
MAX_LOGIT_BIAS = 1024
DEFAULT_COMPLETION_TOKENS = 16  # as OpenAI has it for /v1/completions


class Rejected(ValueError):
    """A value that is wrong in a way that types cannot say. The message continues "`param` …"."""

    def __init__(self, message: str, at: str = "") -> None:
        super().__init__(message)
        self.at = at


def _stop(value: Any) -> tuple[str, ...]:
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, list):
        raise Rejected("must be a string or a list of up to 4 strings")
    if len(strings) > 4:
        raise Rejected(f"must hold at most 4 strings, not {len(strings)}")
    for i, s in enumerate(strings):
        if not isinstance(s, str) or not 1 <= len(s) <= MAX_STOP_CHARS:
            raise Rejected(f"must be a string of 1 to {MAX_STOP_CHARS} characters", f"[{i}]" if s is not value else "")
    return tuple(strings)


def _logit_bias(value: Any) -> dict[int, float]:
    if not isinstance(value, dict) or len(value) > MAX_LOGIT_BIAS:
        raise Rejected(f"must be an object of at most {MAX_LOGIT_BIAS} token ids")
    out: dict[int, float] = {}
    for key, bias in value.items():
        if not (isinstance(key, str) and key.isascii() and key.isdigit() and int(key) < 2**32):
            raise Rejected(f"must have token ids as keys, not {key[:40]!r}")
        if isinstance(bias, bool) or not isinstance(bias, (int, float)) or not -100 <= bias <= 100:
            raise Rejected("must hold numbers from -100 to 100", f".{key}")
        out[int(key)] = float(bias)
    return out


def _token_ids(value: list[Any], at: str = "") -> TokenPrompt:
    if not all(type(x) is int and 0 <= x < 2**32 for x in value):
        raise Rejected("must hold token ids, which are whole numbers from 0", at)
    return TokenPrompt(value)


def _prompts(value: Any) -> tuple[Prompt, ...]:
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not value:
        raise Rejected("must be a string, a list of strings, a list of token ids or a list of such lists; not empty")
    if type(value[0]) is int:
        return (_token_ids(value),)
    if len(value) > MAX_CHOICES:
        raise Rejected(f"must hold at most {MAX_CHOICES} prompts, not {len(value)}")
    if all(isinstance(x, str) for x in value):
        for i, text in enumerate(value):
            if not text:
                raise Rejected("must not be empty", f"[{i}]" if len(value) > 1 else "")
        return tuple(TextPrompt(x) for x in value)
    if all(isinstance(x, list) and x for x in value):
        return tuple(_token_ids(x, f"[{i}]") for i, x in enumerate(value))
    raise Rejected("must hold only strings, only token ids, or only lists of token ids; none of them empty")


def _content(value: Any) -> str:
    """Text, or parts of text, which become lines of one text: templates of text models know strings only."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise Rejected("must be a string or a list of text parts")
    texts: list[str] = []
    for i, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            raise Rejected(f"is a part of type {str(kind)[:40]!r}; only 'text' is supported", f"[{i}]")
        if set(part) != {"type", "text"} or not isinstance(part["text"], str):
            raise Rejected("must be an object with 'type' and a string 'text'", f"[{i}]")
        texts.append(part["text"])
    return "\n".join(texts)


@dataclass(frozen=True, slots=True)
class Only:
    """Marks a field that may only have values which change nothing: these, and null."""

    harmless: tuple[Any, ...] = ()

    def _check(self, value: Any) -> Any:
        if value is None or any(value == h and type(value) is type(h) for h in self.harmless):
            return value
        raise Rejected("is not supported")

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        return {"enum": [None, *self.harmless], "description": "Accepted only where it changes nothing."}


_TEXT = {"type": "string", "minLength": 1}
_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}}
Stop = Annotated[
    tuple[str, ...],
    PlainValidator(_stop),
    WithJsonSchema({"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "maxItems": 4}]}),
]
LogitBias = Annotated[
    dict[int, float],
    PlainValidator(_logit_bias),
    WithJsonSchema({"type": "object", "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100}}),
]
Prompts = Annotated[
    tuple[Prompt, ...],
    PlainValidator(_prompts),
    WithJsonSchema(
        {"anyOf": [_TEXT, {"type": "array", "items": _TEXT}, _IDS, {"type": "array", "items": _IDS}]},
    ),
]
Content = Annotated[
    str,
    PlainValidator(_content),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                        "required": ["type", "text"],
                    },
                },
            ]
        }
    ),
]
Unsupported = Annotated[Any, Only()]
Number = Annotated[float, Field(allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class StreamOptions(_Strict):
    include_usage: bool = Field(False, description="End with a chunk that has `usage` and no choices.")
    include_obfuscation: bool | None = Field(None, description="Accepted; no effect.")


class Message(_Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    name: str | None = Field(None, max_length=64, pattern=r"^[^\s<|\\/>]+$")


class Common(_Strict):
    """What chat and completions share."""

    model: str = Field(min_length=1, max_length=256)
    temperature: Number | None = Field(None, ge=0, le=2)
    top_p: Number | None = Field(None, gt=0, le=1)
    n: int | None = Field(None, ge=1, le=16)
    max_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    stop: Stop | None = None
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    presence_penalty: Number | None = Field(None, ge=-2, le=2)
    frequency_penalty: Number | None = Field(None, ge=-2, le=2)
    logit_bias: LogitBias | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None

    top_k: int | None = Field(None, ge=0, le=2**20, description="0: off.")
    min_p: Number | None = Field(None, ge=0, le=1)
    repetition_penalty: Number | None = Field(None, gt=0, le=10)
    ignore_eos: bool | None = None
    min_tokens: int | None = Field(None, ge=0, le=MAX_TOKENS)

    def choices(self) -> int:
        return self.n or 1

    def limit(self) -> int | None:
        return self.max_tokens

    def wants_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    def check(self) -> None:
        """What concerns more than one field. Rejected, with the field at its start."""
        if self.stream_options is not None and not self.stream:
            raise Rejected("is only allowed with stream: true", "stream_options")
        limit = self.limit()
        if self.min_tokens and limit is not None and self.min_tokens > limit:
            raise Rejected(f"must not be above the token limit of {limit}", "min_tokens")

    def _sampling(self, logprobs: int | None) -> Sampling:
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            seed=None if self.seed is None else self.seed % 2**64,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
            logit_bias=self.logit_bias or None,
            logprobs=logprobs,
            ignore_eos=self.ignore_eos,
            min_tokens=self.min_tokens,
        )

    def _submit(self, request_id: str, prompt: Prompt, logprobs: int | None) -> Submit:
        return Submit(0, request_id, prompt, self._sampling(logprobs), self.limit(), self.stop or ())


def _harmless_metadata(value: Mapping[str, str]) -> Mapping[str, str]:
    if len(value) > 16:
        raise Rejected("must have at most 16 keys")
    return value


class ChatRequest(Common):
    """POST /v1/chat/completions"""

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    metadata: Annotated[dict[str, str], AfterValidator(_harmless_metadata)] | None = None
    store: bool | None = Field(None, description="Accepted; nothing is stored.")
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    parallel_tool_calls: bool | None = None

    tools: Annotated[Any, Only(([],))] = None
    tool_choice: Annotated[
        Any,
        Only(
            (
                "none",
                "auto",
            )
        ),
    ] = None
    functions: Annotated[Any, Only(([],))] = None
    function_call: Annotated[
        Any,
        Only(
            (
                "none",
                "auto",
            )
        ),
    ] = None
    response_format: Annotated[Any, Only(({"type": "text"},))] = None
    modalities: Annotated[Any, Only((["text"],))] = None
    audio: Unsupported = None
    prediction: Unsupported = None
    reasoning_effort: Unsupported = None
    verbosity: Unsupported = None
    web_search_options: Unsupported = None

    def limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def check(self) -> None:
        super().check()
        if self.top_logprobs is not None and not self.logprobs:
            raise Rejected("needs logprobs: true", "top_logprobs")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise Rejected("differs from max_tokens; give one of them", "max_completion_tokens")

    def submits(self, request_id: str) -> list[Submit]:
        """One; its stream number is still to be given."""
        messages: list[dict[str, str]] = []
        for m in self.messages:
            # OpenAI's newer name for the system's role; chat templates know the older one.
            role = "system" if m.role == "developer" else m.role
            messages.append({"role": role, "content": m.content} | ({"name": m.name} if m.name else {}))
        prompt = ChatPrompt(json.dumps(messages, ensure_ascii=False).encode())
        return [self._submit(request_id, prompt, (self.top_logprobs or 0) if self.logprobs else None)]


class CompletionRequest(Common):
    """POST /v1/completions"""

    prompt: Prompts
    logprobs: int | None = Field(None, ge=0, le=20)
    best_of: int | None = Field(None, ge=1, le=16, description="Must equal n.")
    echo: Annotated[Any, Only((False,))] = None
    suffix: Annotated[Any, Only(("",))] = None

    def limit(self) -> int | None:
        return DEFAULT_COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens

    def check(self) -> None:
        super().check()
        if self.best_of is not None and self.best_of != self.choices():
            raise Rejected("is supported only where it equals n", "best_of")
        if len(self.prompt) * self.choices() > MAX_CHOICES:
            raise Rejected(f"times n makes more than {MAX_CHOICES} answers; send fewer prompts", "prompt")

    def submits(self, request_id: str) -> list[Submit]:
        """One per prompt; their stream numbers are still to be given."""
        return [self._submit(request_id, p, self.logprobs) for p in self.prompt]


class ModelChatRequest(ChatRequest):
    """POST /v1/chat/{model} with JSON: `prompt` or `messages`; the model is in the path."""

    model: str = Field("", max_length=256, description="If given, the path's.")
    prompt: str | None = Field(None, min_length=1)
    messages: list[Message] = Field([], max_length=MAX_MESSAGES)

    def check(self) -> None:
        super().check()
        if (self.prompt is None) == (not self.messages):
            raise Rejected("or messages must be given, one of the two", "prompt")

    def submits(self, request_id: str) -> list[Submit]:
        if self.prompt is None:
            return super().submits(request_id)
        prompt = ChatPrompt(json.dumps([{"role": "user", "content": self.prompt}], ensure_ascii=False).encode())
        return [self._submit(request_id, prompt, (self.top_logprobs or 0) if self.logprobs else None)]


AnyRequest = ChatRequest | CompletionRequest
