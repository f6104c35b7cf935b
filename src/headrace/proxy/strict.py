"""What all request bodies have in common: unknown fields and wrong types are refused, and values never change."""

from __future__ import annotations

from collections.abc import Set
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator


class Rejected(ValueError):
    """A value that is wrong in a way that types cannot say. The message continues "`param` …"."""

    def __init__(self, message: str, at: str = "") -> None:
        super().__init__(message)
        self.at = at


class Unknown(Rejected):
    """A field that the object does not have."""

    def __init__(self, name: str) -> None:
        super().__init__("is unknown")
        self.name = name[:200]


class Strict(BaseModel):
    """`ids_in`: fields that may hold token ids, of which there may be very many."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    ids_in: ClassVar[Set[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _given(cls, data: Any) -> Any:
        """What is there: a field that is null is absent. The first unknown one ends it, before anything is made."""
        if not isinstance(data, dict):
            return data
        known, found = cls.__pydantic_fields__, dict[Any, Any]()
        for name, value in data.items():
            if value is None:
                continue
            if name not in known:
                raise Unknown(name)
            found[name] = value
        return found

    def check(self) -> None:
        """What concerns more than one field. Rejected, with the field at its start."""
