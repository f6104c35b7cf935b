"""The front end of every engine: from what a proxy submits to what an engine runs, and the state to make text of it."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, replace

from headrace.core import simulated
from headrace.core.types import ChatPrompt, ModelInfo, ModelSpec, Sampling, Submit, TextPrompt, TokenPrompt
from headrace.errors import ContextExceeded, InvalidRequest
from headrace.replica.engine import EngineRequest
from headrace.replica.sampling import check, complete
from headrace.replica.template import ChatTemplate, find_special_tokens, find_template, read_messages
from headrace.replica.text import Answer
from headrace.replica.tokenizer import FileCodec, SimulatedCodec, TextCodec
from headrace.replica.weights import Model


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


class FrontEnd:
    """Everything about text for one loaded model. Methods are thread-safe."""

    def __init__(
        self,
        info: ModelInfo,
        defaults: Sampling,
        eos_ids: tuple[int, ...],
        codec: TextCodec,
        template: ChatTemplate | None,
    ) -> None:
        self._info, self._defaults, self._eos_ids = info, defaults, eos_ids
        self.codec = codec
        self._template = template

    def prepare(self, request_id: int, submit: Submit) -> Prepared:
        """What the engine is to run for `submit`. InvalidRequest (or its ContextExceeded) if it cannot."""
        info = self._info
        check(submit.sampling, info.features, info.engine, info.vocab_size)
        if submit.max_tokens is not None and submit.max_tokens < 1:
            raise InvalidRequest("'max_tokens' must be at least 1.", param="max_tokens")
        prompt = self._encode(submit)
        room = info.context_tokens - len(prompt)
        if room < 1:
            raise ContextExceeded(
                f"The prompt has {len(prompt)} tokens; this model's context is {info.context_tokens} tokens,"
                " and the answer needs at least one.",
                param="messages" if isinstance(submit.prompt, ChatPrompt) else "prompt",
            )
        limit = room if submit.max_tokens is None else min(submit.max_tokens, room)
        delivered = list(submit.resume.token_ids) if submit.resume else []
        self._check_ids(delivered, "resume")
        answer = Answer(self.codec.detokenizer(continued=not isinstance(submit.prompt, ChatPrompt)), submit.stop)
        text = answer.resume(delivered, submit.resume.text_chars) if submit.resume else ""
        finish = "stop" if answer.stopped else "length" if len(delivered) >= limit else None
        sampling = complete(submit.sampling, self._defaults)
        request = EngineRequest(request_id, prompt + delivered, limit - len(delivered), sampling, (), len(delivered))
        return Prepared(request, answer, len(prompt), len(delivered), text, submit.sampling.logprobs, finish)

    def warm_up(self, request_id: int) -> EngineRequest:
        """A request for one token."""
        ids = self.codec.encode("a", special=True) or list(self._eos_ids[:1]) or [0]
        sampling = replace(complete(Sampling(), Sampling()), temperature=0.0, ignore_eos=True)
        return EngineRequest(request_id, ids, 1, sampling)

    def _encode(self, submit: Submit) -> list[int]:
        match submit.prompt:
            case TokenPrompt(ids):
                prompt = list(ids)
                self._check_ids(prompt, "prompt")
            case TextPrompt(text):
                # An empty text still needs a token to go on from.
                prompt = self.codec.encode(text, special=True) or list(self._eos_ids[:1])
            case ChatPrompt(messages_json):
                if self._template is None:
                    raise InvalidRequest(
                        "This model has no chat template. Use /v1/completions with a prompt, or deploy it with one.",
                        param="messages",
                    )
                # The template writes the beginning of sequence itself.
                prompt = self.codec.encode(self._template.render(read_messages(messages_json)), special=False)
        if not prompt:
            raise InvalidRequest("The prompt is empty.", param="prompt")
        return prompt

    def _check_ids(self, ids: list[int], param: str) -> None:
        if ids and not (min(ids) >= 0 and max(ids) < self._info.vocab_size):
            raise InvalidRequest(f"Token ids of this model are 0 to {self._info.vocab_size - 1}.", param=param)


def open_front_end(
    spec: ModelSpec, model: Model, info: ModelInfo, defaults: Sampling, eos_ids: tuple[int, ...]
) -> FrontEnd:
    """The front end of a model folder, or of the simulated model. UserError if it lacks a tokenizer."""
    if model.folder is None:
        codec: TextCodec = SimulatedCodec()
        source, tokens = spec.chat_template or simulated.CHAT_TEMPLATE, {}
    else:
        codec = FileCodec(model.folder)
        source, tokens = spec.chat_template or find_template(model.folder), find_special_tokens(model.folder)
    template = ChatTemplate(source, tokens, dt.datetime.now) if source else None
    return FrontEnd(info, defaults, eos_ids, codec, template)
