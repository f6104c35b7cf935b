"""Files fetched in parts by several threads, compared with their checksums, and fetched once more if they are wrong."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from headrace.core.causes import Cause
from headrace.errors import Unavailable
from headrace.replica.weights.parallel import for_all
from headrace.replica.weights.partial import Part, PartialFile

_THREADS = 8
_TRIES = 3  # for one part, whose connection may break in its middle; it goes on after what came
_PAUSE_S = 0.5


@dataclass(frozen=True, slots=True)
class Fetch:
    """A file that is to come. read: its bytes from a start up to an end, or Unavailable; right: is this file it?"""

    name: str
    file: PartialFile
    read: Callable[[int, int], Iterator[bytes]]
    right: Callable[[Path], bool]


class Wrong(Exception):
    """A file had not its checksum, twice in a row. What came of it was forgotten."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Count:
    """Bytes that are there, of all; tells the fraction."""

    def __init__(self, done: int, total: int, say: Callable[[float], None]) -> None:
        self._done, self._total, self._say = done, total, say
        self._lock = threading.Lock()
        say(self._fraction)

    @property
    def _fraction(self) -> float:
        return min(1.0, self._done / self._total) if self._total else 1.0

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count
            self._say(self._fraction)


def missing_bytes(fetches: Sequence[Fetch]) -> int:
    """What is still to come."""
    return sum(p.end - p.start for f in fetches if not f.file.checked for p in f.file.missing())


def fetch_all(fetches: Sequence[Fetch], count: Count, checking: Callable[[], None]) -> None:
    """Bring each file to its end and check it; `checking` is told when that begins. Wrong, if one cannot be had."""
    todo = [f for f in fetches if not f.file.checked]
    if not todo:
        return
    _load(todo, count)
    checking()
    if wrong := _check(todo):
        _load(wrong, count)
        if wrong := _check(wrong):
            raise Wrong(wrong[0].name)


def _load(fetches: Sequence[Fetch], count: Count) -> None:
    parts = [(fetch, part) for fetch in fetches for part in fetch.file.missing()]
    for_all(parts, lambda item: _load_part(*item, count), _THREADS)


def _load_part(fetch: Fetch, part: Part, count: Count) -> None:
    start, tries = part.start, _TRIES
    while start < part.end:
        before = start
        try:
            for data in fetch.read(start, part.end):
                fetch.file.write(start, data)
                start += len(data)
                count.add(len(data))
            if start < part.end:
                text = f"{fetch.name} ended {part.end - start} bytes too early. What has come is kept."
                raise Unavailable(text, code=Cause.NETWORK)
        except Unavailable:
            tries = _TRIES if start > before else tries - 1
            if tries <= 0:
                raise
            time.sleep(_PAUSE_S)
    fetch.file.finish(part)


def _check(fetches: Sequence[Fetch]) -> list[Fetch]:
    """Those that are wrong; they are emptied."""
    wrong: list[Fetch] = []

    def check(fetch: Fetch) -> None:
        if fetch.right(fetch.file.path):
            fetch.file.finish_all()
        else:
            fetch.file.discard()
            wrong.append(fetch)

    for_all(fetches, check, _THREADS)
    return wrong
