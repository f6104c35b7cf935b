"""What a folder of weights holds, what of a remote one is worth downloading, and whether it is whole."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase
from glob import escape
from pathlib import Path
from typing import Any

from headrace.errors import UserError

Report = Callable[[str, float], None]
"""Told what is being done and how far it is: 0..1, negative when unknown. May be called from any thread."""

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_COMMON = ("*.json", "*.jinja", "merges.txt", "vocab.txt", "tokenizer.model", "*.tiktoken")
_MAX_HEADER = 100 * 1000 * 1000  # the format's own bound


class Weights(Enum):
    OPENVINO = "openvino"
    SAFETENSORS = "safetensors"


@dataclass(frozen=True, slots=True)
class Model:
    """A model's folder on this machine. None: the simulated model, which has no files."""

    folder: Path | None
    weights: Weights | None = None


def inspect_folder(folder: Path) -> Model:
    """What kind of weights a folder has; OpenVINO's before safetensors.

    UserError if none that we read, or if a file of safetensors is missing or broken.
    """
    names = {p.name for p in folder.iterdir()}
    if "config.json" not in names:
        raise UserError(f"{folder} is not a model folder: it has no config.json.")
    weights = _kind(names)
    if weights is None:
        raise UserError(_no_weights(str(folder), names))
    check_safetensors(folder)
    return Model(folder, weights)


def patterns(where: str, names: Collection[str], remote_code: bool, prefer: Weights) -> list[str]:
    """Which files of a remote folder are needed: configuration, tokenizer and one kind of weights.

    names: its files, relative. UserError if it has no weights that we read.
    """
    top = {n for n in names if "/" not in n}
    safetensors = sorted(n for n in top if n.endswith(".safetensors"))
    common = [*_COMMON, *(["*.py"] if remote_code else [])]
    match Weights.SAFETENSORS if safetensors and prefer is Weights.SAFETENSORS else _kind(top):
        case Weights.OPENVINO:
            return [*common, "openvino_*"]
        case Weights.SAFETENSORS:
            return [*common, *map(escape, safetensors)]
        case None:
            raise UserError(_no_weights(where, names))


def matching(names: Collection[str], wanted: Collection[str]) -> list[str]:
    """Those of `names` that a pattern of `wanted` matches, sorted."""
    return sorted(n for n in names if any(fnmatchcase(n, p) for p in wanted))


def check_safetensors(folder: Path) -> None:
    """UserError, naming the file, if one that an index names is missing, or if one is not as long as it says."""
    for index in sorted(folder.glob("*.safetensors.index.json")):
        for name in sorted(_shards(index)):
            if not (folder / name).is_file():
                raise UserError(f"{folder} is not whole: {name}, which {index.name} names, is missing.")
    for path in sorted(folder.glob("*.safetensors")):
        if why := _damage(path):
            raise UserError(f"{path} is damaged: {why}; copy or download it again.")


def _kind(names: Collection[str]) -> Weights | None:
    if "openvino_model.xml" in names and "openvino_model.bin" in names:
        return Weights.OPENVINO
    if any(n.endswith(".safetensors") for n in names):
        return Weights.SAFETENSORS
    return None


def _no_weights(where: str, names: Collection[str]) -> str:
    if any(n.endswith(PICKLES) for n in names):
        return f"{where} has only pickled weights, which can run code; Headrace loads safetensors only."
    return f"{where} has no weights that Headrace can load: neither openvino_model.xml nor *.safetensors."


def _shards(index: Path) -> set[str]:
    try:
        found = set(json.loads(index.read_bytes())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise UserError(f"{index} is damaged: it has no weight_map; copy or download it again.") from e
    if wrong := [n for n in found if not isinstance(n, str) or not n or Path(n).name != n]:
        raise UserError(f"{index} names {wrong[0]!r}, which is no file of its folder.")
    return found


def _damage(path: Path) -> str:
    """What is wrong with a safetensors file; "" if its header and its length agree."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) < 8:
            return f"it has {size} bytes and no header"
        (length,) = struct.unpack("<Q", start)
        if length > _MAX_HEADER or 8 + length > size:
            return f"its header would have {length} bytes, and the file has {size}"
        try:
            header: dict[str, Any] = json.loads(file.read(length))
            ends = [int(t["data_offsets"][1]) for name, t in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            return "its header cannot be read"
    expected = 8 + length + max(ends, default=0)
    return "" if size == expected else f"it has {size} bytes, and its header tells of {expected}"
