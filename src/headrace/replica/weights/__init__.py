"""Where a model's files are: built in, in a folder, on the Hugging Face hub or in S3. Never pickled weights."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

import headrace
from headrace.errors import UserError
from headrace.replica.weights.cache import Cache
from headrace.replica.weights.folder import Model, Report, Weights, inspect_folder

__all__ = ["Cache", "Model", "Report", "Weights", "fetch", "inspect_folder", "resolve"]


def resolve(
    source: str,
    revision: str,
    cache: Cache,
    report: Report,
    *,
    remote_code: bool = False,
    prefer: Weights = Weights.OPENVINO,
) -> Model:
    """The model that `source` names, downloaded if need be and looked at. Fails as `fetch` does."""
    return inspect_folder(fetch(source, revision, cache, report, remote_code=remote_code, prefer=prefer))


def fetch(
    source: str,
    revision: str,
    cache: Cache,
    report: Report,
    *,
    remote_code: bool = False,
    prefer: Weights = Weights.OPENVINO,
) -> Path:
    """The folder that `source` names, of a model or an adapter; it stays in the cache while this process lives.

    prefer: which weights to download where there are two kinds. remote_code: download Python files as well.
    UserError if it can never be used; Unavailable if it cannot be had now.
    """
    if source.startswith("hf://"):
        from headrace.replica.weights import hub

        return hub.download(source.removeprefix("hf://"), revision, cache, report, remote_code, prefer)
    if revision:
        raise UserError(f"A revision ({revision!r}) is for hf:// only; {source} has none.")
    if source.startswith("s3://"):
        from headrace.replica.weights import s3

        return s3.download(source, cache, report, remote_code, prefer)
    if source.startswith("builtin:"):
        folder = Path(headrace.__file__).parent / "data" / source.removeprefix("builtin:")
        if not folder.is_dir():
            raise UserError(f"There is no built-in model {source!r}.")
        return folder
    folder = Path(unquote(source.removeprefix("file://")) if source.startswith("file:///") else source)
    if not folder.is_absolute():
        raise UserError(
            f"The model's source {source!r} is neither builtin:NAME, hf://ORG/NAME, s3://BUCKET/PREFIX, file:///FOLDER"
            " nor an absolute folder."
        )
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder} on this node.")
    return folder
