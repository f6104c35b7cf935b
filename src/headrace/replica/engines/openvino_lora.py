"""LoRA adapters for OpenVINO: one pipeline for the model alone, and one more for each adapter.

Facts that shaped this (openvino-genai 2026.4):
- where requests are added one by one, adapters count only when a pipeline is made, in static mode, and for all of its
  requests; the modes that switch adapters are ignored there without a word;
- tensors that fit nothing in the model are ignored as well;
- of PEFT's files only the tensors are read, not the configuration with its scale.

So an adapter costs about the memory of one more model. It comes and goes without a restart, what runs goes on, and the
prefix cache never mixes what belongs to two adapters.
"""

from __future__ import annotations

import json
import logging
import math
import re
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from headrace.errors import UserError
from headrace.replica.adapter_files import WEIGHTS, read_config

log = logging.getLogger(__name__)

_TENSOR = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_[AB]\.weight")
_MODULE = re.compile(r'name="__module\.([\w.]+)/')  # of a layer, in an IR made from PyTorch
_MAX_HEADER = 100 * 1024 * 1024


class Pipelines:
    """`make(properties)` makes a pipeline. The engine's thread uses them; `set` may run in another one."""

    def __init__(self, folder: Path, make: Callable[[Mapping[str, Any]], Any]) -> None:
        """Makes the model's own; RuntimeError if that fails."""
        self._folder, self._make = folder, make
        self._by_adapter: Mapping[str, Any] = {"": make({})}

    def of(self, adapter: str) -> Any:
        """The pipeline for requests with an adapter; "" for the model alone. KeyError if it is not loaded."""
        return self._by_adapter[adapter]

    def step(self) -> None:
        """One step of each that has something to do. Also the step after a cancel frees what the request held."""
        for pipeline in self._by_adapter.values():
            if pipeline.has_non_finished_requests():
                pipeline.step()

    def metrics(self) -> tuple[int, float]:
        """Requests in the last steps, and the share of its KV cache that the fullest uses, 0 to 1."""
        all_ = [p.get_metrics() for p in self._by_adapter.values()]
        return sum(m.scheduled_requests for m in all_), max(m.cache_usage for m in all_) / 100

    def set(self, adapters: Mapping[str, Path]) -> Mapping[str, str]:
        """See Engine.set_adapters."""
        # What is gone makes room first. The mapping is replaced, never changed: a step may be going through it.
        self._by_adapter = {name: p for name, p in self._by_adapter.items() if name in adapters or not name}
        failed: dict[str, str] = {}
        for name in adapters.keys() - self._by_adapter.keys():
            try:
                self._by_adapter = {**self._by_adapter, name: self._make(self._properties(adapters[name]))}
            except UserError as e:
                failed[name] = e.message
            except (RuntimeError, OSError) as e:
                log.warning("adapter %s is not loaded: %s", name, e)
                failed[name] = f"OpenVINO cannot load the adapter: {_last_line(e)}."
        return failed

    def _properties(self, folder: Path) -> Mapping[str, Any]:
        import openvino_genai as genai

        alpha = scale(read_config(folder))
        check_tensors(tensor_names(folder / WEIGHTS), modules_of(self._folder))
        adapter = genai.Adapter(str(folder / WEIGHTS))
        return {"adapters": genai.AdapterConfig(adapter, alpha, mode=genai.AdapterConfig.Mode.MODE_STATIC)}


def scale(config: Mapping[str, Any]) -> float:
    """What an adapter's product is multiplied by. UserError for kinds of LoRA that OpenVINO would get wrong."""
    for name in ("use_dora", "modules_to_save", "alpha_pattern", "rank_pattern", "trainable_token_indices"):
        if config.get(name):
            raise UserError(f"OpenVINO cannot use an adapter with {name}.")
    if config.get("bias") not in (None, "none") or config.get("lora_bias"):
        raise UserError("OpenVINO cannot use an adapter that changes biases.")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or not isinstance(alpha, int | float) or rank < 1:
        raise UserError("The adapter's configuration has no rank (r) and lora_alpha.")
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def tensor_names(file: Path) -> list[str]:
    """The tensors of a safetensors file. UserError if it is none."""
    try:
        with file.open("rb") as f:
            (size,) = struct.unpack("<Q", f.read(8))
            if size > _MAX_HEADER:
                raise ValueError("its header is too long")
            header = json.loads(f.read(size))
        return [name for name in header if name != "__metadata__"]
    except (OSError, ValueError, struct.error) as e:
        raise UserError(f"{file} is not a safetensors file ({e}).") from e


def modules_of(model: Path) -> frozenset[str]:
    """The names that the layers of a converted model had in PyTorch."""
    return frozenset(_MODULE.findall((model / "openvino_model.xml").read_text(encoding="utf-8")))


def check_tensors(names: list[str], modules: frozenset[str]) -> None:
    """UserError if some tensor would be ignored."""
    if not names:
        raise UserError("The adapter's file has no tensors.")
    for name in names:
        found = _TENSOR.fullmatch(name)
        if not found:
            raise UserError(f"OpenVINO cannot use the adapter's tensor {name[:200]}.")
        if found["module"] not in modules:
            raise UserError(f"The adapter is for another model: it changes {found['module'][:200]}, which is not here.")


def _last_line(e: BaseException) -> str:
    lines = [line.strip() for line in str(e).splitlines() if line.strip()]
    return (lines[-1] if lines else type(e).__name__)[:300].rstrip(".")
