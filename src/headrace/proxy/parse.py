"""From the bytes of a request to its model, or to one sentence that says what is wrong with which field."""

from __future__ import annotations

import codecs
import difflib
from typing import Any, TypeVar

import pydantic
import pydantic_core

from headrace.errors import HeadraceError, InvalidRequest
from headrace.proxy.fields import Rejected
from headrace.proxy.openai import ModelChatRequest
from headrace.proxy.strict import Strict

M = TypeVar("M", bound=Strict)


class UnsupportedMedia(HeadraceError):
    kind, status, type, default_code = "unsupported_media", 415, "invalid_request_error", "unsupported_media_type"


def parse_json(body: bytes, model: type[M]) -> M:
    """The request in `body`. InvalidRequest names the field at fault."""
    if not body.strip():
        raise InvalidRequest("The body is empty; send a JSON object.")
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as e:
        raise InvalidRequest(f"The body is not UTF-8: byte {e.start} is wrong.") from e
    try:
        data = pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as e:
        raise InvalidRequest(f"The body is not JSON: {e}.") from e
    if not isinstance(data, dict):
        raise InvalidRequest("The body must be a JSON object.")
    return validate(data, model)


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
    """A text/plain body. UnsupportedMedia for an unknown charset; InvalidRequest for wrong bytes, or none."""
    try:
        codec = codecs.lookup(charset)
        if not getattr(codec, "_is_text_encoding", True):
            raise LookupError(charset)
    except (LookupError, ValueError) as e:
        raise UnsupportedMedia(f"The charset {charset[:40]!r} is not known; use utf-8.") from e
    try:
        text = body.decode(codec.name)
    except UnicodeDecodeError as e:
        raise InvalidRequest(f"The body is not {codec.name}: byte {e.start} is wrong.") from e
    text = text.removeprefix("\ufeff")
    if not text.strip():
        raise InvalidRequest("The body is empty; send the prompt as text.", param="prompt")
    return text


_FLAGS = {"true": True, "1": True, "false": False, "0": False}
_QUERY_STRINGS = {"stop", "user"}


def query_fields(query: list[tuple[str, str]]) -> dict[str, Any]:
    """Query parameters as the fields of a request: numbers and flags read as such, `stop` may be repeated."""
    out: dict[str, Any] = {}
    for name, text in query:
        if name == "stop":
            out.setdefault("stop", []).append(text)
        elif name in out:
            raise InvalidRequest(f"'{name}' is given twice.", param=name)
        elif name in ("messages", "prompt", "model", "stream", "stream_options"):
            raise InvalidRequest(f"'{name}' cannot be a query parameter: the body is the prompt.", param=name)
        else:
            out[name] = text if name in _QUERY_STRINGS else _scalar(text)
    return out


def _scalar(text: str) -> Any:
    if text in ("true", "false"):
        return _FLAGS[text]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


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
    details = error.errors(include_url=False, include_input=True)
    e = details[0]
    param = _path(e["loc"])
    kind, context = e["type"], e.get("ctx", {})
    if kind == "extra_forbidden":
        name = str(e["loc"][-1])[:80]
        known = [k for k in model.model_fields if model.model_fields[k].annotation] if len(e["loc"]) == 1 else []
        near = difflib.get_close_matches(name, known, 1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        return InvalidRequest(f"Unknown parameter: '{param[:120]}'.{hint}", param=param[:120], code="unknown_parameter")
    cause = context.get("error")
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
    words = _WORDS.get(kind) or e["msg"].lower().replace("input should", "must")
    return InvalidRequest(f"'{param}' {words}.", param=param, code="missing_parameter" if kind == "missing" else None)


def _code(text: str) -> str | None:
    return "unsupported_parameter" if text == "is not supported" else None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
