"""Makes up a value that fits a JSON schema: what the simulated model answers when an answer must have a form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from headrace.core import simulated

Number = Callable[[int], int]
"""Of n: a number from 0 to n-1; the next one at each call."""

MAX_DEPTH = 24
MAX_VALUES = 4096
_FULL_DEPTH = 3  # deeper than this only what is required is made, so that a schema may name itself
_UNKNOWN = {
    "pattern", "not", "if", "then", "else", "contains", "uniqueItems", "dependentRequired", "dependentSchemas",
    "patternProperties", "propertyNames", "minProperties", "maxProperties", "unevaluatedProperties", "$dynamicRef",
}  # fmt: skip


class CannotMake(ValueError):
    """The schema asks for what is not made up here. The message says which part of it."""


@dataclass(slots=True)
class _Maker:
    root: Any
    number: Number
    left: int = MAX_VALUES  # values that may still be made


def instance(schema: Any, number: Number) -> Any:
    """A value that is valid under `schema`; always the same for the same numbers. CannotMake if it is too hard."""
    try:
        return _make(schema, _Maker(schema, number), 0)
    except CannotMake:
        raise
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError) as e:
        raise CannotMake(f"it is no JSON schema ({e})") from e


def numbers(key: bytes) -> Number:
    """Numbers that depend on a digest alone."""
    drawn = 0

    def number(n: int) -> int:
        nonlocal drawn
        drawn += 1
        return simulated.number(key, drawn, b"form") % n

    return number


def _make(schema: Any, m: _Maker, depth: int) -> Any:
    m.left -= 1
    if depth > MAX_DEPTH or m.left < 0:
        raise CannotMake("it nests without end" if m.left >= 0 else "its values are too large")
    if schema is True or schema == {}:
        return _word(m)
    if not isinstance(schema, dict):
        raise CannotMake("a part of it allows nothing" if schema is False else "a part of it is no schema")
    s = cast("dict[str, Any]", schema)
    if unknown := _UNKNOWN & s.keys():
        raise CannotMake(f"'{min(unknown)}' is not understood")
    if "$ref" in s:
        return _make(_resolve(str(s["$ref"]), m.root), m, depth + 1)
    if "const" in s:
        return s["const"]
    if "enum" in s:
        return s["enum"][m.number(len(s["enum"]))]
    if "allOf" in s:
        return _make(_merged(s, m.root), m, depth + 1)
    for several in ("anyOf", "oneOf"):
        if several in s:
            return _one_of(s, several, m, depth)
    kinds = s.get("type", _implied(s))
    if isinstance(kinds, list):
        listed = cast("list[str]", kinds)
        kinds = listed[m.number(len(listed))]
    match kinds:
        case "object":
            return _object(s, m, depth)
        case "array":
            return _array(s, m, depth)
        case "string":
            return _string(s, m)
        case "integer":
            return _between(s, m, 1)
        case "number":
            return _between(s, m, 0)
        case "boolean":
            return m.number(2) == 1
        case "null":
            return None
        case _:
            raise CannotMake(f"there is no type {kinds!r}")


def _implied(s: Mapping[str, Any]) -> str:
    if "properties" in s or "required" in s or "additionalProperties" in s:
        return "object"
    if "items" in s or "prefixItems" in s or "minItems" in s:
        return "array"
    if "minimum" in s or "maximum" in s or "multipleOf" in s or "exclusiveMinimum" in s or "exclusiveMaximum" in s:
        return "number"
    return "string"


def _resolve(ref: str, root: Any) -> Any:
    if not ref.startswith("#"):
        raise CannotMake(f"it refers to {ref!r}, which is not a part of it")
    found: Any = root
    for part in ref[1:].split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        try:
            part_of = cast("dict[int | str, Any]", found)
            found = part_of[int(name) if isinstance(found, list) else name]
        except (KeyError, IndexError, ValueError, TypeError) as e:
            raise CannotMake(f"it refers to {ref!r}, which it does not have") from e
    return found


def _merged(s: Mapping[str, Any], root: Any) -> dict[str, Any]:
    out = {k: v for k, v in s.items() if k != "allOf"}
    for part in s["allOf"]:
        if isinstance(part, dict) and "$ref" in part:
            part = _resolve(str(cast("dict[str, Any]", part)["$ref"]), root)
        if not isinstance(part, dict):
            raise CannotMake("'allOf' holds what is no schema")
        for k, v in cast("dict[str, Any]", part).items():
            if k == "properties":
                out[k] = {**out.get(k, {}), **v}
            elif k == "required":
                out[k] = [*out.get(k, ()), *v]
            elif k in out and out[k] != v:
                raise CannotMake(f"the parts of 'allOf' differ in '{k}'")
            else:
                out[k] = v
    return out


def _one_of(s: Mapping[str, Any], several: str, m: _Maker, depth: int) -> Any:
    rest = {k: v for k, v in s.items() if k not in (several, "$defs", "definitions", "title", "description", "default")}
    options = cast("Sequence[Any]", s[several])
    first = m.number(len(options))
    why = CannotMake(f"'{several}' is empty")
    for i in range(len(options)):
        option = options[(first + i) % len(options)]
        try:
            return _make({**rest, "allOf": [option]} if rest else option, m, depth + 1)
        except CannotMake as e:
            why = e
    raise why


def _object(s: Mapping[str, Any], m: _Maker, depth: int) -> dict[str, Any]:
    properties = cast("Mapping[str, Any]", s.get("properties", {}))
    required = cast("Sequence[str]", s.get("required", ()))
    out: dict[str, Any] = {}
    for name, schema in properties.items():
        if name in required or depth < _FULL_DEPTH:
            out[name] = _make(schema, m, depth + 1)
    for name in required:
        if name not in properties:
            out[name] = _make(s.get("additionalProperties", True), m, depth + 1)
    return out


def _array(s: Mapping[str, Any], m: _Maker, depth: int) -> list[Any]:
    prefix = cast("Sequence[Any]", s.get("prefixItems", ()))
    least, most = int(s.get("minItems", 0)), int(s.get("maxItems", 2**31))
    count = max(least, min(most, 1 + m.number(2)) if depth < _FULL_DEPTH else 0)
    if count > MAX_VALUES:
        raise CannotMake("its values are too large")
    items = s.get("items", True)
    if items is False:
        count = max(least, min(count, len(prefix)))
    return [_make(prefix[i] if i < len(prefix) else items, m, depth + 1) for i in range(count)]


def _string(s: Mapping[str, Any], m: _Maker) -> str:
    least, most = int(s.get("minLength", 0)), int(s.get("maxLength", 2**31))
    text = _word(m)
    if least > MAX_VALUES:
        raise CannotMake("its values are too large")
    while len(text) < least:
        text += " " + _word(m)
    return text[:most]


def _between(s: Mapping[str, Any], m: _Maker, step: int) -> int | float:
    """A number within the bounds: a multiple of `multipleOf`, or of 1 where it must be whole or can be."""
    unit = s.get("multipleOf", 1)
    low, high = s.get("minimum"), s.get("maximum")
    if (above := s.get("exclusiveMinimum")) is not None and (low is None or above >= low):
        low = (above // unit + 1) * unit
    if (below := s.get("exclusiveMaximum")) is not None and (high is None or below <= high):
        high = -((-below) // unit + 1) * unit
    if low is None:
        low = 0 if high is None or high >= 0 else high - 9 * unit
    first = -(-low // unit) * unit
    if high is not None and first > high:
        if step or "multipleOf" in s:
            raise CannotMake("no number is within its bounds")
        return _fraction(s)
    room = 9 if high is None else min(9, int((high - first) // unit))
    return first + m.number(room + 1) * unit


def _fraction(s: Mapping[str, Any]) -> float:
    """Between two bounds that no whole number fits between."""
    low = max(s.get("minimum", float("-inf")), s.get("exclusiveMinimum", float("-inf")))
    high = min(s.get("maximum", float("inf")), s.get("exclusiveMaximum", float("inf")))
    middle = (low + high) / 2
    if low > high or middle in (s.get("exclusiveMinimum"), s.get("exclusiveMaximum")):
        raise CannotMake("no number is within its bounds")
    return middle


def _word(m: _Maker) -> str:
    return simulated.WORDS[m.number(len(simulated.WORDS))].strip() or "a"
