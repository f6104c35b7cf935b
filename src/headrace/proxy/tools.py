"""Fields for tools and for the form of an answer: checked here, carried out by the replica."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pydantic_core
from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, WithJsonSchema, model_validator

from headrace.core.streams import Guide
from headrace.core.template_names import reserved
from headrace.proxy.strict import Rejected, Strict

MAX_TOOLS = 128
MAX_TOOLS_BYTES = 256 * 1024
MAX_SCHEMA_BYTES = 64 * 1024
MAX_SCHEMA_DEPTH = 64
MAX_GRAMMAR_CHARS = 64 * 1024
MAX_REGEX_CHARS = 8 * 1024
MAX_CHOICES = 1024
MAX_TEMPLATE_ARGS_BYTES = 16 * 1024

_FUNCTION = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def _function_name(value: str) -> str:
    if not _FUNCTION.fullmatch(value):
        raise Rejected("must be 1 to 64 letters, digits, '_', '.' and '-'")
    return value


FunctionName = Annotated[str, AfterValidator(_function_name), WithJsonSchema({"type": "string", "maxLength": 64})]


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def check_size(value: Any, most_bytes: int, at: str = "", what: str = "must be at most {} bytes of JSON") -> None:
    """Rejected if a value is surely more than `most_bytes` of JSON, or nests deeply; ends as soon as that is known."""
    size, depth, level = 0, 0, [value]
    while level:
        depth += 1
        inner: list[Any] = []
        for v in level:
            size += len(v) + 2 if isinstance(v, str) else 2
            if isinstance(v, dict):
                size += sum(map(len, v)) + 3 * len(v)
                inner += v.values()
            elif isinstance(v, list):
                size += len(v)
                inner += v
            if size > most_bytes:
                raise Rejected(what.format(most_bytes), at)
        if inner and depth > MAX_SCHEMA_DEPTH:
            raise Rejected(f"must nest at most {MAX_SCHEMA_DEPTH} levels", at)
        level = inner


def _schema(value: Any, at: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Rejected("must be a JSON schema, which is an object", at)
    what = "must be a JSON schema of at most {} bytes"
    check_size(value, MAX_SCHEMA_BYTES, at, what)
    if len(_dump(value).encode()) > MAX_SCHEMA_BYTES:
        raise Rejected(what.format(MAX_SCHEMA_BYTES), at)
    return value


Schema = Annotated[dict[str, Any], AfterValidator(_schema)]


class Function(Strict):
    name: FunctionName
    description: str | None = None
    parameters: Schema | None = Field(None, description="JSON schema of the arguments.")
    strict: bool | None = Field(None, description="Accepted; calls that are demanded always fit the schema.")


class Tool(Strict):
    type: Literal["function"]
    function: Function

    @model_validator(mode="before")
    @classmethod
    def _of_a_known_type(cls, data: Any) -> Any:
        """First of all: others have other fields."""
        if isinstance(data, dict) and data.get("type") not in (None, "function"):
            raise Rejected("must be 'function'", ".type")
        return data


def _small(value: Any) -> Any:
    if isinstance(value, list):
        if len(value) > MAX_TOOLS:
            raise Rejected(f"must hold at most {MAX_TOOLS} functions, not {len(value)}")
        check_size(value, MAX_TOOLS_BYTES)
    return value


def _tools(tools: list[Tool]) -> list[Tool]:
    names = [t.function.name for t in tools]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise Rejected(f"has two functions of the name '{name}'")
    if len(tools_json(tools)) > MAX_TOOLS_BYTES:
        raise Rejected(f"must be at most {MAX_TOOLS_BYTES} bytes of JSON")
    return tools


Tools = Annotated[
    list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True), BeforeValidator(_small), AfterValidator(_tools)
]


def tools_json(tools: Sequence[Tool]) -> bytes:
    """As chat templates and parsers want them."""
    made = [t.model_dump(exclude_none=True, exclude={"function": {"strict"}}) for t in tools]
    return _dump(made).encode()


@dataclass(frozen=True, slots=True)
class ToolChoice:
    mode: str  # "none", "auto", "required", "function"
    name: str = ""


def _tool_choice(value: Any) -> ToolChoice:
    if isinstance(value, str) and value in ("none", "auto", "required"):
        return ToolChoice(value)
    value = present(value)
    if isinstance(value, dict) and set(value) == {"type", "function"} and value["type"] == "function":
        function = present(value["function"])
        if isinstance(function, dict) and set(function) == {"name"} and isinstance(function["name"], str):
            return ToolChoice("function", function["name"])
    raise Rejected('must be "none", "auto", "required" or {"type": "function", "function": {"name": …}}')


def present(value: Any) -> Any:
    """An object without its nulls, which are absent."""
    return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value


def _response_format(value: Any) -> Guide | None:
    value = present(value)
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(kind, str) or kind not in ("text", "json_object", "json_schema"):
        raise Rejected("must be an object whose 'type' is 'text', 'json_object' or 'json_schema'")
    known = {"type", "json_schema"} if kind == "json_schema" else {"type"}
    if unknown := set(value) - known:
        raise Rejected("is unknown", f".{min(unknown)[:40]}")
    if kind != "json_schema":
        return Guide("json_object") if kind == "json_object" else None
    given = present(value.get("json_schema"))
    at = ".json_schema"
    if not isinstance(given, dict):
        raise Rejected("must be an object with 'name' and 'schema'", at)
    if unknown := set(given) - {"name", "description", "schema", "strict"}:
        raise Rejected("is unknown", f"{at}.{min(unknown)[:40]}")
    name = given.get("name")
    if not isinstance(name, str) or not 1 <= len(name) <= 64:
        raise Rejected("must be a string of 1 to 64 characters", f"{at}.name")
    if not isinstance(given.get("strict"), bool | None) or not isinstance(given.get("description"), str | None):
        raise Rejected("must have a string 'description' and a boolean 'strict', if any", at)
    return Guide("json_schema", _dump(_schema(given.get("schema"), f"{at}.schema")))


def _structured_outputs(value: Any) -> Guide:
    given = present(value)
    if not isinstance(given, dict) or len(given) != 1:
        raise Rejected("must be an object with one of 'json', 'json_object', 'regex', 'choice' and 'grammar'")
    [(kind, form)] = given.items()
    match kind:
        case "json":
            if isinstance(form, str):
                form = _loaded(_text(form, ".json", MAX_SCHEMA_BYTES))
            return Guide("json_schema", _dump(_schema(form, ".json")))
        case "json_object" if form is True:
            return Guide("json_object")
        case "regex":
            return Guide("regex", _text(form, ".regex", MAX_REGEX_CHARS))
        case "grammar":
            return Guide("grammar", _text(form, ".grammar", MAX_GRAMMAR_CHARS))
        case "choice":
            if not isinstance(form, list) or not 1 <= len(form) <= MAX_CHOICES:
                raise Rejected(f"must be a list of 1 to {MAX_CHOICES} strings", ".choice")
            texts = [_text(x, f".choice[{i}]", MAX_GRAMMAR_CHARS) for i, x in enumerate(form)]
            if sum(map(len, texts)) > MAX_GRAMMAR_CHARS:
                raise Rejected(f"must have at most {MAX_GRAMMAR_CHARS} characters in all", ".choice")
            return Guide("choices", json.dumps(texts))
        case _:
            raise Rejected("is not supported", f".{str(kind)[:40]}")


def _loaded(text: str) -> Any:
    try:
        return pydantic_core.from_json(text, allow_inf_nan=False)
    except ValueError as e:
        raise Rejected("must be a JSON schema", ".json") from e


def _text(value: Any, at: str, most: int) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= most:
        raise Rejected(f"must be a string of 1 to {most} characters", at)
    return value


def _template_args(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise Rejected("must be an object")
    if taken := [name for name in value if reserved(name)]:
        raise Rejected("is not for a request to say", f".{min(taken)[:40]}")
    check_size(value, MAX_TEMPLATE_ARGS_BYTES)
    if len(_dump(value)) > MAX_TEMPLATE_ARGS_BYTES:
        raise Rejected(f"must be at most {MAX_TEMPLATE_ARGS_BYTES} bytes of JSON")
    return value


_FORM = {"type": "object"}
ToolChoiceField = Annotated[
    ToolChoice,
    PlainValidator(_tool_choice),
    WithJsonSchema({"anyOf": [{"enum": ["none", "auto", "required"]}, _FORM]}),
]
ResponseFormat = Annotated[Guide | None, PlainValidator(_response_format), WithJsonSchema(_FORM)]
StructuredOutputs = Annotated[Guide, PlainValidator(_structured_outputs), WithJsonSchema(_FORM)]
TemplateArgs = Annotated[Mapping[str, Any], PlainValidator(_template_args), WithJsonSchema(_FORM)]
