"""How far a stream has come, and where what it brings goes."""

from __future__ import annotations

import re
import secrets
from typing import Any, NamedTuple, Protocol

from headrace import errors
from headrace.proxy.extras import Extra

_NONCE = re.compile(r"[A-Za-z0-9_-]{22}")


def new_nonce() -> str:
    """The secret in the ids of a stream's events, by which its reader is known again."""
    return secrets.token_urlsafe(16)


class Place(NamedTuple):
    """How far a stream has come; with the stream's nonce it is the id of its event."""

    moves: int
    tokens: int
    chars: int
    reasoning_chars: int

    @staticmethod
    def read(text: str) -> tuple[Place, str]:
        """The place of an event's id, and the stream's nonce; InvalidRequest if the id cannot be one."""
        *parts, nonce = text.split(".", 5)
        if len(parts) != 4 or not all(p.isascii() and p.isdigit() and len(p) < 10 for p in parts):
            raise errors.InvalidRequest("Last-Event-ID is not the id of an event of this API.", param="Last-Event-ID")
        if not _NONCE.fullmatch(nonce):
            raise errors.InvalidRequest("Last-Event-ID is not the id of an event of this API.", param="Last-Event-ID")
        return Place(*map(int, parts)), nonce


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
