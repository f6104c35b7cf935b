"""The front end of every engine: from what a proxy submits to what an engine runs, and the state to make text of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from headrace.core import simulated
from headrace.core.room import check_bytes, check_room, size_of
from headrace.core.streams import ChatPrompt, Guide, Result, Sampling, Submit, Task, TextPrompt, TokenPrompt
from headrace.core.types import ModelInfo, ModelSpec
from headrace.errors import CannotResume, ContextExceeded, InvalidRequest
from headrace.replica import forms
from headrace.replica.control import Control
from headrace.replica.engine import Delta, EncodeRequest, EngineRequest, OutputParser, Parsing
from headrace.replica.prepared import Prepared, PreparedEncoding, PreparedResult, Ready
from headrace.replica.reader import Reader
from headrace.replica.renderer import Renderer
from headrace.replica.sampling import check, complete
from headrace.replica.template import ChatTemplate, Templating, find_special_tokens, find_template, read_args
from headrace.replica.text import Answer
from headrace.replica.tokenizer import FileCodec, SimulatedCodec, TextCodec
from headrace.replica.weights import Model

MAX_PROMPT_LOGPROBS = 64 * 1024
MAX_LISTED = 1024 * 1024
"""Tokens of an answer of /tokenize."""

QUICK_BYTES = 8_000
"""Of text and JSON that may be worked on where everybody waits meanwhile."""

NewParser = Callable[[Parsing], OutputParser | None]

_DOES = {"generate": "generates text", "embed": "makes embeddings", "score": "scores pairs of texts"}
_ASKS = {Task.GENERATE: "generate text", Task.EMBED: "make embeddings", Task.SCORE: "score pairs of texts"}


def size_in_bytes(submit: Submit) -> int:
    """About how much there is to read."""
    p = submit.prompt
    size = len(getattr(p, "text", "") or getattr(p, "messages_json", b"")) + 4 * len(getattr(p, "ids", ()))
    delivered = 4 * len(submit.resume.token_ids) if submit.resume else 0
    return size + delivered + len(submit.tools_json) + len(submit.document)


class FrontEnd:
    """Everything about text for one loaded model. Methods are thread-safe."""

    def __init__(
        self,
        info: ModelInfo,
        defaults: Sampling,
        eos_ids: tuple[int, ...],
        codec: TextCodec,
        template: Templating | None,
        new_parser: NewParser,
    ) -> None:
        """`info` without its bound for texts, which the tokenizer has."""
        info = replace(info, prompt_bytes=codec.prompt_bytes(info.context_tokens))
        self.info = self._info = info
        self._defaults, self._eos_ids = defaults, eos_ids
        self.codec = codec
        self._template = template
        self._new_parser = new_parser

    def quick(self, submit: Submit) -> bool:
        """Whether `prepare` takes a moment only, whatever the template is."""
        if isinstance(submit.prompt, ChatPrompt) and isinstance(self._template, Renderer):
            return False
        return size_in_bytes(submit) < QUICK_BYTES

    def close(self) -> None:
        """Free what it has."""
        if isinstance(self._template, Renderer):
            self._template.close()

    def prepare(self, request_id: int, submit: Submit) -> Ready:
        """What is to be done for `submit`. InvalidRequest (or its ContextExceeded) if it cannot be."""
        info = self._info
        if submit.task in _ASKS and submit.task not in info.tasks:
            does = " and ".join(_DOES.get(t, t) for t in info.tasks)
            raise InvalidRequest(f"This model cannot {_ASKS[submit.task]}: it {does}.", param="model")
        if submit.adapter and "adapters" not in info.features:
            raise InvalidRequest(
                f"This model runs in the engine {info.engine!r}, which has no adapters.", param="model"
            )
        match submit.task:
            case Task.GENERATE:
                return self._generation(request_id, submit)
            case Task.EMBED | Task.SCORE:
                return self._encoding(request_id, submit)
            case Task.TOKENIZE:
                special = not submit.no_special_tokens
                if isinstance(submit.prompt, TextPrompt):
                    check_room(submit, info.context_tokens, info.prompt_bytes)
                    ids = self.codec.encode(submit.prompt.text, special)
                else:
                    ids = self._encode(submit, [], special)
                if len(ids) > MAX_LISTED:
                    raise ContextExceeded(
                        f"The text has {len(ids)} tokens; at most {MAX_LISTED} are listed. Send it in parts.",
                        param="prompt",
                    )
                names = tuple([self.codec.name(i) for i in ids]) if submit.echo else ()
                return PreparedResult(Result(submit.stream, token_ids=ids, tokens=names), len(ids))
            case Task.DETOKENIZE:
                ids = self._encode(submit, [])
                return PreparedResult(Result(submit.stream, text=self.codec.decode(ids)), len(ids))

    def _generation(self, request_id: int, submit: Submit) -> Prepared:
        info = self._info
        check(submit.sampling, info.features, info.engine, info.vocab_size)
        only_prompt = submit.max_tokens == 0 and (submit.echo or submit.prompt_logprobs is not None)
        if submit.max_tokens is not None and submit.max_tokens < 1 and not only_prompt:
            raise InvalidRequest("'max_tokens' must be at least 1.", param="max_tokens")
        if submit.prompt_logprobs is not None and "prompt_logprobs" not in info.features:
            raise InvalidRequest(
                f"This model runs in the engine {info.engine!r}, which has no log-probabilities of prompts; leave"
                " 'prompt_logprobs', or one of 'echo' and 'logprobs', out.",
                param="echo" if submit.echo else "prompt_logprobs",
            )
        tools = forms.read_tools(submit)
        guide, calls = forms.form_of(submit, tools, info, takes_tools=not self._template or self._template.takes_tools)
        prompt = self._encode(submit, tools)
        self._check_room(len(prompt), submit, answer=1)
        if submit.prompt_logprobs is not None and (1 + submit.prompt_logprobs) * len(prompt) > MAX_PROMPT_LOGPROBS:
            raise InvalidRequest(
                f"The prompt has {len(prompt)} tokens; with {submit.prompt_logprobs} alternatives for each that is more"
                f" than the {MAX_PROMPT_LOGPROBS} log-probabilities that one request may have.",
                param="echo" if submit.echo else "prompt_logprobs",
            )
        room = info.context_tokens - len(prompt)
        limit = room if submit.max_tokens is None else min(submit.max_tokens, room)
        delivered = list(submit.resume.token_ids) if submit.resume else []
        self._check_ids(delivered, "resume")
        if delivered and submit.take_over is None:
            self._check_resumable(submit, guide)
        parser = parsing = None
        if isinstance(submit.prompt, ChatPrompt):
            parsing = Parsing(() if calls else tools, prompt, read_args(submit.template_args_json))
            parser = self._new_parser(parsing)
        reader = None
        if parser or calls:
            reader = Reader(parser, calls, one_call=submit.one_tool_call, named=submit.tool_choice == "function")
        continued = not isinstance(submit.prompt, ChatPrompt)
        answer = Answer(self.codec.detokenizer(continued, getattr(parser, "special_tokens", False)), submit.stop)
        text, parsed = "", Delta()
        if submit.resume and reader:
            # Token by token, as it was read before. A stream whose client has part of a call is not resumed.
            reader.resume(submit.resume.text_chars, submit.resume.reasoning_chars)
            deltas = [reader.push(answer.push([i])[1], [i]) for i in delivered]
            text = "".join(d.text for d in deltas)
            calls_ = tuple(c for d in deltas for c in d.tool_calls)
            parsed = Delta("", "".join(d.reasoning for d in deltas), calls_)
        elif submit.resume:
            text = answer.resume(delivered, submit.resume.text_chars)
        finish = "stop" if answer.stopped else "length" if len(delivered) >= limit else None
        discard = only_prompt and submit.prompt_logprobs is not None
        if discard:
            limit, finish = 1, None
        request = EngineRequest(
            request_id,
            prompt + delivered,
            limit - len(delivered),
            complete(submit.sampling, self._defaults),
            (),
            len(delivered),
            submit.adapter,
            guide,
            submit.prompt_logprobs,
            parsing if parser else None,
            submit.owner,
        )
        logprobs = submit.sampling.logprobs
        echo = self._echo(submit, prompt) if submit.echo else ""
        position = len(delivered)
        return Prepared(request, answer, len(prompt), position, text, logprobs, finish, reader, echo, parsed, discard)

    def _check_resumable(self, submit: Submit, guide: Guide | None) -> None:
        s = submit.sampling
        if guide:
            why = "its form is enforced from the first token on"
        elif (s.presence_penalty or s.frequency_penalty) and "resumed_penalties" not in self._info.features:
            why = "its engine counts presence and frequency over the tokens that it made itself"
        else:
            return
        raise CannotResume(f"This answer cannot go on at another replica exactly: {why}. Ask again.")

    def _encoding(self, request_id: int, submit: Submit) -> PreparedEncoding:
        if submit.dimensions and "dimensions" not in self._info.features:
            raise InvalidRequest(
                "This model's vectors have one length only; leave 'dimensions' out.", param="dimensions"
            )
        text = submit.prompt.text if isinstance(submit.prompt, TextPrompt) else ""
        types: list[int] = []
        if submit.task is Task.SCORE and text:
            check_room(submit, self._info.context_tokens, self._info.prompt_bytes)
            ids, types = self.codec.encode_pair(text, submit.document)
        else:
            ids = self._encode(submit, [])
            text = text or self.codec.decode(ids)
        self._check_room(len(ids), submit, answer=0)
        request = EncodeRequest(
            request_id, submit.task, ids, text, submit.document, submit.dimensions, submit.adapter, types
        )
        return PreparedEncoding(request, len(ids))

    def warm_up(self, request_id: int) -> EngineRequest | EncodeRequest:
        """A request for one token, or for the numbers of one."""
        ids = self.codec.encode("a", special=True) or list(self._eos_ids[:1]) or [0]
        tasks = self._info.tasks
        if "generate" not in tasks:
            task = Task(tasks[0])
            pair = task is Task.SCORE
            types: list[int] = []
            if pair:
                ids, types = self.codec.encode_pair("a", "a")
            return EncodeRequest(request_id, task, ids, "a", "a" if pair else "", types=types)
        sampling = replace(complete(Sampling(), Sampling()), temperature=0.0, ignore_eos=True)
        return EngineRequest(request_id, ids, 1, sampling)

    def _encode(self, submit: Submit, tools: list[dict[str, Any]], special: bool = False) -> list[int]:
        """The prompt's ids. `special`: also on top of a chat template, which writes the special tokens itself."""
        match submit.prompt:
            case TokenPrompt(ids):
                check_room(submit, self._info.context_tokens, 0)
                prompt = list(ids)
                self._check_ids(prompt, "prompt")
            case TextPrompt(text):
                check_room(submit, self._info.context_tokens, self._info.prompt_bytes)
                # The text of an embedding is a user's; a completion's is the caller's own, with control tokens and all.
                plain = submit.task in (Task.EMBED, Task.SCORE)
                # An empty text still needs a token to go on from.
                prompt = self.codec.encode(text, special=True, plain=plain) or list(self._eos_ids[:1])
            case ChatPrompt(messages_json):
                if self._template is None:
                    raise InvalidRequest(
                        "This model has no chat template. Use /v1/completions with a prompt, or deploy it with one.",
                        param="messages",
                    )
                args = read_args(submit.template_args_json)
                now = submit.received_unix_s or time.time()
                most = self._info.prompt_bytes
                rendered, plain = self._template.prompt(messages_json, tools, args, now, most)
                context = self._info.context_tokens
                check_bytes(size_of(rendered, most), context, most, "messages")
                prompt = self.codec.encode(rendered, special, plain)
        if not prompt:
            raise InvalidRequest("The prompt is empty.", param="prompt")
        return prompt

    def _echo(self, submit: Submit, prompt: list[int]) -> str:
        match submit.prompt:
            case TextPrompt(text):
                return text
            case _:
                return self.codec.decode(prompt)

    def _check_room(self, tokens: int, submit: Submit, answer: int) -> None:
        context = self._info.context_tokens
        if tokens + answer > context:
            param = "messages" if isinstance(submit.prompt, ChatPrompt) else "prompt"
            raise ContextExceeded(
                f"The prompt has {tokens} tokens; this model's context is {context} tokens"
                + (", and the answer needs at least one." if answer else "."),
                param=param if submit.task is Task.GENERATE else "input",
            )

    def _check_ids(self, ids: list[int], param: str) -> None:
        if ids and not (min(ids) >= 0 and max(ids) < self._info.vocab_size):
            raise InvalidRequest(f"Token ids of this model are 0 to {self._info.vocab_size - 1}.", param=param)


def open_front_end(
    spec: ModelSpec,
    model: Model,
    info: ModelInfo,
    defaults: Sampling,
    eos_ids: tuple[int, ...],
    new_parser: NewParser = lambda parsing: None,
    new_template: Callable[[str, Mapping[str, str], Control], Templating] = ChatTemplate,
) -> FrontEnd:
    """The front end of a model folder, or of the simulated model. UserError if it lacks a tokenizer.

    `new_template`: what runs a template that is not our own.
    """
    if model.folder is None:
        codec: TextCodec = SimulatedCodec()
        source, tokens = spec.chat_template or simulated.CHAT_TEMPLATE, {}
    else:
        source, tokens = spec.chat_template or find_template(model.folder), find_special_tokens(model.folder)
        codec = FileCodec(model.folder, source)
    template: Templating | None = None
    if source:
        make = ChatTemplate if source == simulated.CHAT_TEMPLATE else new_template
        template = make(source, tokens, codec.control)
    return FrontEnd(info, defaults, eos_ids, codec, template, new_parser)
