"""Leadership on one machine: whoever holds the lock of the state directory is the head."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from headrace.errors import UserError


@contextmanager
def hold_lock(head_dir: Path) -> Iterator[None]:
    """Hold `head_dir`/lock for the length of the block; UserError if another process does, or it cannot be made."""
    try:
        head_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(head_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as e:
        raise UserError(
            f"Cannot use the state directory {head_dir.parent}: {e.strerror}; choose another with --state-dir."
        ) from e
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            pid = os.pread(fd, 20, 0).decode(errors="replace").strip() or "unknown"
            raise UserError(
                f"Another headrace head (pid {pid}) runs with this state directory ({head_dir.parent}); stop it or"
                " choose another with --state-dir."
            ) from e
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)
