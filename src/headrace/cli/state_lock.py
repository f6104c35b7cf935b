"""One `headrace up` per state directory."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from headrace.errors import UserError
from headrace.lock import private_folder
from headrace.process import ProcessRecord

_PATIENCE_S = 15.0


@contextmanager
def locked(state_dir: Path) -> Iterator[int]:
    """Hold the directory's lock; yields its descriptor. UserError if another `headrace up` has it.

    The children get the descriptor too, so that the lock lasts until the last of them has ended: where an earlier
    `headrace up` was killed, its children are waited for.
    """
    path = state_dir / "up.lock"
    try:
        private_folder(state_dir)
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as e:
        raise UserError(f"Cannot write to the state directory {state_dir}: {e.strerror}.") from e
    try:
        _take(fd, path)
        record = ProcessRecord.of(os.getpid())
        os.ftruncate(fd, 0)
        os.pwrite(fd, record.to_json().encode() if record else b"", 0)
        yield fd
    finally:
        os.close(fd)


def _take(fd: int, path: Path) -> None:
    end = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = _holder(path)
            if (holder and holder.alive()) or time.monotonic() > end:
                who = f" (process {holder.pid})" if holder else ""
                raise UserError(
                    f"Headrace runs from {path.parent} already{who}; `headrace status` shows it."
                    " To run another, give it its own --state_dir, --http_port, --node_port and --grpc_port."
                ) from None
        time.sleep(0.05)


def _holder(path: Path) -> ProcessRecord | None:
    try:
        return ProcessRecord.from_json(path.read_text())
    except (OSError, ValueError):
        return None
