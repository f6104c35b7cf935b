"""How the simulated model marks reasoning and tool calls in its text, and the parser that takes them out again."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from headrace.core.instances import instance, numbers
from headrace.core.streams import ToolCall
from headrace.replica.engine import Delta

THINK = "<think>", "</think>"
CALL = "<tool_call>", "</tool_call>"


def reasoned(thought: str, answer: str) -> str:
    return f"{THINK[0]}{thought}{THINK[1]}{answer}"


def calls_of(tools_json: str, key: bytes) -> str:
    """The text of one call of each tool. CannotMake if its parameters cannot be made up."""
    number = numbers(key)
    text = ""
    for tool in json.loads(tools_json):
        function: dict[str, Any] = tool["function"]
        arguments = instance(function.get("parameters") or {"type": "object"}, number)
        text += CALL[0] + json.dumps({"name": function["name"], "arguments": arguments}) + CALL[1]
    return text


class SimulatedParser:
    """Takes out what stands between the tags. What may be the beginning of a tag waits."""

    def __init__(self, reasoning: bool, calls: bool) -> None:
        self._tags: dict[str, tuple[str, Callable[[str], None], bool]] = {}
        if reasoning:
            self._tags[THINK[0]] = THINK[1], self._reason, True
        if calls:
            self._tags[CALL[0]] = CALL[1], self._call, False
        self._held = ""
        self._inside: tuple[str, Callable[[str], None], bool] | None = None
        self._count = 0
        self._text, self._reasoning, self._calls = "", "", []

    def push(self, text: str, ids: Sequence[int]) -> Delta:
        self._held += text
        while self._inside_step() if self._inside else self._outside_step():
            pass
        return self._take()

    def finish(self) -> Delta:
        held, self._held = self._held, ""
        if self._inside and self._inside[2]:
            self._inside[1](held)
        elif not self._inside:
            self._text += held
        return self._take()

    def _take(self) -> Delta:
        delta = Delta(self._text, self._reasoning, tuple(self._calls))
        self._text, self._reasoning, self._calls = "", "", []
        return delta

    def _outside_step(self) -> bool:
        found = [(at, tag) for tag in self._tags if (at := self._held.find(tag)) >= 0]
        if found:
            at, tag = min(found)
            self._text += self._held[:at]
            self._held = self._held[at + len(tag) :]
            self._inside = self._tags[tag]
            return True
        self._text += self._pass_on(list(self._tags))
        return False

    def _inside_step(self) -> bool:
        assert self._inside
        end, give, in_pieces = self._inside
        at = self._held.find(end)
        if at >= 0:
            give(self._held[:at])
            self._held = self._held[at + len(end) :]
            self._inside = None
            return True
        if in_pieces:
            give(self._pass_on([end]))
        return False

    def _pass_on(self, tags: list[str]) -> str:
        """What is held, but for an end that may be the beginning of a tag."""
        keep = max((n for t in tags for n in range(1, len(t)) if self._held.endswith(t[:n])), default=0)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        return text

    def _reason(self, text: str) -> None:
        self._reasoning += text

    def _call(self, text: str) -> None:
        try:
            call = json.loads(text)
            name, arguments = call["name"], json.dumps(call["arguments"])
        except (ValueError, KeyError, TypeError):
            self._text += CALL[0] + text + CALL[1]  # not a call after all
            return
        self._calls.append(ToolCall(self._count, "", name, arguments))
        self._count += 1
