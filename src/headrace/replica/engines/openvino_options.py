"""Engine arguments of the OpenVINO engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from headrace.errors import UserError
from headrace.replica.engines import openvino_guides
from headrace.replica.engines.options import parse_options

KV_BYTES = {"f32": 4, "f16": 2, "bf16": 2, "u8": 1}


@dataclass(frozen=True, slots=True)
class OpenVinoOptions:
    """Engine options of a deployment."""

    precision: str = "f32"  # of inference: f32, bf16 or f16
    kv_cache_precision: str = "f32"  # with less, more streams that move go on otherwise than they would have
    dynamic_quantization: bool = True  # of activations, with int8 or int4 weights: faster, and so do most of theirs
    kv_cache_mib: int = 0  # 0: from the replica's memory, else a tenth of what is free, at most 1 GiB
    step_tokens: int = 256  # what one step may take in; a longer prompt is split
    max_running: int = 256
    prefix_cache: bool = True
    device: str = "CPU"
    stall_s: float = 60.0  # so long without a step, with requests to work on, means that the engine is dead
    guide_trial_s: float = 5.0  # a form that takes longer to compile would hold up all streams for as long

    @staticmethod
    def parse(given: dict[str, Any]) -> OpenVinoOptions:
        """UserError for what is unknown or out of range."""
        options = parse_options(OpenVinoOptions, given, "openvino")
        if options.kv_cache_precision not in KV_BYTES:
            raise UserError(f"kv_cache_precision must be one of {', '.join(KV_BYTES)}.")
        if options.step_tokens < 1 or options.max_running < 1 or options.kv_cache_mib < 0:
            raise UserError("step_tokens and max_running must be at least 1, kv_cache_mib at least 0.")
        if options.stall_s <= 0:
            raise UserError("stall_s must be more than 0.")
        if not 0 < options.guide_trial_s <= openvino_guides.MAX_TRIAL_S:
            raise UserError(f"guide_trial_s must be above 0 and at most {openvino_guides.MAX_TRIAL_S:.0f}.")
        return options
