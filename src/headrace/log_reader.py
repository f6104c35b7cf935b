"""Logs of others, read from the tail on, over rotated predecessors.

A reader notices a rotation (log_files.py) by the new file behind `.1`; one that is more than a whole file behind misses
a part. Rotate and read in one thread.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from headrace.log_files import KEPT, rotated

CHUNK = 32 * 1024
# There is no portable event for "a file has grown"; this costs one fstat, and only while somebody follows.
_FOLLOW_S = 0.2


async def read(log: Path, tail_lines: int, follow: bool) -> AsyncGenerator[bytes, None]:
    """Pieces of at most CHUNK bytes: the last `tail_lines` lines (0: all there is), then, if asked, what comes.

    FileNotFoundError if there is no log. Holds one piece in memory, and reads on only when that was taken.
    """
    with ExitStack() as opened:
        files = _open(log, opened)
        generation = _generation(rotated(log, 1))
        first, offset = _tail(files, tail_lines)
        files[first].seek(offset)
        for file in files[first + 1 :]:
            file.seek(0)
        for file in files[first:]:
            while piece := file.read(CHUNK):
                yield piece
        current = files[-1]
        while follow:
            await asyncio.sleep(_FOLLOW_S)
            if (seen := _generation(rotated(log, 1))) != generation:
                generation, position = seen, current.tell()
                async for piece in _rest(rotated(log, 1), position):
                    yield piece
                current.seek(0)
            while piece := current.read(CHUNK):
                yield piece


async def _rest(path: Path, position: int) -> AsyncGenerator[bytes, None]:
    """What a reader that stood at `position` had not seen when the log was rotated away."""
    try:
        with path.open("rb") as file:
            file.seek(position)
            while piece := file.read(CHUNK):
                yield piece
    except FileNotFoundError:
        return


def _open(log: Path, opened: ExitStack) -> list[BinaryIO]:
    """The log and its predecessors, oldest first. An open file stays what it is when it is renamed."""
    files: list[BinaryIO] = []
    for path in [*(rotated(log, n) for n in range(KEPT, 0, -1)), log]:
        if path == log or path.exists():
            files.append(opened.enter_context(path.open("rb", buffering=0)))
    return files


def _generation(path: Path) -> tuple[int, int]:
    """Tells one file at `path` from the next."""
    try:
        seen = path.stat()
    except FileNotFoundError:
        return 0, 0
    return seen.st_ino, seen.st_mtime_ns


def _tail(files: list[BinaryIO], lines: int) -> tuple[int, int]:
    """(file, offset) where the last `lines` lines begin; the very beginning if there are fewer, or if `lines` is 0."""
    if lines == 0:
        return 0, 0
    wanted, at_the_end = lines, True
    for number in range(len(files) - 1, -1, -1):
        file = files[number]
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - CHUNK)
            file.seek(start)
            piece = file.read(end - start)
            # The line break at the very end closes the last line and does not begin another.
            at, at_the_end = len(piece) - at_the_end, False
            while (at := piece.rfind(b"\n", 0, at)) >= 0:
                wanted -= 1
                if wanted == 0:
                    return number, start + at + 1
            end = start
    return 0, 0
