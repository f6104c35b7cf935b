"""Parsers of tool calls and reasoning for the OpenVINO engine, under the names that genai has for its own.

They read the forms that genai's read, but are not genai's: those (2026.4) lose text before an opening tag and answers
without one, all but the texts among a Python-like call's arguments, and every call after the first.
"""

from __future__ import annotations

import ast
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from headrace.core.streams import ToolCall
from headrace.errors import UserError
from headrace.replica.engine import Delta, EngineRequest, OutputParser, Parsing

_PYTHON_TAG = "<|python_tag|>"
_OPEN, _CLOSE = "<think>", "</think>"
_ENDS_TRIED = 64

Call = tuple[str, Mapping[str, Any]]
Reader = Callable[[str, int], tuple[Sequence[Call], int] | None]
"""Reads calls at a place in a text: the calls, and where they end; None if there are none."""


class Parsers:
    """The parsers that a deployment names. UserError for a name that there is not."""

    def __init__(self, tool: str, reasoning: str) -> None:
        _check("tool", tool, _TOOLS)
        _check("reasoning", reasoning, _REASONING)
        self._tool, self._reasoning = tool, reasoning
        self.names = (tool, reasoning)
        self.features = frozenset({"tools", "tool_parser"} if tool else ()) | frozenset(
            {"reasoning_parser"} if reasoning else ()
        )

    def cannot_guide(self, request: EngineRequest) -> str:
        """Why an answer cannot have the form it must have; "" if it can. The engine begins a form at once."""
        if self._reasoning and request.guide and request.parsing:
            return (
                "an answer of this engine cannot have reasoning and a form (or a demanded call) as well; ask"
                " /v1/completions, or deploy the model without --reasoning_parser"
            )
        return ""

    def new(self, parsing: Parsing) -> OutputParser | None:
        """A new answer's parser; None where there is nothing to take out."""
        reasoning = _Reasoning(_REASONING[self._reasoning]) if self._reasoning else None
        names = {str(f.get("name")) for t in parsing.tools if isinstance(f := t.get("function"), Mapping)}
        tools = _Tools(*_TOOLS[self._tool], names) if self._tool and parsing.tools else None
        return _Parser(reasoning, tools) if reasoning or tools else None


def _check(what: str, name: str, known: Mapping[str, object]) -> None:
    if name and name not in known:
        raise UserError(f"The engine openvino has no {what} parser {name!r}: there are {', '.join(sorted(known))}.")


@dataclass(slots=True)
class _Parser:
    """One answer's: what is not reasoning goes to the tool parser."""

    reasoning: _Reasoning | None
    tools: _Tools | None

    def push(self, text: str, ids: Sequence[int]) -> Delta:
        text, thought = self.reasoning.push(text) if self.reasoning else (text, "")
        return Delta(self.tools.push(text) if self.tools else text, thought)

    def finish(self) -> Delta:
        text, thought = self.reasoning.finish() if self.reasoning else ("", "")
        if self.tools is None:
            return Delta(text, thought)
        text = self.tools.push(text)
        rest, calls = self.tools.finish()
        return Delta(text + rest, thought, calls)


@dataclass(slots=True)
class _Reasoning:
    """Between the tags is reasoning. `thinking`: the answer begins with it, with or without an opening tag."""

    thinking: bool
    _at_start: bool = True
    _done: bool = False
    _held: str = ""

    def push(self, text: str) -> tuple[str, str]:
        """(text, reasoning) of what has become certain."""
        held = self._held + text
        if self._done or not held:
            return held, ""
        if self._at_start:
            if _OPEN.startswith(held.lstrip()):
                self._held = held
                return "", ""
            self._at_start = False
            if held.lstrip().startswith(_OPEN):
                held = held.lstrip().removeprefix(_OPEN)
                self.thinking = True
        if not self.thinking:
            before, tag, held = _cut(held, _OPEN)
            self._held = "" if tag else held
            if not tag:
                return before, ""
            self.thinking = True
            rest, thought = self.push(held)
            return before + rest, thought
        thought, tag, held = _cut(held, _CLOSE)
        self._held = "" if tag else held
        self._done = bool(tag)
        return (held if tag else ""), thought

    def finish(self) -> tuple[str, str]:
        held, self._held = self._held, ""
        return ("", held) if self.thinking and not self._done else (held, "")


@dataclass(slots=True)
class _Tools:
    """Holds the text back from the first place where a call may begin, and reads the calls at the end."""

    begin: str
    read: Reader
    names: set[str]
    _held: str = field(default="", init=False)
    _holding: bool = field(default=False, init=False)

    def push(self, text: str) -> str:
        """The text that is certainly no call."""
        if self._holding:
            self._held += text
            return ""
        held = self._held + text
        at = min((i for i in (held.find(self.begin), held.find(_PYTHON_TAG)) if i >= 0), default=-1)
        if at >= 0:
            self._holding = True
        else:
            at = len(held) - _overlap(held, _PYTHON_TAG)
        self._held = held[at:]
        return held[:at]

    def finish(self) -> tuple[str, tuple[ToolCall, ...]]:
        """The rest of the text, and the calls."""
        text: list[str] = []
        found: list[ToolCall] = []
        held, at = self._held, 0
        while at < len(held):
            tag = len(_PYTHON_TAG) if held.startswith(_PYTHON_TAG, at) else 0
            read = self.read(held, at + tag) if held.startswith(self.begin, at + tag) else None
            if read and all(name in self.names for name, _ in read[0]):
                for name, arguments in read[0]:
                    written = json.dumps(arguments, ensure_ascii=False)
                    found.append(ToolCall(len(found), f"call_{uuid.uuid4().hex}", name, written))
                at = read[1]
                while at < len(held) and held[at] in "; ,\n":
                    at += 1
            else:
                text.append(held[at])
                at += 1
        return "".join(text), tuple(found)


def _cut(text: str, tag: str) -> tuple[str, str, str]:
    """(before, tag, after) where the tag is; else (certain, "", what may be the tag's beginning)."""
    before, found, after = text.partition(tag)
    if found:
        return before, tag, after
    at = len(text) - _overlap(text, tag)
    return text[:at], "", text[at:]


def _overlap(text: str, tag: str) -> int:
    """How much of the text's end is a beginning of `tag`."""
    return next((n for n in range(min(len(text), len(tag) - 1), 0, -1) if text.endswith(tag[:n])), 0)


def _read_json(text: str, at: int) -> tuple[Sequence[Call], int] | None:
    """{"name": …, "parameters": {…}}, as Llama 3 writes it; "arguments" will do."""
    try:
        value, end = json.JSONDecoder().raw_decode(text, at)
    except (ValueError, RecursionError):
        return None
    arguments = value.get("parameters", value.get("arguments", {}))
    if not (isinstance(value.get("name"), str) and isinstance(arguments, dict)):
        return None
    return [(value["name"], arguments)], end


def _read_python(text: str, at: int) -> tuple[Sequence[Call], int] | None:
    """[name(key=value, …), …], which is only parsed, never run."""
    end = at
    for _ in range(_ENDS_TRIED):
        end = text.find("]", end) + 1
        if not end:
            return None
        try:
            tree = ast.parse(text[at:end], mode="eval").body
            calls = [_python_call(node) for node in tree.elts] if isinstance(tree, ast.List) else []
        except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
            continue
        return (calls, end) if calls else None
    return None


def _python_call(node: ast.expr) -> Call:
    """ValueError if it is not a call with values that have a name."""
    if not isinstance(node, ast.Call) or node.args or any(k.arg is None for k in node.keywords):
        raise ValueError
    arguments = {str(k.arg): ast.literal_eval(_PythonNames().visit(k.value)) for k in node.keywords}
    json.dumps(arguments)  # TypeError for a set or bytes
    return ast.unparse(node.func), arguments


class _PythonNames(ast.NodeTransformer):
    """JSON's constants for Python's."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        constants = {"true": True, "false": False, "null": None}
        return ast.Constant(constants[node.id]) if node.id in constants else node


_TOOLS: Mapping[str, tuple[str, Reader]] = {"llama3_json": ("{", _read_json), "llama3_pythonic": ("[", _read_python)}
_REASONING: Mapping[str, bool] = {"deepseek_r1": True, "phi4": False}
"""Whether an answer begins with reasoning even without its opening tag."""
