"""The requests of OpenAI's API that we take: their fields, types and bounds.

What would change the answer and is not supported is refused, never ignored; what cannot change it is accepted. Fields
of the second group of `Common` are extensions that vLLM has too.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field

from headrace.core.streams import Prompt, Sampling, Submit
from headrace.proxy.fields import (
    MAX_CHOICES,
    MAX_MESSAGES,
    MAX_TOKENS,
    LogitBias,
    Metadata,
    Number,
    Only,
    Prompts,
    Stop,
    Unsupported,
)
from headrace.proxy.messages import Message, chat_prompt, user_prompt
from headrace.proxy.strict import Rejected, Strict
from headrace.proxy.ticket import PRIORITIES, Asked
from headrace.proxy.tools import ResponseFormat, StructuredOutputs, TemplateArgs, ToolChoiceField, Tools, tools_json

DEFAULT_COMPLETION_TOKENS = 16  # as OpenAI has it for /v1/completions


class StreamOptions(Strict):
    include_usage: bool = Field(False, description="End with a chunk that has `usage` and no choices.")
    include_obfuscation: bool | None = Field(None, description="Accepted; no effect.")


class Common(Strict):
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

    top_k: int | None = Field(None, ge=-1, le=2**20, description="0 or -1: off.")
    min_p: Number | None = Field(None, ge=0, le=1)
    repetition_penalty: Number | None = Field(None, gt=0, le=10)
    ignore_eos: bool | None = None
    min_tokens: int | None = Field(None, ge=0, le=MAX_TOKENS)
    priority: int | None = Field(
        None, ge=PRIORITIES[0], le=PRIORITIES[1], description="Of those who wait the lowest is served first; 0."
    )
    structured_outputs: StructuredOutputs | None = Field(
        None, description="The form of the answer: one of json, json_object, regex, choice, grammar."
    )

    # What vLLM's clients send along, where it changes nothing.
    use_beam_search: Annotated[Any, Only((False,))] = None
    length_penalty: Annotated[Any, Only((1, 1.0))] = None
    skip_special_tokens: Annotated[Any, Only((True,))] = None
    spaces_between_special_tokens: Annotated[Any, Only((True,))] = None
    include_stop_str_in_output: Annotated[Any, Only((False,))] = None
    stop_token_ids: Annotated[Any, Only(([],))] = None
    bad_words: Annotated[Any, Only(([],))] = None

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
            top_k=None if self.top_k is None else max(self.top_k, 0),
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

    def _submit(self, asked: Asked, prompt: Prompt, logprobs: int | None, **more: Any) -> Submit:
        more.setdefault("guide", self.structured_outputs)
        return Submit(
            0,
            asked.request_id,
            prompt,
            self._sampling(logprobs),
            self.limit(),
            self.stop or (),
            received_unix_s=asked.received_unix_s,
            owner=asked.owner,
            keep_s=asked.keep_s,
            nonce=asked.nonce,
            **more,
        )


class ChatRequest(Common):
    """POST /v1/chat/completions"""

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    metadata: Metadata | None = None
    store: bool | None = Field(None, description="Accepted; nothing is stored.")
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    parallel_tool_calls: bool | None = None

    tools: Tools | None = None
    tool_choice: ToolChoiceField | None = Field(None, description="With tools: auto, if nothing else is said.")
    response_format: ResponseFormat | None = Field(None, description="text, json_object or json_schema.")
    chat_template_kwargs: TemplateArgs | None = Field(None, description="Names and values for the chat template.")
    functions: Annotated[Any, Only(([],))] = None
    function_call: Annotated[Any, Only(("none", "auto"))] = None
    modalities: Annotated[Any, Only((["text"],))] = None
    audio: Unsupported = None
    prediction: Unsupported = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = Field(
        None, description="The chat template gets it, as vLLM has it."
    )
    verbosity: Annotated[Any, Only(("medium",))] = None
    web_search_options: Unsupported = None

    def limit(self) -> int | None:
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    def check(self) -> None:
        super().check()
        if self.top_logprobs and not self.logprobs:
            raise Rejected("needs logprobs: true", "top_logprobs")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise Rejected("differs from max_tokens; give one of them", "max_completion_tokens")
        named = (self.chat_template_kwargs or {}).get("reasoning_effort", self.reasoning_effort)
        if self.reasoning_effort and named != self.reasoning_effort:
            raise Rejected("differs from chat_template_kwargs.reasoning_effort; give one of them", "reasoning_effort")
        choice = self.tool_choice
        if choice is not None and choice.mode in ("required", "function") and not self.tools:
            raise Rejected("is only allowed with tools", "tool_choice")
        if choice is not None and choice.mode == "function":
            names = [t.function.name for t in self.tools or ()]
            if choice.name not in names:
                raise Rejected(f"names the function '{choice.name[:80]}', which is not among the tools", "tool_choice")
        if self.response_format and self.structured_outputs:
            raise Rejected("and response_format are two forms of one answer; give one of them", "structured_outputs")

    def _takes_tools(self) -> bool:
        return bool(self.tools) and not (self.tool_choice and self.tool_choice.mode == "none")

    def only_text(self) -> bool:
        """Whether text is all that is asked for: no tools, no log-probabilities."""
        return not (self.logprobs or self._takes_tools())

    def submits(self, asked: Asked) -> list[Submit]:
        """One; its stream number is still to be given."""
        return [self._chat_submit(asked, chat_prompt(self.messages))]

    def _chat_submit(self, asked: Asked, prompt: Prompt) -> Submit:
        more: dict[str, Any] = {}
        if self.response_format:
            more["guide"] = self.response_format
        args = dict(self.chat_template_kwargs or {})
        if self.reasoning_effort:
            args["reasoning_effort"] = self.reasoning_effort
        if args:
            more["template_args_json"] = json.dumps(args, ensure_ascii=False).encode()
        choice = self.tool_choice
        if self.tools and self._takes_tools():
            more |= {
                "tools_json": tools_json(self.tools),
                "tool_choice": choice.mode if choice else "auto",
                "tool_name": choice.name if choice else "",
                "one_tool_call": self.parallel_tool_calls is False,
            }
        return self._submit(asked, prompt, (self.top_logprobs or 0) if self.logprobs else None, **more)


class CompletionRequest(Common):
    """POST /v1/completions"""

    ids_in = frozenset({"prompt"})
    prompt: Prompts
    max_tokens: int | None = Field(None, ge=0, le=MAX_TOKENS, description="0 only with echo or prompt_logprobs.")
    logprobs: int | None = Field(None, ge=0, le=20, description="With echo, of the prompt too.")
    echo: bool | None = Field(None, description="Begin the text with the prompt.")
    prompt_logprobs: int | None = Field(None, ge=0, le=20, description="Not with stream.")
    best_of: int | None = Field(None, ge=1, le=16, description="Must equal n.")
    suffix: Annotated[Any, Only(("",))] = None

    def limit(self) -> int | None:
        return DEFAULT_COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens

    def check(self) -> None:
        super().check()
        if self.best_of is not None and self.best_of != self.choices():
            raise Rejected("is supported only where it equals n", "best_of")
        if len(self.prompt) * self.choices() > MAX_CHOICES:
            raise Rejected(f"times n makes more than {MAX_CHOICES} answers; send fewer prompts", "prompt")
        if self.limit() == 0 and not self.echo and self.prompt_logprobs is None:
            raise Rejected("must be at least 1, but with echo or prompt_logprobs", "max_tokens")
        if self.prompt_logprobs is not None and self.stream:
            raise Rejected("is not available with stream: true", "prompt_logprobs")

    def only_text(self) -> bool:
        """Whether text is all that is asked for: no log-probabilities."""
        return self.logprobs is None

    def submits(self, asked: Asked) -> list[Submit]:
        """One per prompt; their stream numbers are still to be given."""
        wanted = [self.prompt_logprobs, self.logprobs if self.echo else None]
        of_prompt = max((w for w in wanted if w is not None), default=None)
        return [
            self._submit(asked, p, self.logprobs, echo=bool(self.echo), prompt_logprobs=of_prompt) for p in self.prompt
        ]


class ModelChatRequest(ChatRequest):
    """POST /v1/chat/{model} with JSON: `prompt` or `messages`; the model is in the path."""

    model: str = Field("", max_length=256, description="If given, the path's.")
    prompt: str | None = Field(None, min_length=1)
    messages: list[Message] = Field([], max_length=MAX_MESSAGES, fail_fast=True)

    def check(self) -> None:
        super().check()
        if (self.prompt is None) == (not self.messages):
            raise Rejected("or messages must be given, one of the two", "prompt")

    def submits(self, asked: Asked) -> list[Submit]:
        if self.prompt is None:
            return super().submits(asked)
        return [self._chat_submit(asked, user_prompt(self.prompt))]


AnyRequest = ChatRequest | CompletionRequest
