"""Why replicas fail, and which of that is tried again: the one table that says what is transient and what is not.

Where an error is born it gets its cause, as the `code` of a HeadraceError or as an errno; from there on it is data.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from headrace.errors import HeadraceError, Unavailable, UserError


class Cause(StrEnum):
    NETWORK = "network"
    REMOTE = "remote"
    REFUSED = "refused"
    DISK_FULL = "disk_full"
    BUSY = "busy"
    UNUSABLE = "unusable"
    OUT_OF_MEMORY = "out_of_memory"
    STALLED = "stalled"
    CRASH = "crash"


class Again(StrEnum):
    """When a replica that failed is started again. One that has served always is, whatever the cause."""

    ALWAYS = "always"  # transient: for as long as it lasts
    COUNTED = "counted"  # it may be the model or the machine: until it has failed so three times in a row
    NEVER = "never"  # only a person can mend it


@dataclass(frozen=True, slots=True)
class Rule:
    """`longest_s`: what the pauses between tries grow to. `means`: the cause, for people."""

    again: Again
    means: str
    longest_s: float = 60.0


TABLE: Mapping[Cause, Rule] = {
    Cause.NETWORK: Rule(Again.ALWAYS, "connection refused or broken, a name that does not resolve, a time-out"),
    Cause.REMOTE: Rule(Again.ALWAYS, "a server of weights answers 408, 425, 429 or 5xx, or changes what it serves"),
    Cause.DISK_FULL: Rule(Again.ALWAYS, "the node's disk or quota is full", longest_s=5.0),  # to look costs nothing
    Cause.BUSY: Rule(Again.ALWAYS, "files, processes, ports or room in the cache that others use now"),
    Cause.REFUSED: Rule(Again.NEVER, "a server of weights answers 401, 403, 404 or another 4xx, or no credentials"),
    Cause.UNUSABLE: Rule(Again.NEVER, "damaged files, options that cannot be, a package that is missing, offline"),
    Cause.OUT_OF_MEMORY: Rule(Again.COUNTED, "killed by the kernel for memory"),
    Cause.STALLED: Rule(Again.COUNTED, "a start that made no progress and was ended"),
    Cause.CRASH: Rule(Again.COUNTED, "all else: the process ended, the engine failed"),
}

_NAMED = {c.value: c for c in Cause}
_FULL = (errno.ENOSPC, errno.EDQUOT)
_IN_USE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EADDRINUSE, errno.EBUSY, errno.ETXTBSY)
_NETWORK = (
    errno.ECONNREFUSED, errno.ECONNRESET, errno.ECONNABORTED, errno.EPIPE, errno.ETIMEDOUT, errno.ENETDOWN,
    errno.ENETUNREACH, errno.ENETRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ESTALE,
)  # fmt: skip
_LATER = (408, 425, 429)


def of_errno(code: int | None) -> Cause:
    """The cause of an OSError with this errno."""
    if code in _FULL:
        return Cause.DISK_FULL
    if code in _IN_USE:
        return Cause.BUSY
    return Cause.NETWORK if code in _NETWORK else Cause.CRASH


def of_status(status: int) -> Cause:
    """The cause of an answer with this HTTP status, which is no success."""
    return Cause.REMOTE if status in _LATER or status >= 500 else Cause.REFUSED


def of_error(error: BaseException) -> Cause:
    """The cause of any error."""
    if isinstance(error, HeadraceError):
        if found := named(error.code or ""):
            return found
        if isinstance(error, UserError):
            return Cause.UNUSABLE
        return Cause.BUSY if isinstance(error, Unavailable) else Cause.CRASH
    if isinstance(error, ConnectionError | TimeoutError | socket.gaierror):
        return Cause.NETWORK
    return of_errno(error.errno) if isinstance(error, OSError) else Cause.CRASH


def named(text: str) -> Cause | None:
    """The cause of that name; None for "" and for one that only another version knows."""
    return _NAMED.get(text)
