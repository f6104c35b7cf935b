"""Engine options: a JSON object into a dataclass, with sentences for what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from headrace.errors import UserError

T = TypeVar("T")


def parse_options(kind: type[T], given: Mapping[str, Any], engine: str) -> T:
    """A `kind` with the given fields. UserError for an unknown name or a value of another type than its default's."""
    defaults = kind()
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    for name, value in given.items():
        if name not in known:
            raise UserError(f"The {engine} engine has no option {name!r}; it has {', '.join(sorted(known))}.")
        wanted = type(getattr(defaults, name))
        fits = isinstance(value, wanted) and not (wanted is int and isinstance(value, bool))
        if not fits and not (wanted is float and isinstance(value, int) and not isinstance(value, bool)):
            raise UserError(f"The {engine} engine's option {name!r} must be a {wanted.__name__}, not {value!r}.")
    return kind(**given)
