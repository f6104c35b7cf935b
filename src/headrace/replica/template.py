"""Chat templates, as Hugging Face models carry them, rendered in a sandbox."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from headrace.errors import InvalidRequest, UserError
from headrace.replica.sampling import read_json


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


class ChatTemplate:
    """A compiled chat template."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """UserError if it is not a template. `special_tokens`: "bos_token" and the like."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise
        self._special_tokens = dict(special_tokens)
        try:
            self._template = environment.from_string(source)
            self.takes_tools = "tools" in meta.find_undeclared_variables(environment.parse(source))
        except jinja2.TemplateError as e:
            raise UserError(f"The chat template cannot be used: {e}.") from e

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
        args: Mapping[str, Any] | None = None,
        now_unix_s: float = 0,
    ) -> str:
        """The prompt of a conversation, ready for the answer. InvalidRequest if the template refuses it.

        `args`: more names for the template, of the client's choosing. `now_unix_s`: when it is, for a template that
        writes the date: in UTC, so that the prompt is the same on every machine.
        """
        names = {"add_generation_prompt": True, "documents": None, **self._special_tokens, **(args or {})}
        names["strftime_now"] = dt.datetime.fromtimestamp(now_unix_s, dt.UTC).strftime
        try:
            return self._template.render({**names, "messages": messages, "tools": list(tools) or None})
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
    except ValueError as e:
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
        m = m | {"tool_calls": [_tool_call(c, f"{where}.tool_calls[{i}]") for i, c in enumerate(m["tool_calls"])]}
    return m | {"content": content}


def _tool_call(call: Any, where: str) -> dict[str, Any]:
    """Templates want the arguments as an object; OpenAI has them as text."""
    try:
        function = call["function"]
        arguments = function["arguments"]
        if isinstance(arguments, str):
            arguments = json.loads(arguments) if arguments.strip() else {}
    except (TypeError, KeyError, ValueError) as e:
        raise InvalidRequest(
            f"'{where}' must be a function with a name and with arguments that are JSON.", param=where
        ) from e
    return call | {"function": function | {"arguments": arguments}}


def read_args(template_args_json: bytes) -> dict[str, Any]:
    """Names and values for the template. InvalidRequest if they are no JSON object."""
    try:
        args = json.loads(template_args_json or b"{}")
        if not isinstance(args, dict):
            raise ValueError("not an object")
    except ValueError as e:
        raise InvalidRequest("'chat_template_kwargs' must be an object.", param="chat_template_kwargs") from e
    return args


def _text_part(part: Any, where: str) -> str:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return part["text"]
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    raise InvalidRequest(f"'{where}' is of type {kind!r}; this model reads only text.", param=where)


def find_template(folder: Path) -> str:
    """The chat template that a model folder carries, or ""."""
    plain = folder / "chat_template.jinja"
    if plain.is_file():
        return plain.read_text(encoding="utf-8")
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
