"""One scheduler per node directory."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from headrace.errors import UserError


@contextmanager
def exclusive(node_dir: Path, node_id: str) -> Iterator[None]:
    """Hold the directory's lock, which ends with our process however that dies. UserError if another holds it."""
    try:
        node_dir.mkdir(parents=True, exist_ok=True)
        fd = os.open(node_dir / "lock", os.O_RDWR | os.O_CREAT, 0o640)
    except OSError as e:
        raise UserError(
            f"Cannot use the state directory {node_dir}: {e.strerror}. Choose another with --state_dir."
        ) from e
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            holder = os.read(fd, 20).decode(errors="replace").strip()
            who = f" (process {holder})" if holder else ""
            raise UserError(
                f"A scheduler with node id {node_id} is running already{who} with this state directory: end it, or give"
                " this one another --node_id."
            ) from e
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)
