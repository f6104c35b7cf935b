"""How far a stream has come, and where what it brings goes."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from headrace import errors
from headrace.proxy.extras import Extra


class Place(NamedTuple):
    """How far a stream has come, which is the id of its event."""

    moves: int
    tokens: int
    chars: int
    reasoning_chars: int

    @staticmethod
    def read(text: str) -> Place:
        """InvalidRequest if it is not what an event's id looks like."""
        parts = text.split(".")
        if len(parts) != 4 or not all(p.isascii() and p.isdigit() and len(p) < 10 for p in parts):
            raise errors.InvalidRequest("Last-Event-ID is not the id of an event of this API.", param="Last-Event-ID")
        return Place(*map(int, parts))


class HasPlace(Protocol):
    """A Place, or the stream that is there now: a token makes no object."""

    @property
    def moves(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def chars(self) -> int: ...
    @property
    def reasoning_chars(self) -> int: ...


class Sink(Protocol):
    """Where the answer goes; called straight from the frame reader, so it must be quick and must not raise.

    `place`: where the stream is with what is given, if the client is to know. It moves on: not to be kept.
    """

    def delta(self, index: int, text: str, logprobs: Any, place: HasPlace | None = None) -> None: ...
    def extra(self, index: int, item: Extra, place: HasPlace | None = None) -> None: ...
    def choice_done(self, index: int, reason: str) -> None: ...
    def waiting(self, what: str) -> None: ...

    def restart(self, index: int) -> bool:
        """Forget what came of a choice, which begins again. False if it is out already."""
        ...
