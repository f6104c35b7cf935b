"""Bounds of what comes over the wire: every value of a message from another process passes through here.

What can only be a fault, or an attack, is refused with InvalidRequest; text for people is cut to a length.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence, Sized
from typing import TypeVar

from headrace.core.types import NAME_PATTERN, REPLICA_ID_PATTERN
from headrace.errors import InvalidRequest

MAX_WORD = 256  # characters of a name, an id, a version
MAX_TEXT = 2000  # of a sentence for people
MAX_SOURCE = 4096  # of a path or an address of weights
MAX_DOCUMENT = 256 * 1024  # of a template, or of arguments as JSON
MAX_REPLICAS = 10_000  # of one node
MAX_GPUS = 1024
MAX_BYTES = 2**60
MAX_CPUS = 4096.0
_MAX_SECONDS = 1e10  # also of Unix time
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.%\w]{2,64}\]|[A-Za-z0-9._-]{1,253}):\d{1,5}")

Many = TypeVar("Many", bound=Sized)


def name(value: str, what: str) -> str:
    """A public name or an id: a NAME_PATTERN."""
    if not NAME_PATTERN.fullmatch(value):
        raise InvalidRequest(
            f"{value[:100]!r} is not a {what}: use up to 96 letters, digits, '.', '_', ':' and '-', beginning with a"
            " letter or digit.",
            param=what.replace(" ", "_"),
        )
    return value


def replica_id(value: str) -> str:
    """A REPLICA_ID_PATTERN."""
    if not REPLICA_ID_PATTERN.fullmatch(value):
        raise InvalidRequest(f"{value[:100]!r} is not the id of a replica.", param="replica_id")
    return value


def word(value: str, what: str, most: int = MAX_WORD) -> str:
    """Text of at most so many characters, none of which controls a terminal."""
    if len(value) > most:
        raise InvalidRequest(f"The {what} has {len(value)} characters; at most {most} are possible.", param=what)
    if not value.isprintable():
        raise InvalidRequest(f"The {what} {value[:100]!r} has characters that cannot be printed.", param=what)
    return value


def document(value: str, what: str) -> str:
    """Text of any characters, up to MAX_DOCUMENT."""
    if len(value) > MAX_DOCUMENT:
        raise InvalidRequest(f"The {what} is longer than {MAX_DOCUMENT // 1024} KiB.", param=what)
    return value


def sentence(value: str, most: int = MAX_TEXT) -> str:
    """Text for people, cut to a length, on one line, without what controls a terminal."""
    value = value[: most + 1]
    if not value.isprintable():
        value = "".join(c if c.isprintable() else " " for c in value)
    return value if len(value) <= most else value[: most - 1] + "…"


def address(value: str, what: str) -> str:
    """host:port, or nothing."""
    if value and not _ADDRESS.fullmatch(value):
        raise InvalidRequest(f"The {what} {value[:100]!r} is not host:port.", param=what)
    return value


def amount(value: float, what: str, most: float) -> float:
    """A number from 0 to `most`; NaN is none."""
    if not 0.0 <= value <= most:
        raise InvalidRequest(f"{what} must be a number from 0 to {most:g}, not {value:g}.", param=what)
    return value


def seconds(value: float, what: str) -> float:
    """A duration, or a Unix time."""
    return amount(value, what, _MAX_SECONDS)


def share(value: float) -> float:
    """From 0 to 1, or -1 for anything that is not."""
    return value if 0.0 <= value <= 1.0 else -1.0


def finite(value: float, what: str) -> float:
    if not math.isfinite(value):
        raise InvalidRequest(f"{what} must be a finite number.", param=what)
    return value


def few(values: Many, what: str, most: int) -> Many:
    """A list of at most so many."""
    if len(values) > most:
        raise InvalidRequest(f"There are {len(values)} {what}; at most {most} are possible.", param=what)
    return values


def words(values: Sequence[str], what: str, most: int, length: int = 64) -> tuple[str, ...]:
    return tuple(word(v, what, length) for v in few(values, what, most))
