"""Weights from S3, or what speaks its protocol (AWS_ENDPOINT_URL): one version of s3://BUCKET/PREFIX as a folder."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from headrace.core.causes import Cause
from headrace.errors import Unavailable, UserError
from headrace.replica.weights import checksums
from headrace.replica.weights.cache import FULL, Cache, written_of
from headrace.replica.weights.folder import Report, Weights, matching, patterns
from headrace.replica.weights.partial import PartialFile
from headrace.replica.weights.parts import Count, Fetch, Wrong, fetch_all, missing_bytes
from headrace.replica.weights.s3_client import Bucket, Changed, Listed

_LOOKS = 3  # how often a source may change while it is downloaded
_JOURNALS = ".parts"


def download(source: str, cache: Cache, report: Report, remote_code: bool, prefer: Weights) -> Path:
    """The folder with the newest version of what `source` has; what was downloaded before, if S3 cannot be reached.

    UserError if it can never be had; Unavailable if not now. What has come by then is kept for the next time.
    """
    job = _Job(source, cache, report, remote_code, prefer)
    for _ in range(_LOOKS):
        with contextlib.suppress(Changed):
            return job.run()
    raise Unavailable(f"{source} changes while it is downloaded; try again when it is complete.", code=Cause.REMOTE)


class _Job:
    def __init__(self, source: str, cache: Cache, report: Report, remote_code: bool, prefer: Weights) -> None:
        self._source, self._cache, self._report = source.rstrip("/"), cache, report
        self._remote_code, self._prefer = remote_code, prefer
        self._bucket = Bucket(self._source)
        # What is to be fetched belongs to the name: it may differ between uses of one source.
        what = json.dumps([self._bucket.endpoint, self._source, remote_code, prefer.value])
        self._name = hashlib.sha256(what.encode()).hexdigest()[:16]

    def run(self) -> Path:
        """One look and, if need be, one download. Changed, if the source is no longer what the look has seen."""
        root = self._cache.folder / "s3"
        self._report(f"looking up {self._source}", -1.0)
        try:
            files = self._look()
        except Unavailable:
            if before := self._newest(root):
                return before
            raise
        target = root / f"{self._name}-{_version(files)}"
        self._cache.hold(target)
        if target.is_dir():
            return target
        partial = root / f"{self._name}.partial"
        with self._cache.filling(partial, self._report, "download"):
            if not target.is_dir():
                self._fill(partial, files)
                os.replace(partial, target)
        return target

    def _look(self) -> list[Listed]:
        listed = {f.name: f for f in self._bucket.files()}
        wanted = patterns(self._source, listed, self._remote_code, self._prefer)
        return [listed[name] for name in matching(listed, wanted)]

    def _newest(self, root: Path) -> Path | None:
        versions = sorted(root.glob(f"{self._name}-*"), key=lambda p: p.stat().st_mtime, reverse=True)
        for path in versions:
            self._cache.hold(path)
            if path.is_dir():
                return path
        return None

    def _fill(self, partial: Path, files: Sequence[Listed]) -> None:
        partial.mkdir(parents=True, exist_ok=True)
        _remove_others(partial, {f.name for f in files})
        total = sum(f.size for f in files)
        missing = total - written_of(partial)
        self._cache.make_room(partial, total, missing, self._source)
        try:
            with contextlib.ExitStack() as opened:
                fetches = [self._fetch(f, opened.enter_context(_partial_file(partial, f))) for f in files]
                count = Count(total - missing_bytes(fetches), total, self._say)
                fetch_all(fetches, count, lambda: self._report(f"checking {self._source}", -1.0))
            shutil.rmtree(partial / _JOURNALS)
        except Wrong as e:
            raise UserError(
                f"{self._source}/{e.name} has not the checksum that S3 tells, twice in a row: upload it again, or look"
                " at what is between here and there."
            ) from e
        except OSError as e:
            if e.errno not in FULL:
                raise self._cache.unusable(e) from e
            missing = total - written_of(partial)
            shutil.rmtree(partial, ignore_errors=True)  # it is of no use on a full disk
            raise self._cache.full(self._source, missing) from e

    def _fetch(self, listed: Listed, file: PartialFile) -> Fetch:
        def right(path: Path) -> bool:
            known = checksums.expected(self._bucket.head(listed), listed.etag, self._bucket.name)
            return known is None or checksums.of_file(known[0], path) == known[1]

        return Fetch(listed.name, file, lambda start, end: self._bucket.read(listed, start, end), right)

    def _say(self, fraction: float) -> None:
        self._report(f"downloading {self._source}", fraction)


def _version(files: Sequence[Listed]) -> str:
    text = json.dumps([(f.name, f.etag, f.size) for f in files])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _partial_file(partial: Path, f: Listed) -> PartialFile:
    return PartialFile(partial / f.name, _journal(partial, f.name), f.etag, f.size)


def _journal(partial: Path, name: str) -> Path:
    return partial / _JOURNALS / name.replace("/", "%2F")


def _remove_others(partial: Path, names: set[str]) -> None:
    """Delete what an earlier version had and this one has not."""
    journals = {_journal(partial, n) for n in names}
    for path in [p for p in partial.rglob("*") if not p.is_dir()]:
        if path not in journals and str(path.relative_to(partial)) not in names:
            path.unlink()
