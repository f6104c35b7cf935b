"""LoRA adapters in PEFT's format, written by hand."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_safetensors(path: Path, tensors: Mapping[str, Any]) -> None:
    """NumPy arrays of float32 as a safetensors file: the header's length, the header, the numbers."""
    header: dict[str, object] = {}
    at = 0
    for name, array in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(a.tobytes() for a in tensors.values()))


def write_adapter(folder: Path, tensors: Mapping[str, Any] | None = None, **config: object) -> Path:
    """An adapter's folder; without tensors one that only the simulated engine takes."""
    folder.mkdir(parents=True)
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    write_safetensors(folder / "adapter_model.safetensors", tensors or {})
    return folder
