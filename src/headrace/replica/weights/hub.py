"""Weights from the Hugging Face hub, through its own client and into its own layout."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from headrace.errors import HeadraceError, Unavailable, UserError
from headrace.process import write_atomic
from headrace.replica.weights.cache import FULL, Cache, size_of
from headrace.replica.weights.folder import Report, Weights, matching, patterns


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
        wanted = patterns(where, set(files), remote_code, prefer)
        common["revision"] = info.sha or common["revision"]
        with cache.filling(entry, report, "download"):
            missing = sum(_missing(entry, files[name]) for name in matching(files, wanted))
            if missing:
                cache.make_room(entry, size_of(entry) + missing, missing, where)
            _remove_leftovers(entry)
            report(f"downloading {where}", 0.0)
            bars = _progress_bars(lambda done: report(f"downloading {where}", done))
            folder = Path(hub.snapshot_download(**common, allow_patterns=wanted, tqdm_class=bars))
            _remember(entry, revision or "main", folder.name)
            return folder
    except e.GatedRepoError as error:
        raise UserError(f"{where} needs permission: accept its terms on the hub and set HF_TOKEN.") from error
    except e.RevisionNotFoundError as error:
        raise UserError(f"hf://{repo} has no revision {revision!r}.") from error
    except (e.RepositoryNotFoundError, e.HFValidationError) as error:
        raise UserError(f"{where} does not exist, or needs an access token (HF_TOKEN).") from error
    except HeadraceError:
        raise
    except Exception as error:  # the client's network errors come from several libraries
        if isinstance(error, OSError) and error.errno in FULL:
            for left in entry.glob("blobs/*.incomplete"):
                left.unlink(missing_ok=True)  # of no use on a full disk
            raise cache.full(where, 0) from error
        return _downloaded_before(where, common, error)


def _remember(entry: Path, revision: str, commit: str) -> None:
    """Note which commit a name stood for, where the client looks when it is offline: we asked for the commit."""
    ref = entry / "refs" / revision
    if revision != commit and ".." not in ref.parts and ref.is_relative_to(entry):
        ref.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(ref, commit)


def _remove_leftovers(entry: Path) -> None:
    """Delete halves of files that the client will not go on with; nobody else is filling this entry."""
    for path in entry.glob("blobs/*.*.incomplete"):
        path.unlink(missing_ok=True)


def _missing(entry: Path, sibling: Any) -> int:
    """How many bytes of a file are not in the cache."""
    blob = sibling.lfs.sha256 if getattr(sibling, "lfs", None) else getattr(sibling, "blob_id", None)
    there = blob and (entry / "blobs" / blob).exists()
    return 0 if there else sibling.size or 0


def _downloaded_before(where: str, common: dict[str, Any], error: Exception) -> Path:
    import huggingface_hub as hub

    try:
        return Path(hub.snapshot_download(**common, local_files_only=True))
    except Exception:
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
            raise Unavailable(
                f"HF_HUB_OFFLINE is set, and {where} is not in the cache: unset it, or deploy from a folder."
            ) from error
        raise Unavailable(
            f"Cannot download {where} ({type(error).__name__}), and it is not in the cache."
            " Check the network, or deploy from a folder."
        ) from error


def _progress_bars(report: Callable[[float], None]) -> type:
    """A progress bar class for the hub's client that draws nothing and reports the bytes' fraction."""
    from tqdm.auto import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            self._bytes = kwargs.get("unit") == "B"
            super().__init__(*args, **kwargs | {"disable": False, "file": _Nowhere()})

        def display(self, *args: Any, **kwargs: Any) -> None: ...

        def update(self, n: float | None = 1) -> bool | None:
            shown = super().update(n)
            if self._bytes and self.total:
                report(min(1.0, self.n / self.total))
            return shown

    return Bar


class _Nowhere:
    def write(self, text: str) -> None: ...

    def flush(self) -> None: ...
