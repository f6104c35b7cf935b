"""Where a LoRA adapter's files are: where a model's may be. PEFT's format, never pickled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from headrace.errors import UserError
from headrace.replica.config_files import read_json
from headrace.replica.weights import Cache, Report, fetch
from headrace.replica.weights.folder import PICKLES

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def adapter_folder(source: str, revision: str, cache: Cache, report: Report) -> Path:
    """The folder of the adapter that `source` names, downloaded if need be; it holds CONFIG and WEIGHTS.

    UserError if it can never be used; Unavailable if it cannot be had now.
    """
    return check_folder(fetch(source, revision, cache, report))


def check_folder(folder: Path) -> Path:
    """`folder` if it holds a LoRA adapter that we read; else UserError."""
    names = {p.name for p in folder.iterdir()}
    if CONFIG not in names:
        raise UserError(f"{folder} is not an adapter: it has no {CONFIG}.")
    _check_weights(str(folder), names)
    kind = read_config(folder).get("peft_type")
    if kind != "LORA":
        raise UserError(f"{folder} is an adapter of the kind {str(kind)[:50]!r}; Headrace loads LoRA only.")
    return folder


def read_config(folder: Path) -> dict[str, Any]:
    """The adapter's configuration. UserError if it is none."""
    return read_json(folder / CONFIG)


def _check_weights(where: str, names: set[str]) -> None:
    if WEIGHTS in names:
        return
    if any(n.endswith(PICKLES) for n in names):
        raise UserError(f"{where} has only pickled weights, which can run code; Headrace loads {WEIGHTS} only.")
    raise UserError(f"{where} has no {WEIGHTS}.")
