"""Logs that others write: rotated under the writer's hands, and read for the sentence that a command ended with.

The writer holds its log open in append mode, so a full log is copied to `NAME.1` and cut to nothing; what was written
between the two is lost, which is a line or two in 10 MiB.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

MAX_BYTES = 10 * 1024 * 1024
KEPT = 2  # rotated predecessors, beside the current file
CARE_S = 5.0  # how often to look
_LAST_BYTES = 64 * 1024
_ERROR = "Error: "


def rotated(log: Path, number: int) -> Path:
    return log.with_name(f"{log.name}.{number}")


def rotate(log: Path, max_bytes: int = MAX_BYTES) -> bool:
    """Rotate if the log is larger than `max_bytes` (0: if it holds anything). True if it was done."""
    try:
        if log.stat().st_size <= max_bytes:
            return False
    except FileNotFoundError:
        return False
    for number in range(KEPT, 1, -1):
        if rotated(log, number - 1).exists():
            os.replace(rotated(log, number - 1), rotated(log, number))
    partial = log.with_name(f".{log.name}.partial")
    with log.open("r+b") as source, partial.open("wb") as target:
        shutil.copyfileobj(source, target, 1024 * 1024)
        source.truncate(0)
    os.replace(partial, rotated(log, 1))
    return True


def size(log: Path) -> int:
    """Its bytes; 0 if there is none."""
    try:
        return log.stat().st_size
    except OSError:
        return 0


def own_sentence(log: Path, since: int = 0) -> str:
    """The sentence that a command of ours ended with, from what it wrote since the log had so many bytes; "": none."""
    try:
        with log.open("rb") as f:
            end = f.seek(0, os.SEEK_END)
            begin = since if since <= end else 0  # it was rotated meanwhile
            f.seek(max(begin, end - _LAST_BYTES))
            lines = f.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    found = [line for line in lines if line.startswith(_ERROR)]
    return found[-1].removeprefix(_ERROR) if found else ""
