"""Files of one source, into one folder: in parts, in parallel, going on where the last attempt stopped, and checked."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import structlog

from headrace.errors import Unavailable, UserError
from headrace.replica.weights import Report
from headrace.replica.weights.checksum import Checksum
from headrace.replica.weights.parts import PartialFile, drop_journals

log = structlog.get_logger()

WORKERS = 8
_TRIES = 4
_PAUSE_S = 0.5


class Changed(Exception):
    """A file is not what it was when it was looked up."""


class Broken(Exception):
    """The connection failed on the way; trying again may help."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """`read(start, end)` yields the bytes of that range: Broken or EOFError if the connection fails, Changed if the
    file is no longer `version`. It is called from several threads."""

    name: str
    size: int
    version: str
    read: Callable[[int, int], Iterable[bytes]]
    checksum: Checksum | None = None


def download(where: str, files: Sequence[RemoteFile], folder: Path, report: Report) -> None:
    """Have all of `files` in `folder`, whole and checked.

    Unavailable if the network fails, and what is there stays; UserError for a checksum that is wrong twice.
    """
    partials = {f.name: PartialFile(folder / f.name, f.size, f.version) for f in files}
    progress = _Progress(f"downloading {where}", sum(f.size for f in files), report)
    progress.add(sum(p.done_bytes for p in partials.values()))
    _fetch(where, files, partials, progress)
    for last in (False, True):
        bad = _check(where, files, partials, report)
        if not bad:
            drop_journals(folder)
            return
        if last:
            raise UserError(
                f"{where}/{bad[0].name} does not match its checksum, twice: the file is damaged where it comes from."
            )
        log.warning("bad_checksum", where=where, files=[f.name for f in bad])
        for f in bad:
            progress.add(-f.size)
            partials[f.name].reset()
        _fetch(where, bad, partials, progress)


def _fetch(where: str, files: Sequence[RemoteFile], partials: dict[str, PartialFile], progress: _Progress) -> None:
    stop = threading.Event()

    def one(file: RemoteFile, number: int, start: int, end: int) -> None:
        for attempt in range(_TRIES):
            if stop.is_set():
                return
            try:
                partials[file.name].write(number, start, file.read(start, end), end)
                progress.add(end - start)
                return
            except (Broken, EOFError) as e:
                log.info("part_failed", file=file.name, start=start, error=str(e))
                if attempt == _TRIES - 1:
                    raise Unavailable(
                        f"The download of {where} broke off ({e}); what is there is kept, and it goes on from there:"
                        " check the network."
                    ) from e
                stop.wait(_PAUSE_S * 2**attempt)

    with ThreadPoolExecutor(WORKERS, thread_name_prefix="download") as pool:
        parts = [pool.submit(one, f, *part) for f in files for part in partials[f.name].missing()]
        _, rest = wait(parts, return_when=FIRST_EXCEPTION)
        if rest:
            stop.set()
            pool.shutdown(cancel_futures=True)
    for part in parts:
        if not part.cancelled():
            part.result()


def _check(
    where: str, files: Sequence[RemoteFile], partials: dict[str, PartialFile], report: Report
) -> list[RemoteFile]:
    """Those whose checksum is wrong; the others are noted as whole."""
    todo = [f for f in files if not partials[f.name].whole]
    progress = _Progress(f"checking {where}", sum(f.size for f in todo if f.checksum), report)
    bad: list[RemoteFile] = []

    def check(f: RemoteFile) -> None:
        if f.checksum and not f.checksum.matches(partials[f.name].path, progress.add):
            bad.append(f)
        else:
            partials[f.name].finish()

    with ThreadPoolExecutor(2, thread_name_prefix="check") as pool:
        for _ in pool.map(check, todo):
            pass
    return sorted(bad, key=lambda f: f.name)


class _Progress:
    """Bytes of a total, reported as a fraction, not more often than somebody could read."""

    def __init__(self, activity: str, total: int, report: Report) -> None:
        self._activity, self._total, self._report = activity, total, report
        self._done, self._told, self._lock = 0, -1.0, threading.Lock()

    def add(self, n: int) -> None:
        with self._lock:
            self._done += n
            now = time.monotonic()
            if self._total and (now - self._told > 0.1 or self._done >= self._total or self._told < 0):
                self._told = now
                self._report(self._activity, min(1.0, max(0.0, self._done / self._total)))


__all__ = ["WORKERS", "Broken", "Changed", "RemoteFile", "download"]
