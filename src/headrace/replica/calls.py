"""Reads tool calls out of plain JSON as it is generated, when the request demanded a call.

What is read does not depend on how the text was cut into pieces. Text that is not of the form is passed on as text, so
that nothing is lost.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from headrace.core.streams import ToolCall
from headrace.replica.engine import Delta

_SPACE = " \t\n\r"


class NamedCall:
    """The whole text is the arguments of one function."""

    def __init__(self, name: str, new_id: Callable[[], str]) -> None:
        self._name, self._new_id = name, new_id
        self._begun = False

    def push(self, text: str) -> Delta:
        if not text:
            return Delta()
        if self._begun:
            return Delta(tool_calls=(ToolCall(0, arguments=text),))
        self._begun = True
        return Delta(tool_calls=(ToolCall(0, self._new_id(), self._name, text),))

    def finish(self) -> Delta:
        if self._begun:
            return Delta()
        self._begun = True
        return Delta(tool_calls=(ToolCall(0, self._new_id(), self._name),))


class CallList:
    """The text is a JSON array of {"name": …, "parameters": …}, in this order or the other.

    A call's name comes as soon as it is known, its arguments (the JSON of the parameters, as written) in pieces.
    """

    def __init__(self, new_id: Callable[[], str]) -> None:
        self._new_id = new_id
        self._step = self._before_list
        self._index = -1
        self._key = ""
        self._name = ""
        self._raw = ""  # the string or scalar that is being read
        self._depth = 0  # of brackets within a value
        self._quoted = self._escaped = False
        self._early = ""  # arguments that came before the name
        self._broken = False
        self._calls: list[ToolCall] = []
        self._piece = ""  # arguments that are not in `_calls` yet
        self._text = ""

    def push(self, text: str) -> Delta:
        for at, c in enumerate(text):
            if self._broken:
                self._text += text[at:]
                break
            self._step(c)
        return self._take()

    def finish(self) -> Delta:
        return self._take()

    def _take(self) -> Delta:
        self._flush()
        calls, self._calls = self._calls, []
        text, self._text = self._text, ""
        return Delta(text=text, tool_calls=tuple(calls))

    def _flush(self) -> None:
        if self._piece:
            self._calls.append(ToolCall(self._index, arguments=self._piece))
            self._piece = ""

    def _break(self, c: str) -> None:
        self._flush()
        self._broken = True
        self._text += c

    # --- one character at a time ---

    def _before_list(self, c: str) -> None:
        if c == "[":
            self._step = self._before_call
        elif c not in _SPACE:
            self._break(c)

    def _before_call(self, c: str) -> None:
        if c == "{":
            self._index += 1
            self._name = self._early = ""
            self._step = self._before_key
        elif c == "]":
            self._step = self._after_list
        elif c not in _SPACE + ",":
            self._break(c)

    def _after_list(self, c: str) -> None:
        if c not in _SPACE:
            self._break(c)

    def _before_key(self, c: str) -> None:
        if c == '"':
            self._begin_value(c)
            self._step = self._in_key
        elif c == "}":
            self._flush()
            self._step = self._before_call
        elif c not in _SPACE + ",":
            self._break(c)

    def _in_key(self, c: str) -> None:
        self._raw += c
        if self._ends_string(c):
            self._key = _string(self._raw)
            self._step = self._before_colon

    def _before_colon(self, c: str) -> None:
        if c == ":":
            self._step = self._before_value
        elif c not in _SPACE:
            self._break(c)

    def _before_value(self, c: str) -> None:
        if c in _SPACE:
            return
        self._begin_value(c)
        if c in "{[":
            self._depth = 1
        elif c == '"':
            self._quoted = True
        self._step = self._in_value
        self._give(c)

    def _in_value(self, c: str) -> None:
        if self._quoted:
            self._raw += c
            self._give(c)
            if self._ends_string(c):
                self._quoted = False
                if not self._depth:
                    self._end_value()
        elif not self._depth and c in ",}" + _SPACE:  # the end of a number, true, false or null
            self._end_value()
            self._before_key(c)
        else:
            self._give(c)
            if c == '"':
                self._quoted, self._escaped = True, False
            elif c in "{[":
                self._depth += 1
            elif c in "}]":
                self._depth -= 1
                if not self._depth:
                    self._end_value()

    def _begin_value(self, c: str) -> None:
        self._raw, self._depth, self._quoted, self._escaped = c, 0, False, False

    def _ends_string(self, c: str) -> bool:
        if self._escaped:
            self._escaped = False
        elif c == "\\":
            self._escaped = True
        else:
            return c == '"'
        return False

    def _give(self, c: str) -> None:
        if self._key == "parameters":
            if self._name:
                self._piece += c
            else:
                self._early += c

    def _end_value(self) -> None:
        self._step = self._before_key
        if self._key == "name" and not self._name:
            self._name = _string(self._raw)
            self._flush()
            self._calls.append(ToolCall(self._index, self._new_id(), self._name, self._early))


def _string(raw: str) -> str:
    try:
        value = json.loads(raw, strict=False)
    except ValueError:
        return raw
    return value if isinstance(value, str) else raw
