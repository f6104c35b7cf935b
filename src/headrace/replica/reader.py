"""What an answer is read with when its text is more than text: reasoning, tool calls, or both."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from headrace.replica.engine import Delta, OutputParser


class TextReader(Protocol):
    """Reads the text that is left when reasoning is out of it."""

    def push(self, text: str) -> Delta: ...
    def finish(self) -> Delta: ...


class Reader:
    """The engine's parser first, then ours on the text that it leaves; either may be None.

    `one_call`: calls beyond the first are dropped. `named`: the function was the client's choice, not the model's.
    """

    def __init__(
        self, parser: OutputParser | None, ours: TextReader | None, *, one_call: bool = False, named: bool = False
    ) -> None:
        self._parser, self._ours = parser, ours
        self._one_call, self._named = one_call, named
        self._called = False
        self._had_text = self._had_reasoning = 0

    def resume(self, text_chars: int, reasoning_chars: int) -> None:
        """The client has had so many characters already: of what is pushed from now on they are left out."""
        self._had_text, self._had_reasoning = text_chars, reasoning_chars

    def push(self, text: str, ids: Sequence[int]) -> Delta:
        """The next piece of the answer and the tokens that brought it."""
        delta = self._parser.push(text, ids) if self._parser else Delta(text)
        if self._ours and delta.text:
            delta = _joined(delta, self._ours.push(delta.text))
        return self._checked(delta)

    def finish(self) -> Delta:
        """The rest, when no more comes."""
        delta = self._parser.finish() if self._parser else Delta()
        if self._ours:
            if delta.text:
                delta = _joined(delta, self._ours.push(delta.text))
            rest = self._ours.finish()
            delta = replace(delta, text=delta.text + rest.text, tool_calls=(*delta.tool_calls, *rest.tool_calls))
        return self._checked(delta)

    def reason(self, finish: str) -> str:
        """Why the answer ended, as OpenAI says it: "tool_calls" where the model chose to call and was not cut."""
        return "tool_calls" if finish == "stop" and self._called and not self._named else finish

    def _checked(self, delta: Delta) -> Delta:
        if self._had_text and delta.text:
            n = min(self._had_text, len(delta.text))
            self._had_text -= n
            delta = replace(delta, text=delta.text[n:])
        if self._had_reasoning and delta.reasoning:
            n = min(self._had_reasoning, len(delta.reasoning))
            self._had_reasoning -= n
            delta = replace(delta, reasoning=delta.reasoning[n:])
        if not delta.tool_calls:
            return delta
        calls = [
            c if c.id or not c.name else replace(c, id=new_call_id())
            for c in delta.tool_calls
            if not (self._one_call and c.index)
        ]
        self._called = True
        return replace(delta, tool_calls=tuple(calls))


def new_call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


def _joined(delta: Delta, read: Delta) -> Delta:
    """`read` is what our reader made of the text of `delta`."""
    return Delta(read.text, delta.reasoning, (*delta.tool_calls, *read.tool_calls))
