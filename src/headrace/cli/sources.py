"""What a person means by MODEL: a name of the catalog, hf://org/name, s3://bucket/prefix, or a folder."""

from __future__ import annotations

import os
from pathlib import Path

from headrace.core.types import MODEL_NAME_PATTERN
from headrace.errors import UserError

_SIGNS = ("config.json", "openvino_model.xml")


def is_folder(model: str) -> bool:
    """True if `model` is written as a path and not as a name or an address."""
    return "://" not in model and (model in (".", "..") or model.startswith("~") or os.sep in model)


def resolve(model: str, *, must_exist: bool) -> str:
    """`model` as the head is to hear it: folders become absolute. UserError if a folder cannot be meant.

    A folder may be on another machine, unless it `must_exist` here.
    """
    if not is_folder(model):
        return model
    path = Path(os.path.abspath(Path(model).expanduser()))
    if path.is_dir():
        if not any((path / sign).is_file() for sign in _SIGNS):
            raise UserError(f"{path} is not a model: it holds neither {' nor '.join(_SIGNS)}.")
        return str(path)
    if path.exists():
        raise UserError(f"{path} is not a model: it is a file, and a model is a folder.")
    if not must_exist and MODEL_NAME_PATTERN.fullmatch(model):
        return model  # the head knows whether there is such a name
    if must_exist or not os.path.isabs(os.path.expanduser(model)):
        hub = "" if model.startswith((".", "~", "/")) or model.count("/") != 1 else f", or write hf://{model}"
        raise UserError(f"There is no folder {path}; give a folder with a model, a name of `headrace models`{hub}.")
    return str(path)


def resolve_source(source: str) -> str:
    """`source` of a catalog entry as the head is to hear it: what is no address is a folder, and becomes absolute."""
    if "://" in source or source.startswith("builtin:"):
        return source
    return resolve(os.path.join(".", os.path.expanduser(source)), must_exist=False)
