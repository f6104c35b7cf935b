"""Every error finds its place in the one table."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import pytest

from headrace.core.causes import TABLE, Again, Cause, named, of_errno, of_error, of_status
from headrace.errors import HeadraceError, Unavailable, UserError

DOCS = Path(__file__).parents[2] / "docs" / "failures.md"


@pytest.mark.parametrize(
    ("error", "cause", "again"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), Cause.NETWORK, Again.ALWAYS),
        (ConnectionResetError(), Cause.NETWORK, Again.ALWAYS),
        (TimeoutError(), Cause.NETWORK, Again.ALWAYS),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), Cause.NETWORK, Again.ALWAYS),
        (OSError(errno.EHOSTUNREACH, ""), Cause.NETWORK, Again.ALWAYS),
        (OSError(errno.ENOSPC, ""), Cause.DISK_FULL, Again.ALWAYS),
        (OSError(errno.EDQUOT, ""), Cause.DISK_FULL, Again.ALWAYS),
        (OSError(errno.EMFILE, ""), Cause.BUSY, Again.ALWAYS),
        (OSError(errno.EADDRINUSE, ""), Cause.BUSY, Again.ALWAYS),
        (OSError(errno.EIO, ""), Cause.CRASH, Again.COUNTED),
        (FileNotFoundError(errno.ENOENT, ""), Cause.CRASH, Again.COUNTED),
        (RuntimeError("No space left on device"), Cause.CRASH, Again.COUNTED),
        (HeadraceError("The engine failed."), Cause.CRASH, Again.COUNTED),
        (Unavailable("The disk is full.", code=Cause.DISK_FULL), Cause.DISK_FULL, Again.ALWAYS),
        (Unavailable("Of the cache all is in use."), Cause.BUSY, Again.ALWAYS),
        (UserError("There is no folder /m on this node."), Cause.UNUSABLE, Again.NEVER),
        (UserError("There is no bucket m.", code=Cause.REFUSED), Cause.REFUSED, Again.NEVER),
    ],
)
def test_an_error_has_the_cause_that_it_was_born_with(error: Exception, cause: Cause, again: Again) -> None:
    assert of_error(error) is cause
    assert TABLE[cause].again is again


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 529])
def test_answers_that_may_be_others_later(status: int) -> None:
    assert of_status(status) is Cause.REMOTE


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 416, 451])
def test_answers_that_stay(status: int) -> None:
    assert of_status(status) is Cause.REFUSED


def test_every_cause_has_a_row_here_and_in_the_docs() -> None:
    assert set(TABLE) == set(Cause)
    text = DOCS.read_text("utf-8")
    for cause, rule in TABLE.items():
        assert f"| `{cause}` | {rule.means} | {rule.again} |" in text


def test_names_of_other_versions_are_no_cause() -> None:
    assert named("disk_full") is Cause.DISK_FULL
    assert named("") is None
    assert named("sunspots") is None


def test_no_errno_is_a_crash() -> None:
    assert of_errno(None) is of_errno(0) is Cause.CRASH
