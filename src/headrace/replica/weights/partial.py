"""A file that is fetched in parts, any of them at any time, and goes on where it was however its process ends."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PART_BYTES = 8 * 1024 * 1024

_sync = getattr(os, "fdatasync", os.fsync)


@dataclass(frozen=True, slots=True)
class Part:
    """The bytes from `start` up to `end`."""

    number: int
    start: int
    end: int


class PartialFile:
    """A file of full length, with holes, and a journal of the parts that are on the disk.

    The journal's first line says of what version (`mark`) and size the file is; then comes one line for each part,
    written after the part was synced, and "ok" when the whole was checked. A last line without its
    end counts as not written.
    """

    def __init__(self, path: Path, journal: Path, mark: str, size: int) -> None:
        self.path, self.size = path, size
        self._journal_path = journal
        self._head = json.dumps({"mark": mark, "size": size, "part_bytes": PART_BYTES})
        self._done: set[int] = set()
        self._lock = threading.Lock()
        self._fd = self._journal = -1
        self.checked = False

    def __enter__(self) -> PartialFile:
        for path in (self.path, self._journal_path):
            path.parent.mkdir(parents=True, exist_ok=True)
        if not self._read():
            self._begin()
        self._fd = os.open(self.path, os.O_WRONLY)
        self._journal = os.open(self._journal_path, os.O_WRONLY | os.O_APPEND)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
        os.close(self._journal)

    def missing(self) -> list[Part]:
        parts = (
            Part(number, start, min(start + PART_BYTES, self.size))
            for number, start in enumerate(range(0, self.size, PART_BYTES))
        )
        return [p for p in parts if p.number not in self._done]

    def write(self, offset: int, data: bytes) -> None:
        """Write at `offset`; any thread."""
        rest = memoryview(data)
        while rest:
            written = os.pwrite(self._fd, rest, offset)
            rest, offset = rest[written:], offset + written

    def finish(self, part: Part) -> None:
        """`part` is written: note it, once it is on the disk; any thread."""
        _sync(self._fd)
        with self._lock:
            self._done.add(part.number)
            os.write(self._journal, f"{part.number}\n".encode())

    def finish_all(self) -> None:
        """The whole was found to be right."""
        _sync(self._fd)
        os.write(self._journal, b"ok\n")
        self.checked = True

    def discard(self) -> None:
        """Forget what is there and begin again."""
        os.close(self._fd)
        os.close(self._journal)
        self._begin()
        self._fd = os.open(self.path, os.O_WRONLY)
        self._journal = os.open(self._journal_path, os.O_WRONLY | os.O_APPEND)

    def _read(self) -> bool:
        """Take over what an earlier process has left; False if that is nothing, or of another version."""
        try:
            text = self._journal_path.read_bytes()
            same_size = self.path.stat().st_size == self.size
        except FileNotFoundError:
            return False
        whole = text[: text.rfind(b"\n") + 1]
        head, *lines = whole.decode(errors="replace").split("\n")
        if head != self._head or not same_size:
            return False
        if len(whole) < len(text):
            os.truncate(self._journal_path, len(whole))  # else the next line would be joined to the half one
        self._done = {int(line) for line in lines if line.isdigit()}
        self.checked = "ok" in lines
        return True

    def _begin(self) -> None:
        self._done, self.checked = set(), False
        self._journal_path.unlink(missing_ok=True)
        _sync_folder(self._journal_path.parent)  # an old journal must not come back to speak of the new file
        with self.path.open("wb") as file:
            file.truncate(self.size)
        self._journal_path.write_text(self._head + "\n")


def _sync_folder(folder: Path) -> None:
    with _opened(folder) as fd:
        os.fsync(fd)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)
