"""Weights from the Hugging Face hub, through its own client and into its own layout."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from headrace.core.causes import Cause, of_status
from headrace.errors import HeadraceError, Unavailable, UserError
from headrace.process import write_atomic
from headrace.replica.weights import checksums
from headrace.replica.weights.cache import FULL, Cache, size_of, written_of
from headrace.replica.weights.folder import Report, Weights, check_safetensors, matching, patterns
from headrace.replica.weights.hub_files import LARGEST, NoRanges, fetch_blobs, partial_of
from headrace.replica.weights.parts import Count, Wrong


def download(repo: str, revision: str, cache: Cache, report: Report, remote_code: bool, prefer: Weights) -> Path:
    """A snapshot of a repository: configuration, tokenizer and one kind of weights.

    UserError if it can never be had; Unavailable if not now, and it is not in the cache either.
    """
    import huggingface_hub as hub  # 0.3 s, and most replicas do not need it
    from huggingface_hub import errors as e

    where = f"hf://{repo}" + (f" (revision {revision})" if revision else "")
    entry = cache.folder / "hub" / f"models--{repo.replace('/', '--')}"
    common: dict[str, Any] = {"repo_id": repo, "revision": revision or None, "cache_dir": cache.folder / "hub"}
    cache.hold(entry)
    report(f"looking up {where}", -1.0)
    try:
        info = hub.HfApi().model_info(repo, revision=revision or None, files_metadata=True)
        files = {s.rfilename: s for s in info.siblings or ()}
        allowed = patterns(where, set(files), remote_code, prefer)
        common["revision"] = info.sha or common["revision"]
        with cache.filling(entry, report, "download"):
            missing = {n: files[n] for n in matching(files, allowed) if not _is_there(entry, files[n])}
            size, there = sum(f.size or 0 for f in missing.values()), partial_of(entry)
            if missing:
                final = size_of(entry) - size_of(there) + size
                cache.make_room(entry, final, max(0, size - written_of(there)), where)
            _remove_leftovers(entry)
            count = Count(0, size, partial(report, f"downloading {where}"))
            checking = partial(report, f"checking {where}", -1.0)
            done = _fetch_large(repo, str(common["revision"]), entry, missing, count, checking)
            folder = Path(hub.snapshot_download(**common, allow_patterns=allowed, tqdm_class=_progress_bars(count.add)))
            _check(folder, entry, {n: f for n, f in missing.items() if n not in done}, checking)
            _remember(entry, revision or "main", folder.name)
            return folder
    except Wrong as error:
        raise UserError(
            f"{where} has a wrong checksum: {error.name} is not the file that the hub tells of. It was removed; deploy"
            " again, and if that does not help, look at what is between here and the hub."
        ) from error
    except e.GatedRepoError as error:
        text = f"{where} needs permission: accept its terms on the hub and set HF_TOKEN."
        raise UserError(text, code=Cause.REFUSED) from error
    except e.RevisionNotFoundError as error:
        raise UserError(f"hf://{repo} has no revision {revision!r}.", code=Cause.REFUSED) from error
    except (e.RepositoryNotFoundError, e.HFValidationError) as error:
        text = f"{where} does not exist, or needs an access token (HF_TOKEN)."
        raise UserError(text, code=Cause.REFUSED) from error
    except HeadraceError:
        raise
    except Exception as error:  # the client's network errors come from several libraries
        if isinstance(error, OSError) and error.errno in FULL:
            shutil.rmtree(partial_of(entry), ignore_errors=True)  # of no use on a full disk
            for left in entry.glob("blobs/*.incomplete"):
                left.unlink(missing_ok=True)
            raise cache.full(where, 0) from error
        if folder := _downloaded_before(entry, common["revision"] or "main"):
            return folder
        raise _told(error, where) from error


def _told(error: Exception, where: str) -> HeadraceError:
    """The sentence for what the hub's client raised, where the files are not in the cache either."""
    from huggingface_hub import errors as e

    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return UserError(f"HF_HUB_OFFLINE is set, and {where} is not in the cache: unset it, or deploy from a folder.")
    status = error.response.status_code if isinstance(error, e.HfHubHTTPError) else 0
    if status and of_status(status) is Cause.REFUSED:
        text = f"The hub refuses {where} (HTTP {status}); check HF_TOKEN and HF_ENDPOINT."
        return UserError(text, code=Cause.REFUSED)
    if isinstance(error, _FAULTS):
        return HeadraceError(f"Cannot download {where} ({type(error).__name__}: {error}).")
    said = f"HTTP {status}" if status else type(error).__name__
    return Unavailable(
        f"Cannot download {where} ({said}), and it is not in the cache. Check the network, or deploy from a folder.",
        code=Cause.REMOTE if status else Cause.NETWORK,
    )


_FAULTS = (TypeError, AttributeError, LookupError, ArithmeticError, AssertionError)  # of a program, not of a network


def _fetch_large(
    repo: str, commit: str, entry: Path, missing: Mapping[str, Any], count: Count, checking: Callable[[], None]
) -> set[str]:
    """Fetch what the hub tells the SHA-256 of; the names of it. None of it if the endpoint cannot send parts."""
    sums = {n: _sum(f) for n, f in missing.items() if _sum(f)[0] and _sum(f)[1] <= LARGEST}
    try:
        fetch_blobs(repo, commit, entry, sums, count, checking)
    except NoRanges:
        shutil.rmtree(partial_of(entry))
        return set()
    return set(sums)


def _check(folder: Path, entry: Path, fetched: Mapping[str, Any], checking: Callable[[], None]) -> None:
    """Compare what the client has fetched with the SHA-256, where there is one. Wrong; the file is gone then."""
    sums = {n: _sum(f)[0] for n, f in fetched.items() if _sum(f)[0]}
    if sums:
        checking()
    for name, digest in sums.items():
        if checksums.of_file("SHA256", folder / name).hex() != digest:
            (folder / name).resolve().unlink()
            (folder / name).unlink(missing_ok=True)
            raise Wrong(name)


def _remember(entry: Path, revision: str, commit: str) -> None:
    """Note which commit a name stood for, where the client does: we asked for the commit."""
    ref = _ref(entry, revision)
    if ref and revision != commit:
        ref.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(ref, commit)


def _ref(entry: Path, revision: str) -> Path | None:
    ref = entry / "refs" / revision
    return ref if ".." not in ref.parts and ref.is_relative_to(entry) else None


def _downloaded_before(entry: Path, revision: str) -> Path | None:
    """The snapshot of a revision, if it is there and whole.

    The client's own look takes half a snapshot for one in some versions, and misses files that nobody wanted in others.
    """
    ref = _ref(entry, revision)
    if ref is None:
        return None
    with contextlib.suppress(OSError, UserError):
        folder = entry / "snapshots" / (ref.read_text().strip() if ref.is_file() else revision)
        patterns(str(folder), {p.name for p in folder.iterdir()}, False, Weights.OPENVINO)
        check_safetensors(folder)
        return folder
    return None


def _remove_leftovers(entry: Path) -> None:
    """Delete halves of files that the client will not go on with; nobody else is filling this entry."""
    for path in entry.glob("blobs/*.*.incomplete"):
        path.unlink(missing_ok=True)


def _sum(sibling: Any) -> tuple[str, int]:
    """The SHA-256 and size of a large file; ("", 0) for one that the hub keeps in the repository itself."""
    lfs = getattr(sibling, "lfs", None)
    return (lfs.sha256, lfs.size) if lfs else ("", 0)


def _is_there(entry: Path, sibling: Any) -> bool:
    blob = _sum(sibling)[0] or getattr(sibling, "blob_id", None)
    return bool(blob) and (entry / "blobs" / blob).exists()


def _progress_bars(add: Callable[[int], None]) -> type:
    """A progress bar class for the hub's client that draws nothing and tells the bytes that come."""
    from tqdm.auto import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            self._bytes = kwargs.get("unit") == "B"
            super().__init__(*args, **kwargs | {"disable": False, "file": _Nowhere()})

        def display(self, *args: Any, **kwargs: Any) -> None: ...

        def update(self, n: float | None = 1) -> bool | None:
            if self._bytes:
                add(int(n or 0))
            return super().update(n)

    return Bar


class _Nowhere:
    def write(self, text: str) -> None: ...

    def flush(self) -> None: ...
