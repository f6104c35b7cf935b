"""From the bytes of a request to its model, or to one sentence that says what is wrong with which field."""

from __future__ import annotations

import asyncio
import difflib
import json
import re
from collections.abc import Mapping
from typing import Any, TypeVar, cast

import pydantic
import pydantic_core

from headrace.errors import InvalidRequest, UnsupportedMedia
from headrace.proxy.charsets import KNOWN, codec_of
from headrace.proxy.fields import Rejected
from headrace.proxy.openai import ModelChatRequest
from headrace.proxy.scan import Scan
from headrace.proxy.strict import Strict, Unknown

M = TypeVar("M", bound=Strict)

LARGE_BYTES = 64 * 1024
"""A body of more is read in turns: see scan.py."""


def parse_json(body: bytes, model: type[M], query: Mapping[str, Any] | None = None) -> M:
    """The request in `body`, with what its query says. InvalidRequest names the field at fault."""
    return validate(_with(_object(body), query), model)


async def parse_large_json(body: list[bytes], model: type[M], query: Mapping[str, Any] | None = None) -> M:
    """The same of a large body, a turn at a time; TooLarge if it has too many values. `body` is emptied."""
    scan = Scan(body.pop(), model.ids_in)
    for _ in scan.turns():
        await asyncio.sleep(0)
    data = _object(scan.rest())
    scan.put_back(data)
    del scan
    await asyncio.sleep(0)
    return validate(_with(data, query), model)


def _object(body: bytes) -> dict[str, Any]:
    try:
        data = pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as e:
        raise InvalidRequest(_why_not_json(body, e)) from e
    if not isinstance(data, dict):
        raise InvalidRequest("The body must be a JSON object.")
    return cast("dict[str, Any]", data)


def _why_not_json(body: bytes, error: ValueError) -> str:
    if not body or body.isspace():
        return "The body is empty; send a JSON object."
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as e:
        return f"The body is not UTF-8: byte {e.start} is wrong."
    return f"The body is not JSON: {error}."


def _with(data: dict[str, Any], query: Mapping[str, Any] | None) -> dict[str, Any]:
    for name in query or ():
        if data.get(name) is not None:
            raise InvalidRequest(f"'{name}' is in the query and in the body; give it once.", param=name)
    return data | dict(query) if query else data


def validate(data: dict[str, Any], model: type[M]) -> M:
    """`data` as a request. InvalidRequest names the field at fault."""
    try:
        request = model.model_validate(data)
    except pydantic.ValidationError as e:
        raise _explain(e, model) from e
    try:
        request.check()
    except Rejected as e:
        raise InvalidRequest(f"'{e.at}' {e}.", param=e.at) from e
    return request


def decode_text(body: bytes, charset: str) -> str:
    """A text/plain body. UnsupportedMedia for a charset that is not taken; InvalidRequest for wrong bytes, or none."""
    codec = codec_of(charset)
    if codec is None:
        raise unknown_charset(charset)
    try:
        text = body.decode(codec)
    except UnicodeDecodeError as e:
        raise InvalidRequest(f"The body is not {charset}: byte {e.start} is wrong.") from e
    text = text.removeprefix("\ufeff")
    if not text or text.isspace():
        raise InvalidRequest("The body is empty; send the prompt as text.", param="prompt")
    return text


def unknown_charset(charset: str) -> UnsupportedMedia:
    return UnsupportedMedia(f"The charset {charset[:40]} is not taken; there are {KNOWN}.")


_WORDS_OF_JSON = {"true": True, "false": False, "null": None}
_WHOLE, _NUMBER = re.compile(r"-?[0-9]{1,20}"), re.compile(r"-?[0-9]{1,20}(\.[0-9]{1,40})?([eE][+-]?[0-9]{1,3})?")
_QUERY_STRINGS = {"stop", "user"}


def query_fields(query: list[tuple[str, str]]) -> dict[str, Any]:
    """Query parameters as the fields of a request: numbers and flags read as such, `stop` may be repeated."""
    out: dict[str, Any] = {}
    for name, text in query:
        if name == "stop":
            out.setdefault("stop", []).append(text)
        elif name in out:
            raise InvalidRequest(f"'{name[:80]}' is given twice.", param=name[:80])
        elif name in ("messages", "prompt", "model", "stream", "stream_options"):
            raise InvalidRequest(f"'{name}' cannot be a query parameter: it belongs into the body.", param=name)
        else:
            out[name] = text if name in _QUERY_STRINGS else _scalar(text)
    return out


def _scalar(text: str) -> Any:
    """As JSON would have it, not as Python has numbers."""
    if text in _WORDS_OF_JSON:
        return _WORDS_OF_JSON[text]
    if _WHOLE.fullmatch(text):
        return int(text)
    return float(text) if _NUMBER.fullmatch(text) else text


def plain_request(prompt: str, query: list[tuple[str, str]]) -> ModelChatRequest:
    """The request of a text/plain body with its query parameters."""
    return validate(query_fields(query) | {"prompt": prompt}, ModelChatRequest)


def _path(loc: tuple[int | str, ...]) -> str:
    out = ""
    for part in loc:
        out += f"[{part}]" if isinstance(part, int) else f".{part}" if out else str(part)
    return out


_WORDS = {
    "missing": "is required",
    "string_type": "must be a string",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "finite_number": "must be a finite number",
}


def _explain(error: pydantic.ValidationError, model: type[Strict]) -> InvalidRequest:
    """The first thing that is wrong, in a sentence."""
    e = error.errors(include_url=False, include_input=True)[0]  # there are few: each list and object ends at its first
    param = _path(e["loc"])
    kind, context = e["type"], e.get("ctx", {})
    cause = context.get("error")
    if isinstance(cause, Unknown):
        near = [] if e["loc"] else difflib.get_close_matches(cause.name[:80], list(model.model_fields), 1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        param = (param + "." if param else "") + cause.name
        return InvalidRequest(f"Unknown parameter: '{param[:120]}'.{hint}", param=param[:120], code="unknown_parameter")
    if isinstance(cause, Rejected):
        param += cause.at
        return InvalidRequest(f"'{param}' {cause}.", param=param, code=_code(str(cause)))
    bounds = {"greater_than_equal": "at least", "less_than_equal": "at most", "greater_than": "above"}
    if kind in bounds:
        limit = next(iter(context.values()))
        text = f"{limit:g}" if isinstance(limit, float) else str(limit)
        return InvalidRequest(f"'{param}' must be {bounds[kind]} {text}, not {_short(e['input'])}.", param=param)
    if kind == "literal_error":
        return InvalidRequest(f"'{param}' must be one of {context['expected']}, not {_short(e['input'])}.", param=param)
    if kind in ("too_short", "string_too_short"):
        return InvalidRequest(f"'{param}' must not be empty.", param=param)
    if kind in ("too_long", "string_too_long"):
        return InvalidRequest(f"'{param}' must have a length of at most {context['max_length']}.", param=param)
    words = _WORDS.get(kind) or f"cannot be {_short(e['input'])}"
    return InvalidRequest(f"'{param}' {words}.", param=param, code="missing_parameter" if kind == "missing" else None)


def _code(text: str) -> str | None:
    return "unsupported_parameter" if text == "is not supported" else None


def _short(value: Any) -> str:
    """A value as JSON has it, if that is short."""
    if isinstance(value, (dict, list, tuple)):
        return "an object" if isinstance(value, dict) else "a list"
    text = json.dumps(value[:60] if isinstance(value, str) else value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"
