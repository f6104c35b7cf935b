"""The node's cache of weights: one folder that its replicas share, with a limit and least-recently-used eviction.

    whole/NAME/       an entry, complete: it appears here in one step, by a rename
    partial/NAME/     one that is still being made; it goes on from there after whatever happened
    refs/HASH         which entry a source was when it was last looked up, for when it cannot be
    locks/NAME.use    shared by whoever uses or makes the entry, for its life; exclusive to evict it. Its time of
                      modification is the last use
    locks/NAME.make   exclusive to make the entry; holds the size it will have
    locks/room        exclusive to reckon, claim and free space
    trash/            what is being deleted

Locks are `flock`s, which end with their process; lock files stay, because a file that is locked cannot safely go.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import structlog

from headrace.core.evict import Kept, make_room
from headrace.errors import HeadraceError, Unavailable, UserError
from headrace.process import write_atomic
from headrace.replica.weights import Report, size_text

log = structlog.get_logger()

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LOOK_S = 0.2
_FOLDERS = ("whole", "partial", "refs", "locks", "trash")


class Cache:
    """`limit_bytes`: what it may hold; 0: what the disk does. What it hands out is held for the process's life."""

    def __init__(self, folder: Path, limit_bytes: int = 0) -> None:
        self.folder, self.limit_bytes = folder, limit_bytes
        self._held: dict[str, IO[str]] = {}

    def find(self, name: str) -> Path | None:
        """The entry, held from now on, if it is there and whole."""
        self._hold(name)
        whole = self.folder / "whole" / name
        if whole.is_dir():
            return whole
        self.release(name)
        return None

    def entry(
        self,
        name: str,
        what: str,
        needed_bytes: int,
        report: Report,
        make: Callable[[Path], None],
        *,
        verb: str = "download",
    ) -> Path:
        """The entry, held from now on; if it is not there, `make(partial)` fills a folder that becomes it.

        `make` finds what an earlier attempt left. Of several processes one makes it and the others wait. UserError if
        `needed_bytes` is more than the limit; Unavailable if there is no room now.
        """
        known = name in self._held
        self._hold(name)
        whole = self.folder / "whole" / name
        try:
            if not whole.is_dir():
                with self._making(name, what, verb, report):
                    if not whole.is_dir():
                        self._make(name, what, needed_bytes, make)
                self._free(0, self.limit_bytes)
        except BaseException:
            if not known:
                self.release(name)
            raise
        return whole

    def release(self, name: str) -> None:
        """Let the entry be evicted, as far as we are concerned."""
        if file := self._held.pop(name, None):
            file.close()

    def discard_partial(self, name: str) -> None:
        """Forget what has been made of an entry; for its maker."""
        shutil.rmtree(self.folder / "partial" / name, ignore_errors=True)

    # --- what a source was ---

    def remember(self, source: str, name: str) -> None:
        """Note that `source` is the entry `name` now."""
        write_atomic(self._ref(source), json.dumps({"source": source, "entry": name}))

    def remembered(self, source: str) -> Path | None:
        """The entry that `source` was when it was last looked up, held from now on, if it is still there."""
        try:
            name = str(json.loads(self._ref(source).read_text())["entry"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return self.find(name)

    def _ref(self, source: str) -> Path:
        self._prepare()
        return self.folder / "refs" / hashlib.sha256(source.encode()).hexdigest()[:32]

    # --- making ---

    def _make(self, name: str, what: str, needed_bytes: int, make: Callable[[Path], None]) -> None:
        partial = self.folder / "partial" / name
        try:
            self._claim(name, what, needed_bytes)
            partial.mkdir(exist_ok=True)
            make(partial)
            _flush(partial)
            os.replace(partial, self.folder / "whole" / name)
            _sync(self.folder / "whole")
        except OSError as e:
            if e.errno not in NO_SPACE:
                raise
            shutil.rmtree(partial, ignore_errors=True)
            raise self._no_space(what, needed_bytes) from e

    def _claim(self, name: str, what: str, needed_bytes: int) -> None:
        """Reserve the space that an entry will need, evicting others for it."""
        if self.limit_bytes and needed_bytes > self.limit_bytes:
            raise UserError(
                f"{what} needs {size_text(needed_bytes)}, and the cache may hold {size_text(self.limit_bytes)}: raise"
                " --cache_limit."
            )
        claim = self._lock_file(name, "make")
        claim.write_text("")  # ours is not to be counted against us
        by_disk, short = self._free(needed_bytes, self.limit_bytes, but=name, claim=claim)
        if not short:
            return
        if by_disk:
            raise self._no_space(what, needed_bytes)
        raise Unavailable(
            f"{what} needs {size_text(needed_bytes)}, and the cache's {size_text(self.limit_bytes)} are taken by"
            " weights in use: raise --cache_limit, or stop a replica on this node."
        )

    def _no_space(self, what: str, needed_bytes: int) -> Unavailable:
        need = f"{what} needs {size_text(needed_bytes)}" if needed_bytes else f"there is no room for {what}"
        return Unavailable(
            f"The disk of {self.folder} is full: {need}, and {size_text(shutil.disk_usage(self.folder).free)} are free;"
            " make room, or give another --cache_dir."
        )

    def _free(self, needed_bytes: int, limit_bytes: int, but: str = "", claim: Path | None = None) -> tuple[bool, int]:
        """Evict until `needed_bytes` fit; claim them if they do. (whether the disk is what is short, how much is)."""
        with (self.folder / "locks" / "room").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for left in (self.folder / "trash").iterdir():
                shutil.rmtree(left, ignore_errors=True)
            while True:
                kept = self._survey(but)
                on_disk = sum(_on_disk(self.folder / sub) for sub in ("whole", "partial"))
                room_on_disk = on_disk + shutil.disk_usage(self.folder).free
                limit = min(limit_bytes or room_on_disk, room_on_disk)
                room = make_room(kept, needed_bytes, limit)
                if room.short_bytes and needed_bytes:
                    return limit == room_on_disk, room.short_bytes
                evicted = [self._evict(name) for name in room.drop]
                if all(evicted):
                    break
            if claim:
                claim.write_text(str(needed_bytes))
            return False, 0

    def _survey(self, but: str) -> list[Kept]:
        """All entries, also the partial ones, with whether somebody uses them."""
        names = {p.name for sub in ("whole", "partial") for p in (self.folder / sub).iterdir()} - {but}
        # A download that has been given space may not have a folder yet.
        names |= {p.stem for p in (self.folder / "locks").glob("*.make") if _claimed(p)} - {but}
        found: list[Kept] = []
        for name in sorted(names):
            use = self._lock_file(name, "use")
            in_use = not self._unused(name)
            if in_use:
                os.utime(use)
            size = _on_disk(self.folder / "whole" / name) + _on_disk(self.folder / "partial" / name)
            if in_use and not (self.folder / "whole" / name).exists():
                size = max(size, _claimed(self._lock_file(name, "make")))
            if size:
                found.append(Kept(name, size, use.stat().st_mtime, in_use))
        return found

    def _unused(self, name: str) -> bool:
        with self._lock_file(name, "use").open("a") as file:
            return _try_lock(file)

    def _evict(self, name: str) -> bool:
        """False if somebody has come to use it meanwhile."""
        with self._lock_file(name, "use").open("a") as file:
            if not _try_lock(file):
                return False
            for sub in ("whole", "partial"):
                folder = self.folder / sub / name
                if folder.exists():
                    trash = self.folder / "trash" / f"{sub}-{name}"
                    os.replace(folder, trash)  # in one step: half an entry is none
                    shutil.rmtree(trash)
            log.info("evicted", entry=name)
            return True

    # --- locks ---

    def _hold(self, name: str) -> None:
        if name in self._held:
            return
        self._prepare()
        path = self._lock_file(name, "use")
        file = path.open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_SH)  # waits at most for an eviction
            os.utime(path)
        except BaseException:
            file.close()
            raise
        self._held[name] = file

    @contextmanager
    def _making(self, name: str, what: str, verb: str, report: Report) -> Iterator[None]:
        """Be the one that makes an entry; while another is, report how far that one is."""
        claim = self._lock_file(name, "make")
        with claim.open("a") as file:
            while not _try_lock(file):
                total = _claimed(claim)
                done = _on_disk(self.folder / "partial" / name) / total if total else -1.0
                report(f"waiting for another replica to {verb} {what}", min(done, 1.0))
                time.sleep(_LOOK_S)
            try:
                yield
            finally:
                claim.write_text("")

    def _lock_file(self, name: str, what: str) -> Path:
        return self.folder / "locks" / f"{name}.{what}"

    def _prepare(self) -> None:
        try:
            for sub in _FOLDERS:
                (self.folder / sub).mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise HeadraceError(
                f"Cannot write to the cache {self.folder}: {e.strerror}; give another --cache_dir."
            ) from e


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _claimed(claim: Path) -> int:
    try:
        return int(claim.read_text() or 0)
    except (OSError, ValueError):
        return 0


def _on_disk(path: Path) -> int:
    """Bytes that a folder takes; of a file with holes, what is written. What vanishes meanwhile counts nothing."""
    total = 0
    for at, _, files in os.walk(path):
        for name in files:
            try:
                seen = os.lstat(os.path.join(at, name))
            except FileNotFoundError:
                continue
            total += min(seen.st_size, seen.st_blocks * 512) or seen.st_size
    return total


def _flush(folder: Path) -> None:
    """Have everything on the disk before its name says that it is whole."""
    for at, _, files in os.walk(folder):
        for name in files:
            _sync(Path(at) / name)
        _sync(Path(at))


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
