"""One process per directory: a lock that ends with its holder, however that dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from headrace.errors import UserError


def private_folder(path: Path) -> None:
    """Make a folder that is its user's alone, and those that lead to it, unless it is there. OSError as mkdir's."""
    if not path.parent.exists():
        private_folder(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)


@contextmanager
def exclusive(directory: Path, busy: Callable[[str], str]) -> Iterator[None]:
    """Hold `directory`/lock for the length of the block; the directory is made if it is not there.

    UserError if that cannot be done, or with the sentence that `busy` makes of the holder's pid if there is one.
    """
    try:
        private_folder(directory)
        fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as e:
        raise UserError(f"Cannot use the directory {directory}: {e.strerror}; choose another with --state_dir.") from e
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            pid = os.pread(fd, 20, 0).decode(errors="replace").strip() or "unknown"
            raise UserError(busy(pid)) from e
        with suppress(OSError):  # on a full disk nobody learns who holds it; it is held all the same
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


def holder(path: Path) -> str | None:
    """The pid that a lock file names, "unknown" if it names none; None if nobody holds the lock. OSError as open's."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # ends with the descriptor, at once
        return None
    except BlockingIOError:
        return os.pread(fd, 20, 0).decode(errors="replace").strip() or "unknown"
    finally:
        os.close(fd)
