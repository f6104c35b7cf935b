"""Fields of requests that types and bounds alone cannot describe: how each is checked, and its JSON schema."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, Field, PlainValidator, WithJsonSchema
from pydantic_core import core_schema

from headrace.core.streams import Prompt, TextPrompt, TokenPrompt

MAX_TOKENS = 2**31 - 1
MAX_CHOICES = 128  # prompts × n
MAX_INPUTS = 2048  # texts of one request that generates nothing
MAX_STOP_CHARS = 256
MAX_MESSAGES = 4096
MAX_LOGIT_BIAS = 1024


class Rejected(ValueError):
    """A value that is wrong in a way that types cannot say. The message continues "`param` …"."""

    def __init__(self, message: str, at: str = "") -> None:
        super().__init__(message)
        self.at = at


def _stop(value: Any) -> tuple[str, ...]:
    strings = [value] if isinstance(value, str) else value
    if not isinstance(strings, list):
        raise Rejected("must be a string or a list of up to 4 strings")
    if len(strings) > 4:
        raise Rejected(f"must hold at most 4 strings, not {len(strings)}")
    for i, s in enumerate(strings):
        if not isinstance(s, str) or not 1 <= len(s) <= MAX_STOP_CHARS:
            raise Rejected(f"must be a string of 1 to {MAX_STOP_CHARS} characters", f"[{i}]" if s is not value else "")
    return tuple(strings)


def _logit_bias(value: Any) -> dict[int, float]:
    if not isinstance(value, dict) or len(value) > MAX_LOGIT_BIAS:
        raise Rejected(f"must be an object of at most {MAX_LOGIT_BIAS} token ids")
    out: dict[int, float] = {}
    for key, bias in value.items():
        if not (isinstance(key, str) and key.isascii() and key.isdigit() and int(key) < 2**32):
            raise Rejected(f"must have token ids as keys, not {key[:40]!r}")
        if isinstance(bias, bool) or not isinstance(bias, (int, float)) or not -100 <= bias <= 100:
            raise Rejected("must hold numbers from -100 to 100", f".{key}")
        out[int(key)] = float(bias)
    return out


def _token_ids(value: list[Any], at: str = "") -> TokenPrompt:
    if not all(type(x) is int and 0 <= x < 2**32 for x in value):
        raise Rejected("must hold token ids, which are whole numbers from 0", at)
    return TokenPrompt(value)


def _prompts(value: Any, most: int = MAX_CHOICES) -> tuple[Prompt, ...]:
    if isinstance(value, str):
        value = [value]
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
    if all(isinstance(x, list) and x for x in value):
        return tuple(_token_ids(x, f"[{i}]") for i, x in enumerate(value))
    raise Rejected("must hold only strings, only token ids, or only lists of token ids; none of them empty")


def _texts(value: Any) -> tuple[str, ...]:
    """Texts, or objects of a text each."""
    if isinstance(value, (str, dict)):
        value = [value]
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_INPUTS:
        raise Rejected(f"must be a text or a list of 1 to {MAX_INPUTS} texts")
    texts: list[str] = []
    for i, x in enumerate(value):
        text = x["text"] if isinstance(x, dict) and set(x) == {"text"} else x
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
            raise Rejected(f"is a part of type {str(kind)[:40]!r}; only 'text' is supported", f"[{i}]")
        if set(part) != {"type", "text"} or not isinstance(part["text"], str):
            raise Rejected("must be an object with 'type' and a string 'text'", f"[{i}]")
        texts.append(part["text"])
    return "\n".join(texts)


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
    WithJsonSchema({"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "maxItems": 4}]}),
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


def _metadata(value: Mapping[str, str]) -> Mapping[str, str]:
    if len(value) > 16:
        raise Rejected("must have at most 16 keys")
    return value


Metadata = Annotated[dict[str, str], AfterValidator(_metadata)]
