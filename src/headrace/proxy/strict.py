"""What all request bodies have in common: unknown fields and wrong types are refused, and values never change."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    def check(self) -> None:
        """What concerns more than one field. Rejected, with the field at its start."""
