"""What the simulated model says where core/simulated.py's words and emoji are not what was asked for."""

from __future__ import annotations

import json
from collections.abc import Sequence

from headrace.core import simulated
from headrace.core.instances import instance, numbers
from headrace.core.streams import Guide, Task
from headrace.replica.engine import EncodeRequest, EngineRequest
from headrace.replica.engines.simulated_parsing import calls_of, reasoned

VECTOR = 64  # length of an embedding that was not asked to be shorter


class Speaker:
    """`calls`: offered tools, it calls each of them once, and answers in words when one has answered.

    `reasons`: it says some words of reasoning first. `text`: what every answer says, "": words and emoji.
    """

    def __init__(self, text: str, *, calls: bool, reasons: bool) -> None:
        self.text_ids = simulated.encode(text)
        self._text, self._calls, self._reasons = text, calls, reasons

    def said(self, guide: Guide | None, prompt: Sequence[int], key: bytes) -> list[int] | None:
        """The whole answer, where it has a form of its own; else None. CannotMake if the form is too hard."""
        tools, answered = "", False
        if self._calls and guide is None:
            tools, answered = simulated.said_about_tools(simulated.decode(prompt))
        text = None
        if guide is not None:
            text = _guided(guide, key)
        elif tools and not answered:
            text = calls_of(tools, key)
        elif self._reasons:
            text = self._text or simulated.decode(simulated.answer(prompt, 0, simulated.GROUP))
        if text is None:
            return None
        if self._reasons:
            text = reasoned(simulated.decode(simulated.answer(prompt, 1, simulated.GROUP)), text)
        return simulated.encode(text)


def _guided(guide: Guide, key: bytes) -> str:
    number = numbers(key)
    if guide.kind == "choices":
        choices = json.loads(guide.value)
        return choices[number(len(choices))]
    schema = json.loads(guide.value) if guide.kind == "json_schema" else {"type": "object", "required": ["answer"]}
    return json.dumps(instance(schema, number), ensure_ascii=False)


def logprobs(r: EngineRequest, token: int) -> list[tuple[float, list[tuple[int, float]]]]:
    wanted = r.sampling.logprobs
    return [] if wanted is None else [(-0.25, _top(token, wanted))]


def prompt_logprobs(r: EngineRequest) -> list[tuple[int, float, list[tuple[int, float]]]]:
    if r.prompt_logprobs is None:
        return []
    prompt = r.prompt_ids[: len(r.prompt_ids) - r.delivered]
    return [(token, -0.25, _top(token, r.prompt_logprobs)) for token in prompt]


def _top(token: int, wanted: int) -> list[tuple[int, float]]:
    return [((token + n) % simulated.EOS_ID, -0.25 * (n + 1)) for n in range(wanted)]


def values_of(r: EncodeRequest) -> list[float]:
    """A vector of length 1, or one number from 0 to 1."""
    if r.task is Task.SCORE:
        return [simulated.score(r.text, r.document)]
    return simulated.vector(r.ids, r.dimensions or VECTOR)
