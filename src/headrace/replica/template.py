"""Chat templates, as Hugging Face models carry them, rendered in a sandbox."""

from __future__ import annotations

import datetime as dt
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from headrace.core.template_names import reserved
from headrace.errors import ContextExceeded, InvalidRequest, UserError
from headrace.replica.config_files import read_json, read_text
from headrace.replica.control import Control, Marks, new_mark


class _GenerationBlock(Extension):
    """`{% generation %}` marks the answer for training; here its inside is rendered as it is."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


class _Refused(jinja2.TemplateError):
    """The template itself refused the messages (`raise_exception`)."""


def _raise(message: object) -> None:
    raise _Refused(str(message))


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **other: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **other)


_MAX_DEPTH = 64


class _TooLong(Exception):
    """It writes more than it may."""


class Templating(Protocol):
    """Makes prompts of conversations."""

    takes_tools: bool

    def prompt(
        self,
        messages_json: bytes,
        tools: Sequence[Mapping[str, Any]],
        args: Mapping[str, Any],
        now_unix_s: float,
        most_chars: int = 0,
    ) -> tuple[str, bool]:
        """The prompt of a conversation, ready for the answer, and whether it is to be encoded as plain; see control.

        InvalidRequest if the messages are none or the template refuses them; ContextExceeded if it writes more than
        `most_chars` (0: there is no limit). `args`: more names for the template, of the client's choosing.
        `now_unix_s`: when it is, for a template that writes the date: in UTC, so that the prompt is the same on every
        machine.
        """
        ...


class ChatTemplate:
    """A compiled chat template. It may take for ever and any amount of memory, when compiled as well: see renderer."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], control: Control | None = None) -> None:
        """UserError if it is not a template. `special_tokens`: "bos_token" and the like."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise
        self._special_tokens = dict(special_tokens)
        self._marks = Marks(control or Control.of({}))
        try:
            self._template = environment.from_string(source)
            self.takes_tools = "tools" in meta.find_undeclared_variables(environment.parse(source))
        except jinja2.TemplateError as e:
            raise UserError(f"The chat template cannot be used: {e}.") from e

    def prompt(
        self,
        messages_json: bytes,
        tools: Sequence[Mapping[str, Any]],
        args: Mapping[str, Any],
        now_unix_s: float,
        most_chars: int = 0,
    ) -> tuple[str, bool]:
        messages, tools = read_messages(messages_json), list(tools)
        check_args(args)
        mark, marked = new_mark(), self._marks.marked
        own = [marked(m, mark, assistant=m["role"] == "assistant") for m in messages]
        own_tools, own_args = marked(tools, mark), marked(dict(args), mark)
        if all(a is b for a, b in zip(messages, own, strict=True)) and own_tools is tools and own_args == args:
            mark = ""
        return self._marks.unmarked(self.render(own, own_tools, own_args, now_unix_s, most_chars), mark)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        args: Mapping[str, Any] | None = None,
        now_unix_s: float = 0,
        most_chars: int = 0,
    ) -> str:
        """What the template makes of messages that `read_messages` has made; see `prompt`."""
        names = {"add_generation_prompt": True, "documents": None, **(args or {}), **self._special_tokens}
        names["strftime_now"] = dt.datetime.fromtimestamp(now_unix_s, dt.UTC).strftime
        pieces: list[str] = []
        try:
            left = most_chars or sys.maxsize
            for piece in self._template.generate({**names, "messages": messages, "tools": list(tools) or None}):
                pieces.append(piece)
                if (left := left - len(piece)) < 0:
                    raise _TooLong
            return "".join(pieces)
        except _TooLong:
            raise ContextExceeded(
                "The prompt is too long: what the model's chat template makes of these messages has more than"
                f" {most_chars} characters, which no context of this model holds.",
                param="messages",
            ) from None
        except _Refused as e:
            raise InvalidRequest(f"The model's chat template refuses these messages: {e}", param="messages") from e
        except Exception as e:  # whatever a template's code may raise
            raise InvalidRequest(
                f"The model's chat template fails on these messages: {type(e).__name__}: {e}", param="messages"
            ) from e


def read_messages(messages_json: bytes) -> list[dict[str, Any]]:
    """OpenAI chat messages, each content one string. InvalidRequest if they are something else."""
    try:
        data = json.loads(messages_json)
    except (ValueError, RecursionError) as e:
        raise InvalidRequest("'messages' is not valid JSON.", param="messages") from e
    if not isinstance(data, list) or not data:
        raise InvalidRequest("'messages' must be a list of at least one message.", param="messages")
    return [_message(m, f"messages[{i}]") for i, m in enumerate(data)]


def _message(m: Any, where: str) -> dict[str, Any]:
    if not isinstance(m, dict) or not isinstance(m.get("role"), str):
        raise InvalidRequest(f"'{where}' must be an object with a role.", param=where)
    content = m.get("content")
    if isinstance(content, list):
        content = "".join(_text_part(part, f"{where}.content[{i}]") for i, part in enumerate(content))
    elif content is None and m["role"] == "assistant":
        content = ""
    if not isinstance(content, str):
        raise InvalidRequest(f"'{where}.content' must be a string or a list of text parts.", param=f"{where}.content")
    if m.get("tool_calls"):
        calls = m["tool_calls"]
        m = m | {"tool_calls": [_tool_call(c) for c in calls] if isinstance(calls, list) else []}
    return m | {"content": content}


def _tool_call(call: Any) -> Any:
    """Templates want the arguments as an object; OpenAI has them as text.

    What is none, because the model spoiled the call or had no room to end it, is {}: a history is not refused for it.
    """
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return call
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            arguments = None
    spoiled = not isinstance(arguments, dict) or deeper_than(arguments, _MAX_DEPTH)
    return call | {"function": function | {"arguments": {} if spoiled else arguments}}


def deeper_than(value: Any, most: int) -> bool:
    """Whether a JSON value nests more levels of lists and objects."""
    level = [value]
    for _ in range(most + 1):
        level = [
            x
            for v in level
            if isinstance(v, (dict, list))
            for x in (v.values() if isinstance(v, dict) else v)
            if isinstance(x, (dict, list))
        ]
        if not level:
            return False
    return True


def read_args(template_args_json: bytes) -> dict[str, Any]:
    """Names and values for the template. InvalidRequest if they are no JSON object."""
    try:
        args = json.loads(template_args_json or b"{}")
        if not isinstance(args, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError) as e:
        raise InvalidRequest("'chat_template_kwargs' must be an object.", param="chat_template_kwargs") from e
    return args


def check_args(args: Mapping[str, Any]) -> None:
    """InvalidRequest if a name is one that the template has from elsewhere."""
    for name in args:
        if reserved(name):
            raise InvalidRequest(
                f"{name[:100]!r} is not for a request to say: chat templates have it from the model or other fields.",
                param="chat_template_kwargs",
            )


def _text_part(part: Any, where: str) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return part["text"]
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    raise InvalidRequest(f"'{where}' is of type {kind!r}; this model reads only text.", param=where)


def find_template(folder: Path) -> str:
    """The chat template that a model folder carries, or "". UserError, naming the file, if it cannot be read."""
    plain = read_text(folder / "chat_template.jinja")
    if plain is not None:
        return plain
    for name in ("chat_template.json", "tokenizer_config.json"):
        found = read_json(folder / name).get("chat_template")
        if isinstance(found, list):
            named = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}
            found = named.get("default")
        if isinstance(found, str) and found:
            return found
    return ""


def find_special_tokens(folder: Path) -> dict[str, str]:
    """bos_token, eos_token and the like, as templates want them."""
    found: dict[str, str] = {"bos_token": "", "eos_token": ""}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        for key, value in read_json(folder / name).items():
            if key.endswith("_token"):
                value = value.get("content") if isinstance(value, dict) else value
                if isinstance(value, str):
                    found[key] = value
    return found
