"""What was downloaded or converted on this node, kept below a limit and shared by its replicas.

    hub/models--ORG--NAME    the hub client's own layout: one entry for all revisions
    s3/SOURCE-VERSION        one version of what an s3:// source has; SOURCE.partial while it comes
    converted/KEY            a conversion to OpenVINO; KEY.partial while it is made
    locks/ENTRY.lock         shared: somebody uses the entry; its time says when, its text what it will come to
    locks/ENTRY.fill         exclusive: somebody is filling it

Lock files are never removed: that would make two of one lock. A lock ends with its process, however that dies.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import structlog

from headrace.core.causes import Cause, of_errno
from headrace.core.evict import CacheEntry, choose
from headrace.errors import HeadraceError, Unavailable, UserError
from headrace.replica.weights.folder import Report

log = structlog.get_logger()

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a write that does not fit says."""

_ENTRIES = ("hub/models--*", "s3/*", "converted/*")
_GONE = ".evicted"
_LOOK_S = 0.5


class Cache:
    """limit_bytes: what all entries may come to; 0: no limit. What this object holds, this process holds to its end."""

    def __init__(self, folder: Path, limit_bytes: int = 0) -> None:
        self.folder, self._limit = folder, limit_bytes
        self._held: dict[str, int] = {}
        self._locks = folder / "locks"

    def hold(self, entry: Path) -> None:
        """Keep `entry` from being evicted while this process lives. Look only afterwards whether it is there."""
        name = self._name(entry)
        if name not in self._held:
            fd = self._open(f"{name}.lock")
            fcntl.flock(fd, fcntl.LOCK_SH)
            self._held[name] = fd
        os.utime(self._held[name])

    @contextlib.contextmanager
    def filling(self, entry: Path, report: Report, verb: str) -> Iterator[None]:
        """Be the only one who fills `entry`, after whoever does so now; what came of that is there to be looked at."""
        self.hold(entry)
        fd = self._open(f"{self._name(entry)}.fill")
        try:
            while not _try(fd, fcntl.LOCK_EX):
                report(f"waiting for another replica to {verb}", self._progress(entry))
                time.sleep(_LOOK_S)
            yield
        finally:
            os.close(fd)

    def make_room(self, entry: Path, total_bytes: int, missing_bytes: int, what: str) -> None:
        """Evict until the held `entry` can come to `total_bytes`, of which `missing_bytes` are still to be written.

        UserError if it is larger than the limit; Unavailable if what is in use, or the disk, leaves too little room.
        """
        if self._limit and total_bytes > self._limit:
            raise UserError(f"{what} has {_size(total_bytes)}, more than --cache_limit={_size(self._limit)}.")
        with self._alone():
            if self._limit:
                others = [e for e in self._entries() if self._name(self.folder / e.name) != self._name(entry)]
                drop = choose(others, self._limit, total_bytes)
                if drop is None:
                    used = sum(e.size_bytes for e in others if e.in_use)
                    raise Unavailable(
                        f"There is no room for {what} ({_size(total_bytes)}): of --cache_limit={_size(self._limit)},"
                        f" {_size(used)} are in use by replicas of this node."
                    )
                for e in drop:
                    self._drop(e)
            # Whoever makes room next must count what this entry will come to.
            os.ftruncate(self._held[self._name(entry)], 0)
            os.pwrite(self._held[self._name(entry)], str(total_bytes).encode(), 0)
        free = shutil.disk_usage(self.folder).free
        if missing_bytes > free:
            raise self.full(what, missing_bytes, free)

    def trim(self) -> None:
        """Evict what is over the limit, if it is not in use."""
        if self._limit:
            with self._alone():
                entries = self._entries()
                idle = [e for e in entries if not e.in_use]
                used = sum(e.size_bytes for e in entries) - sum(e.size_bytes for e in idle)
                for e in choose(idle, max(0, self._limit - used), 0) or ():
                    self._drop(e)

    def full(self, what: str, missing_bytes: int, free_bytes: int | None = None) -> Unavailable:
        """The sentence for a disk that is full."""
        free = shutil.disk_usage(self.folder).free if free_bytes is None else free_bytes
        return Unavailable(
            f"The disk is full: {what} needs {_size(missing_bytes)} more in {self.folder}, and {_size(free)} are free.",
            code=Cause.DISK_FULL,
        )

    def unusable(self, error: OSError) -> HeadraceError:
        """The sentence for a cache that cannot be written to."""
        text = f"Cannot use the cache {self.folder}: {error.strerror}"
        cause = of_errno(error.errno)
        if cause is Cause.CRASH:
            return UserError(f"{text}; choose another --cache_dir.")
        return Unavailable(f"{text}.", code=cause)

    def _entries(self) -> list[CacheEntry]:
        found: list[CacheEntry] = []
        for path in (p for pattern in _ENTRIES for p in self.folder.glob(pattern)):
            if path.name.endswith(_GONE):
                shutil.rmtree(path, ignore_errors=True)  # somebody died while dropping it
            elif path.is_dir():
                found.append(self._look(path))
        return found

    def _look(self, path: Path) -> CacheEntry:
        name, fd = self._name(path), self._open(f"{self._name(path)}.lock")
        try:
            in_use = name in self._held or not _try(fd, fcntl.LOCK_EX)
            if in_use:
                os.utime(fd)  # its user touched it only at the start
            size = max(size_of(path), _number(fd) if in_use else 0)
            return CacheEntry(str(path.relative_to(self.folder)), size, os.fstat(fd).st_mtime, in_use)
        finally:
            os.close(fd)

    def _drop(self, entry: CacheEntry) -> None:
        path = self.folder / entry.name
        fd = self._open(f"{self._name(path)}.lock")
        try:
            if _try(fd, fcntl.LOCK_EX):
                log.info("evicted", entry=entry.name, bytes=entry.size_bytes)
                gone = path.with_name(path.name + _GONE)
                path.rename(gone)  # at once, so that nobody ever sees half of it
                shutil.rmtree(gone, ignore_errors=True)
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        fd = self._open("room")
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _progress(self, entry: Path) -> float:
        """How far whoever fills `entry` has come."""
        total = _number(self._held[self._name(entry)])
        there = written_of(entry) + written_of(entry.with_name(f"{entry.name}.partial"))
        return min(1.0, there / total) if total else -1.0

    def _name(self, entry: Path) -> str:
        return "-".join(entry.relative_to(self.folder).parts).removesuffix(".partial")

    def _open(self, name: str) -> int:
        try:
            self._locks.mkdir(parents=True, exist_ok=True)
            return os.open(self._locks / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as e:
            raise self.unusable(e) from e


def size_of(folder: Path) -> int:
    """The length of all files of a folder, links left out, in bytes."""
    return sum(s.st_size for s in _stats(folder))


def written_of(folder: Path) -> int:
    """What the files of a folder take on the disk, in bytes: less than their length while they have holes."""
    return sum(min(s.st_size, s.st_blocks * 512) for s in _stats(folder))


def _stats(folder: Path) -> Iterator[os.stat_result]:
    for directory, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                path = os.path.join(directory, name)
                if not os.path.islink(path):
                    yield os.lstat(path)


def _try(fd: int, how: int) -> bool:
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _number(fd: int) -> int:
    text = os.pread(fd, 20, 0)
    return int(text) if text.isdigit() else 0


def _size(size_bytes: int) -> str:
    for unit, name in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size_bytes >= unit:
            return f"{size_bytes / unit:.1f}".removesuffix(".0") + name
    return f"{size_bytes}B"
