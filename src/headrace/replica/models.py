"""Where a model's files are: built in, in a folder, or fetched from the Hugging Face hub. Never pickled weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import headrace
from headrace.errors import Unavailable, UserError

Report = Callable[[str, float], None]
"""Told what is being done and how far it is: 0..1, negative when unknown. May be called from any thread."""

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_COMMON = ["*.json", "*.jinja"]


class Weights(Enum):
    OPENVINO = "openvino"
    SAFETENSORS = "safetensors"


@dataclass(frozen=True, slots=True)
class Model:
    """A model's folder on this machine. None: the simulated model, which has no files."""

    folder: Path | None
    weights: Weights | None = None


def resolve(source: str, revision: str, cache_dir: Path, report: Report) -> Model:
    """The model that `source` names, downloaded if need be.

    UserError if it can never be used; Unavailable if the hub cannot be reached now.
    """
    if source.startswith("builtin:"):
        folder = Path(headrace.__file__).parent / "data" / source.removeprefix("builtin:")
        if not folder.is_dir():
            raise UserError(f"There is no built-in model {source!r}.")
        return inspect_folder(folder)
    if source.startswith("hf://"):
        return inspect_folder(download(source.removeprefix("hf://"), revision, cache_dir, report, _patterns))
    folder = Path(source)
    if not folder.is_absolute():
        raise UserError(f"The model's source {source!r} is neither builtin:NAME, hf://ORG/NAME nor an absolute folder.")
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder} on this node.")
    return inspect_folder(folder)


def inspect_folder(folder: Path) -> Model:
    """What kind of weights a folder has; OpenVINO's before safetensors. UserError if none that we read."""
    names = {p.name for p in folder.iterdir()}
    if "config.json" not in names:
        raise UserError(f"{folder} is not a model folder: it has no config.json.")
    if weights := _weights(names):
        return Model(folder, weights)
    if any(n.endswith(PICKLES) for n in names):
        raise UserError(f"{folder} has only pickled weights, which can run code; Headrace loads safetensors only.")
    raise UserError(f"{folder} has no weights: neither openvino_model.xml nor *.safetensors.")


def _weights(names: set[str]) -> Weights | None:
    if {"openvino_model.xml", "openvino_model.bin"} <= names:
        return Weights.OPENVINO
    if any(n.endswith(".safetensors") for n in names):
        return Weights.SAFETENSORS
    return None


def download(
    repo: str, revision: str, cache_dir: Path, report: Report, patterns_of: Callable[[str, set[str]], list[str]]
) -> Path:
    """A snapshot of a hub repository: of its files what `patterns_of` (source, names) says."""
    import huggingface_hub as hub  # 0.3 s, and most replicas do not need it
    from huggingface_hub import errors as e

    where = f"hf://{repo}" + (f" (revision {revision})" if revision else "")
    common: dict[str, Any] = {"repo_id": repo, "revision": revision or None, "cache_dir": cache_dir / "hub"}
    report(f"looking up {where}", -1.0)
    try:
        info = hub.HfApi().model_info(repo, revision=revision or None, files_metadata=True)
        files = {s.rfilename: s.size or 0 for s in info.siblings or ()}
        patterns = patterns_of(where, set(files))
        common["revision"] = info.sha or common["revision"]
        report(f"downloading {where}", 0.0)
        bars = _progress_bars(lambda done: report(f"downloading {where}", done))
        return Path(hub.snapshot_download(**common, allow_patterns=patterns, tqdm_class=bars))
    except e.GatedRepoError as error:
        raise UserError(f"{where} needs permission: accept its terms on the hub and set HF_TOKEN.") from error
    except e.RevisionNotFoundError as error:
        raise UserError(f"hf://{repo} has no revision {revision!r}.") from error
    except (e.RepositoryNotFoundError, e.HFValidationError) as error:
        raise UserError(f"{where} does not exist, or needs an access token (HF_TOKEN).") from error
    except UserError:
        raise
    except Exception as error:  # the client's network errors come from several libraries
        return _downloaded_before(where, common, error)


def _downloaded_before(where: str, common: dict[str, Any], error: Exception) -> Path:
    import huggingface_hub as hub

    try:
        return Path(hub.snapshot_download(**common, local_files_only=True))
    except Exception:
        raise Unavailable(
            f"Cannot download {where} ({type(error).__name__}), and it is not in the cache."
            " Check the network, or deploy from a folder."
        ) from error


def _patterns(where: str, files: set[str]) -> list[str]:
    match _weights({f for f in files if "/" not in f}):
        case Weights.OPENVINO:
            return [*_COMMON, "openvino_*"]
        case Weights.SAFETENSORS:
            return [*_COMMON, *sorted(f for f in files if f.endswith(".safetensors") and "/" not in f)]
        case None:
            if any(f.endswith(PICKLES) for f in files):
                raise UserError(
                    f"{where} has only pickled weights, which can run code; Headrace loads safetensors only."
                )
            raise UserError(f"{where} has no weights that Headrace can load.")


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
