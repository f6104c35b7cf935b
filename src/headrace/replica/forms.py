"""The form that an answer must have: whether the engine can hold to it, and the schema of a demanded tool call."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from headrace.core.streams import Guide, Submit
from headrace.core.types import ModelInfo
from headrace.errors import InvalidRequest
from headrace.replica.calls import CallList, NamedCall
from headrace.replica.reader import new_call_id

_KINDS = {
    "json_schema": ("response_format", "a JSON schema"),
    "json_object": ("response_format", "JSON"),
    "regex": ("structured_outputs", "a regular expression"),
    "grammar": ("structured_outputs", "a grammar"),
    "choices": ("structured_outputs", "one of several texts"),
}


def form_of(
    submit: Submit, tools: Sequence[Mapping[str, Any]], info: ModelInfo, takes_tools: bool
) -> tuple[Guide | None, CallList | NamedCall | None]:
    """The guide of the answer, and what reads the calls that are demanded. InvalidRequest if it cannot be had.

    `takes_tools`: the chat template has a place for them.
    """
    guide = submit.guide
    if guide:
        check_guide(guide, info.features, info.engine)
    if not tools:
        return guide, None
    if guide:
        raise InvalidRequest(
            "'response_format' cannot be combined with tools: set 'tool_choice' to \"none\" or leave one out.",
            param="response_format",
        )
    if not takes_tools:
        raise InvalidRequest(
            "This model's chat template does not take tools; deploy the model with a --chat_template that does.",
            param="tools",
        )
    if submit.tool_choice in ("", "auto"):
        if "tool_parser" not in info.features:
            raise InvalidRequest(
                'For tool_choice "auto" the model must be deployed with --tool_parser; without it ask for "required" or'
                " for a function by name.",
                param="tool_choice",
            )
        return None, None
    if "json_schema" not in info.features:
        raise InvalidRequest(
            f"This model runs in the engine {info.engine!r}, which cannot demand a tool call; use tool_choice"
            ' "auto" with a model that was deployed with --tool_parser.',
            param="tool_choice",
        )
    if submit.tool_choice == "function":
        return _arguments_guide(_named(tools, submit.tool_name)), NamedCall(submit.tool_name, new_call_id)
    return _calls_guide(tools, submit.one_tool_call), CallList(new_call_id)


def check_guide(guide: Guide, features: frozenset[str], engine: str) -> None:
    """InvalidRequest if the engine cannot hold an answer to it."""
    if guide.kind not in features:
        param, words = _KINDS[guide.kind]
        raise InvalidRequest(
            f"This model runs in the engine {engine!r}, which cannot hold an answer to {words}; leave '{param}' out,"
            " or deploy the model with an engine that can.",
            param=param,
        )
    if guide.kind == "json_schema":
        try:
            json.loads(guide.value)
        except ValueError as e:
            raise InvalidRequest("The JSON schema is not JSON.", param="response_format") from e


def read_tools(submit: Submit) -> list[dict[str, Any]]:
    """The tools of a request that may use them. InvalidRequest if they are no list of functions."""
    if not submit.tools_json or submit.tool_choice == "none":
        return []
    try:
        tools = json.loads(submit.tools_json)
        if not all(isinstance(t["function"]["name"], str) for t in tools):
            raise TypeError
    except (ValueError, TypeError, KeyError) as e:
        raise InvalidRequest("'tools' must be a list of functions.", param="tools") from e
    return tools


def _named(tools: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any]:
    """The function of that name. InvalidRequest if there is none."""
    for tool in tools:
        if tool["function"]["name"] == name:
            return tool["function"]
    raise InvalidRequest(f"'tool_choice' names {name[:80]!r}, which is not among the tools.", param="tool_choice")


def _arguments_guide(function: Mapping[str, Any]) -> Guide:
    """For the call of one function: the answer is its arguments."""
    return Guide("json_schema", _dump(_parameters(function)))


def _calls_guide(tools: Sequence[Mapping[str, Any]], one_call: bool) -> Guide:
    """For a call of any of the tools, or several calls: the answer is a list of {"name", "parameters"}."""
    definitions: dict[str, Any] = {}
    items = [_call(tool["function"], str(i), definitions) for i, tool in enumerate(tools)]
    schema: dict[str, Any] = {"type": "array", "minItems": 1}
    if one_call:
        schema["maxItems"] = 1
    schema["items"] = items[0] if len(items) == 1 else {"anyOf": items}
    if definitions:
        schema["$defs"] = definitions
    return Guide("json_schema", _dump(schema))


def _call(function: Mapping[str, Any], key: str, definitions: dict[str, Any]) -> dict[str, Any]:
    parameters = _parameters(function)
    if _refers(parameters):
        # What a schema says of its own parts holds wherever it stands, if each "#" becomes its new place.
        definitions[key] = _moved(parameters, f"#/$defs/{key}")
        parameters = {"$ref": f"#/$defs/{key}"}
    return {
        "type": "object",
        "properties": {"name": {"type": "string", "enum": [function["name"]]}, "parameters": parameters},
        "required": ["name", "parameters"],
        "additionalProperties": False,
    }


def _parameters(function: Mapping[str, Any]) -> dict[str, Any]:
    return function.get("parameters") or {"type": "object", "properties": {}, "additionalProperties": False}


def _refers(schema: Any) -> bool:
    if isinstance(schema, dict):
        return any((k == "$ref" and isinstance(v, str)) or _refers(v) for k, v in schema.items())
    return isinstance(schema, list) and any(_refers(v) for v in schema)


def _moved(schema: Any, to: str) -> Any:
    if isinstance(schema, dict):
        return {
            k: to + v[1:] if k == "$ref" and isinstance(v, str) and v.startswith("#") else _moved(v, to)
            for k, v in schema.items()
        }
    return [_moved(v, to) for v in schema] if isinstance(schema, list) else schema


def _dump(schema: Any) -> str:
    return json.dumps(schema, ensure_ascii=False, separators=(",", ":"))
