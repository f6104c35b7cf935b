"""Structured answers of the OpenVINO engine: what genai is to be told, and whether it can be told that.

genai (2026.4) reads a guide only in the first step of its request, and an exception from a step is the end of the
pipeline; some guides even end the process (a NUL, thousands of brackets) or compile for ever. So each is tried first
in a process of its own: see guide_checker.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from headrace.core.streams import Guide

FEATURES = frozenset({"json_schema", "json_object", "regex", "grammar", "choices"})

MAX_TRIAL_S = 15.0
"""Below the limit after which the trial process ends itself."""

_IGNORED = frozenset(
    {
        "not", "if", "then", "else", "multipleOf", "uniqueItems", "contains", "minContains", "maxContains",
        "dependentRequired", "dependentSchemas", "$dynamicRef",
    }
)  # fmt: skip
_NAMES_WITHIN = frozenset({"properties", "patternProperties", "$defs", "definitions"})
_DATA_WITHIN = frozenset({"enum", "const", "default", "examples"})


def terms_of(guide: Guide) -> Mapping[str, str]:
    """The guide as parameters of genai's StructuredOutputConfig. ValueError, a sentence, if it cannot be one.

    A grammar is in the EBNF that llama.cpp calls GBNF, and begins with the rule `root`.
    """
    if "\0" in guide.value:
        raise ValueError(f"The {guide.kind} contains a NUL character.")
    match guide.kind:
        case "json_schema":
            _check_schema(_json(guide))
            return {"json_schema": guide.value}
        case "json_object":
            return {"json_schema": '{"type": "object"}'}
        case "regex":
            return {"regex": guide.value}
        case "grammar":
            return {"grammar": guide.value}
        case "choices":
            choices = _json(guide)
            if not (isinstance(choices, list) and choices and all(isinstance(c, str) and c for c in choices)):
                raise ValueError("The choices must be a list of texts, none of them empty.")
            if any("\0" in c for c in choices):
                raise ValueError("A choice contains a NUL character.")
            return {"regex": "|".join(map(_literal, choices))}


def _json(guide: Guide) -> Any:
    try:
        return json.loads(guide.value)
    except ValueError as e:
        raise ValueError(f"The {guide.kind} is not JSON: {e}.") from e
    except RecursionError as e:
        raise ValueError(f"The {guide.kind} is nested too deeply.") from e


def _literal(text: str) -> str:
    """A regular expression for exactly `text`."""
    return re.sub(r"[\\^$.|?*+()\[\]{}/-]", r"\\\g<0>", text).replace("\n", r"\n").replace("\r", r"\r")


def _check_schema(schema: Any) -> None:
    """ValueError if the schema says what genai would not heed."""
    if isinstance(schema, list):
        for part in schema:
            _check_schema(part)
    elif isinstance(schema, dict):
        for key, value in schema.items():
            if key in _IGNORED:
                raise ValueError(f"This engine does not support {key!r} in a JSON schema.")
            if key in _NAMES_WITHIN and isinstance(value, dict):
                _check_schema(list(value.values()))
            elif key not in _DATA_WITHIN:
                _check_schema(value)
