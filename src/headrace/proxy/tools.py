"""Fields for tools and for the form of an answer: checked here, carried out by the replica."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pydantic_core
from pydantic import AfterValidator, Field, PlainValidator, WithJsonSchema

from headrace.core.streams import Guide
from headrace.core.template_names import reserved
from headrace.proxy.fields import Rejected
from headrace.proxy.strict import Strict

MAX_TOOLS = 128
MAX_TOOLS_BYTES = 256 * 1024
MAX_SCHEMA_BYTES = 64 * 1024
MAX_SCHEMA_DEPTH = 64
MAX_GRAMMAR_CHARS = 64 * 1024
MAX_REGEX_CHARS = 8 * 1024
MAX_CHOICES = 1024
MAX_TEMPLATE_ARGS_BYTES = 16 * 1024

FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level:
        depth += 1
        level = [
            x
            for v in level
            if isinstance(v, (dict, list))
            for x in (v.values() if isinstance(v, dict) else v)
            if isinstance(x, (dict, list))
        ]
    return depth


def _schema(value: Any, at: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Rejected("must be a JSON schema, which is an object", at)
    if _depth(value) > MAX_SCHEMA_DEPTH:
        raise Rejected(f"must nest at most {MAX_SCHEMA_DEPTH} levels", at)
    if len(_dump(value).encode()) > MAX_SCHEMA_BYTES:
        raise Rejected(f"must be a JSON schema of at most {MAX_SCHEMA_BYTES} bytes", at)
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


def _tools(tools: list[Tool]) -> list[Tool]:
    names = [t.function.name for t in tools]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise Rejected(f"has two functions of the name {name!r}")
    if len(tools_json(tools)) > MAX_TOOLS_BYTES:
        raise Rejected(f"must be at most {MAX_TOOLS_BYTES} bytes of JSON")
    return tools


Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS), AfterValidator(_tools)]


def tools_json(tools: Sequence[Tool]) -> bytes:
    """As chat templates and parsers want them."""
    made = [t.model_dump(exclude_none=True, exclude={"function": {"strict"}}) for t in tools]
    return _dump(made).encode()


@dataclass(frozen=True, slots=True)
class ToolChoice:
    mode: str  # "none", "auto", "required", "function"
    name: str = ""


def _tool_choice(value: Any) -> ToolChoice:
    if value in ("none", "auto", "required"):
        return ToolChoice(value)
    if isinstance(value, dict) and set(value) == {"type", "function"} and value["type"] == "function":
        function = value["function"]
        if isinstance(function, dict) and set(function) == {"name"} and isinstance(function["name"], str):
            return ToolChoice("function", function["name"])
    raise Rejected('must be \'none\', \'auto\', \'required\' or {"type": "function", "function": {"name": …}}')


def _response_format(value: Any) -> Guide | None:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind not in ("text", "json_object", "json_schema"):
        raise Rejected("must be an object whose 'type' is 'text', 'json_object' or 'json_schema'")
    known = {"type", "json_schema"} if kind == "json_schema" else {"type"}
    if unknown := set(value) - known:
        raise Rejected("is unknown", f".{min(unknown)[:40]}")
    if kind != "json_schema":
        return Guide("json_object") if kind == "json_object" else None
    given = value.get("json_schema")
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
    given = {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else {}
    if len(given) != 1:
        raise Rejected("must be an object with one of 'json', 'json_object', 'regex', 'choice' and 'grammar'")
    [(kind, form)] = given.items()
    match kind:
        case "json":
            if isinstance(form, str):
                form = _loaded(form)
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
    if _depth(value) > MAX_SCHEMA_DEPTH or len(_dump(value)) > MAX_TEMPLATE_ARGS_BYTES:
        raise Rejected(f"must be at most {MAX_TEMPLATE_ARGS_BYTES} bytes of JSON, not nested deeply")
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
