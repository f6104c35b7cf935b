"""Which of a source's files are wanted, and whether what came is sound."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from headrace.errors import UserError

INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_TOKENIZERS = ("merges.txt", "vocab.txt", "tokenizer.model")


def wanted(where: str, names: Collection[str], index: dict[str, Any] | None, *, with_code: bool = False) -> list[str]:
    """Configuration, tokenizer and one kind of weights; OpenVINO's before safetensors. UserError if there is none."""
    top = {n for n in names if "/" not in n and not n.startswith(".")}
    common = {
        n for n in top if n.endswith((".json", ".jinja")) or n in _TOKENIZERS or (with_code and n.endswith(".py"))
    }
    if "config.json" not in top:
        raise UserError(f"{where} is not a model: it has no config.json.")
    if {"openvino_model.xml", "openvino_model.bin"} <= top:
        return sorted(common | {n for n in top if n.startswith("openvino_")})
    shards = {n for n in top if n.endswith(".safetensors")}
    if index is not None:
        named = shards_of(index)
        if missing := sorted(named - shards):
            raise UserError(f"{where} lacks {missing[0]}, which its {INDEX} names.")
        shards = named or shards
    if shards:
        return sorted(common | shards)
    if any(n.endswith(PICKLES) for n in names):
        raise UserError(f"{where} has only pickled weights, which can run code; Headrace loads safetensors only.")
    raise UserError(f"{where} has no weights: neither openvino_model.xml nor *.safetensors.")


def shards_of(index: dict[str, Any]) -> set[str]:
    """The files that an index names; nothing that is a path."""
    weights = index.get("weight_map")
    return {str(v) for v in weights.values() if "/" not in str(v)} if isinstance(weights, dict) else set()


def check_safetensors(folder: Path) -> None:
    """UserError, naming the file, if one that the index names is missing or one that is there is cut off."""
    path = folder / INDEX
    if path.is_file():
        try:
            named = shards_of(json.loads(path.read_text()))
        except (ValueError, AttributeError) as e:
            raise UserError(f"{path} is not an index of weights.") from e
        if missing := sorted(n for n in named if not (folder / n).is_file()):
            raise UserError(f"{folder} lacks {missing[0]}, which its {INDEX} names.")
    for shard in sorted(folder.glob("*.safetensors")):
        _check_header(shard)


def _check_header(path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            if size < 8 or length > size - 8:
                raise ValueError("its header does not fit in it")
            header = json.loads(file.read(length))
            ends = [int(v["data_offsets"][1]) for k, v in header.items() if k != "__metadata__"]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as e:
            raise UserError(f"{path} is no safetensors file, or a damaged one: fetch it again.") from e
    if (whole := 8 + length + max(ends, default=0)) > size:
        raise UserError(f"{path} is cut off: it has {size} of {whole} bytes; fetch it again.")
