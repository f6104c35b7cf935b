"""A file that comes in parts, in any order; what of it is there survives the process."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable
from pathlib import Path

PART_BYTES = 32 * 1024 * 1024
_DONE = "whole"


class PartialFile:
    """`path` has its full size from the start; beside it a journal says which parts of which version are in it."""

    def __init__(self, path: Path, size: int, version: str, part_bytes: int = 0) -> None:
        self.path = path
        self._size, self._part = size, part_bytes or PART_BYTES
        self._head = json.dumps({"version": version, "size": size, "part_bytes": self._part})
        self._journal = journal_of(path)
        self._lock = threading.Lock()
        self.whole = False
        self._done: set[int] = set()
        self._read_journal()
        if not self.whole and (not path.exists() or path.stat().st_size != size or not self._journal.exists()):
            self.reset()

    @property
    def done_bytes(self) -> int:
        return self._size if self.whole else sum(end - start for i, start, end in self._parts() if i in self._done)

    def missing(self) -> list[tuple[int, int, int]]:
        """(number, start, end) of each part that is not there."""
        return [] if self.whole else [p for p in self._parts() if p[0] not in self._done]

    def write(self, number: int, start: int, data: Iterable[bytes], end: int) -> None:
        """Put a part in its place. EOFError if it is shorter or longer than it must be."""
        at = start
        fd = os.open(self.path, os.O_WRONLY)
        try:
            for piece in data:
                if at + len(piece) > end:
                    raise EOFError("more came than was asked for")
                view = memoryview(piece)
                while view:
                    written = os.pwrite(fd, view, at)
                    at, view = at + written, view[written:]
            if at != end:
                raise EOFError("the connection ended too early")
            os.fsync(fd)  # the journal must not promise what a power cut takes
        finally:
            os.close(fd)
        self._note(str(number))
        self._done.add(number)

    def finish(self) -> None:
        """Note that all parts are there and have been checked."""
        self._note(_DONE)
        self.whole = True

    def reset(self) -> None:
        """Begin again."""
        self.whole, self._done = False, set()
        self._journal.unlink(missing_ok=True)
        with self.path.open("wb") as file:
            file.truncate(self._size)
        self._note(self._head)

    def _parts(self) -> list[tuple[int, int, int]]:
        starts = range(0, self._size, self._part)
        return [(i, start, min(start + self._part, self._size)) for i, start in enumerate(starts)]

    def _note(self, line: str) -> None:
        with self._lock, self._journal.open("a") as file:
            file.write(line + "\n")

    def _read_journal(self) -> None:
        try:
            lines = self._journal.read_text().split("\n")[:-1]  # what a kill cut off has no end
        except OSError:
            return
        if not lines or lines[0] != self._head:
            self._journal.unlink()
            return
        self.whole = _DONE in lines
        self._done = {int(line) for line in lines[1:] if line.isdecimal()}


def journal_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.parts")


def drop_journals(folder: Path) -> None:
    """When everything in the folder is whole."""
    for journal in folder.glob(".*.parts"):
        journal.unlink()
