"""Fields of requests that types and bounds alone cannot describe: how each is checked, and its JSON schema."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, cast

from pydantic import Field, PlainValidator, WithJsonSchema
from pydantic_core import core_schema

from headrace.core.streams import Prompt, TextPrompt, TokenPrompt
from headrace.proxy.strict import Rejected

MAX_TOKENS = 2**31 - 1
MAX_CHOICES = 128  # prompts × n
MAX_INPUTS = 2048  # texts of one request that generates nothing
MAX_STOP = 32
MAX_STOP_CHARS = 256
MAX_MESSAGES = 4096
MAX_LOGIT_BIAS = 1024
MAX_METADATA = 16
MAX_METADATA_CHARS = 512


def _stop(value: Any) -> tuple[str, ...]:
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, list):
        raise Rejected(f"must be a string or a list of up to {MAX_STOP} strings")
    if len(strings) > MAX_STOP:
        raise Rejected(f"must hold at most {MAX_STOP} strings, not {len(strings)}")
    for i, s in enumerate(strings):
        if not isinstance(s, str) or not 1 <= len(s) <= MAX_STOP_CHARS:
            raise Rejected(f"must be a string of 1 to {MAX_STOP_CHARS} characters", f"[{i}]" if s is not value else "")
    return tuple(strings)


def _logit_bias(value: Any) -> dict[int, float]:
    if not isinstance(value, dict) or len(value) > MAX_LOGIT_BIAS:
        raise Rejected(f"must be an object of at most {MAX_LOGIT_BIAS} token ids")
    out: dict[int, float] = {}
    for key, bias in value.items():
        if bias is None:
            continue
        if not (key.isascii() and key.isdigit() and len(key) <= 10 and int(key) < 2**32):
            raise Rejected(f"must have token ids as keys, not '{key[:40]}'")
        if isinstance(bias, bool) or not isinstance(bias, (int, float)) or not -100 <= bias <= 100:
            raise Rejected("must hold numbers from -100 to 100", f".{key}")
        out[int(key)] = float(bias)
    return out


def _token_ids(value: Any, at: str = "") -> TokenPrompt:
    """Of a list, or of an array that a list became already."""
    if isinstance(value, array):
        return TokenPrompt(cast("array[int]", value))
    if not all(type(x) is int and 0 <= x < 2**32 for x in value):
        raise Rejected("must hold token ids, which are whole numbers from 0", at)
    return TokenPrompt(value)


def _tokens(value: Any) -> TokenPrompt:
    if not isinstance(value, (list, array)) or not value:
        raise Rejected("must be a list of token ids; not empty")
    return _token_ids(value)


def _prompts(value: Any, most: int = MAX_CHOICES) -> tuple[Prompt, ...]:
    if isinstance(value, str):
        value = [value]
    if isinstance(value, array):
        return (_token_ids(value),)
    if not isinstance(value, list) or not value:
        raise Rejected("must be a string, a list of strings, a list of token ids or a list of such lists; not empty")
    if type(value[0]) is int:
        return (_token_ids(value),)
    if len(value) > most:
        raise Rejected(f"must hold at most {most} prompts, not {len(value)}")
    if all(isinstance(x, str) for x in value):
        for i, text in enumerate(value):
            if not text:
                raise Rejected("must not be empty", f"[{i}]" if len(value) > 1 else "")
        return tuple(TextPrompt(x) for x in value)
    if all(isinstance(x, (list, array)) and x for x in value):
        return tuple(_token_ids(x, f"[{i}]") for i, x in enumerate(value))
    raise Rejected("must hold only strings, only token ids, or only lists of token ids; none of them empty")


def _names(value: Mapping[str, Any]) -> set[str]:
    """Of the fields that an object has: one that is null is absent."""
    return {name for name, x in value.items() if x is not None}


def _texts(value: Any) -> tuple[str, ...]:
    """Texts, or objects of a text each."""
    if isinstance(value, (str, dict)):
        value = [value]
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_INPUTS:
        raise Rejected(f"must be a text or a list of 1 to {MAX_INPUTS} texts")
    texts: list[str] = []
    for i, x in enumerate(value):
        text = x["text"] if isinstance(x, dict) and _names(x) == {"text"} else x
        if not isinstance(text, str) or not text:
            raise Rejected('must be a text that is not empty, or {"text": …}', f"[{i}]")
        texts.append(text)
    return tuple(texts)


def _content(value: Any) -> str:
    """Text, or parts of text, which become lines of one text: templates of text models know strings only."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise Rejected("must be a string or a list of text parts")
    texts: list[str] = []
    for i, part in enumerate(value):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            named = f"of type '{kind[:40]}'" if isinstance(kind, str) else "without a type"
            raise Rejected(f"is a part {named}; only 'text' is supported", f"[{i}]")
        if _names(part) != {"type", "text"} or not isinstance(part["text"], str):
            raise Rejected("must be an object with 'type' and a string 'text'", f"[{i}]")
        texts.append(part["text"])
    return texts[0] if len(texts) == 1 else "\n".join(texts)


@dataclass(frozen=True, slots=True)
class Only:
    """Marks a field that may only have values which change nothing: these, and null."""

    harmless: tuple[Any, ...] = ()

    def _check(self, value: Any) -> Any:
        if value is None or any(value == h and type(value) is type(h) for h in self.harmless):
            return value
        raise Rejected("is not supported")

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        return {"enum": [None, *self.harmless], "description": "Accepted only where it changes nothing."}


_TEXT = {"type": "string", "minLength": 1}
_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}}
Stop = Annotated[
    tuple[str, ...],
    PlainValidator(_stop),
    WithJsonSchema({"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "maxItems": MAX_STOP}]}),
]
LogitBias = Annotated[
    dict[int, float],
    PlainValidator(_logit_bias),
    WithJsonSchema({"type": "object", "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100}}),
]
_PROMPTS = WithJsonSchema(
    {"anyOf": [_TEXT, {"type": "array", "items": _TEXT}, _IDS, {"type": "array", "items": _IDS}]},
)
Prompts = Annotated[tuple[Prompt, ...], PlainValidator(_prompts), _PROMPTS]
Inputs = Annotated[tuple[Prompt, ...], PlainValidator(lambda value: _prompts(value, MAX_INPUTS)), _PROMPTS]
Content = Annotated[
    str,
    PlainValidator(_content),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                        "required": ["type", "text"],
                    },
                },
            ]
        }
    ),
]
_DOCUMENT = {"anyOf": [_TEXT, {"type": "object", "properties": {"text": _TEXT}, "required": ["text"]}]}
Texts = Annotated[
    tuple[str, ...],
    PlainValidator(_texts),
    WithJsonSchema({"anyOf": [*_DOCUMENT["anyOf"], {"type": "array", "items": _DOCUMENT, "maxItems": MAX_INPUTS}]}),
]
Unsupported = Annotated[Any, Only()]
Number = Annotated[float, Field(allow_inf_nan=False)]


def _metadata(value: Any) -> Mapping[str, str]:
    if not isinstance(value, dict) or len(value) > MAX_METADATA:
        raise Rejected(f"must be an object of at most {MAX_METADATA} texts")
    for name, text in value.items():
        if not isinstance(text, str | None) or len(name) > MAX_METADATA_CHARS or len(text or "") > MAX_METADATA_CHARS:
            raise Rejected(f"must hold texts of at most {MAX_METADATA_CHARS} characters", f".{name[:40]}")
    return value


Tokens = Annotated[TokenPrompt, PlainValidator(_tokens), WithJsonSchema(_IDS)]
Metadata = Annotated[
    Mapping[str, str],
    PlainValidator(_metadata),
    WithJsonSchema({"type": "object", "additionalProperties": {"type": "string"}, "maxProperties": MAX_METADATA}),
]
