"""Penalties of an answer that was begun at another replica: its first tokens come as a part of the prompt, and count.

vLLM counts presence and frequency over the tokens that it made itself. For a stream that goes on here its own penalties
are off, and this processor, which runs in vLLM's worker, applies the same function to all the tokens of the answer. It
stands where vLLM's own penalties stand: after everything else that changes logits, before the temperature.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch  # pyright: ignore[reportMissingImports]
from vllm.v1.sample.logits_processor import (  # pyright: ignore[reportMissingImports]
    LogitsProcessor,
    process_dict_updates,
)
from vllm.v1.sample.ops.penalties import apply_all_penalties  # pyright: ignore[reportMissingImports]

from headrace.core.streams import Sampling

NAME = f"{__name__}:ResumedPenalties"
_KEY = "headrace_resumed"  # in the extra arguments of vLLM's sampling parameters


def counts_delivered(sampling: Sampling, delivered: int) -> bool:
    """Whether vLLM would count wrongly. A repetition penalty does not tell the prompt from the answer."""
    return bool(delivered and (sampling.presence_penalty or sampling.frequency_penalty))


def extra_args(sampling: Sampling, delivered: int) -> dict[str, Any]:
    """What tells the processor of a request whose last `delivered` prompt ids are the answer's."""
    repetition = 1.0 if sampling.repetition_penalty is None else sampling.repetition_penalty
    penalties = [sampling.presence_penalty or 0.0, sampling.frequency_penalty or 0.0, repetition]
    return {_KEY: {"delivered": delivered, "penalties": penalties}}


@dataclass(frozen=True, slots=True)
class _Resumed:
    """`made`: what vLLM has made of the answer, a list that grows."""

    prompt: torch.Tensor
    delivered: list[int]
    made: list[int]
    penalties: tuple[torch.Tensor, ...]  # presence, frequency, repetition


class ResumedPenalties(LogitsProcessor):  # pyright: ignore[reportUntypedBaseClass]
    """By row of the batch. Requests that began here are not looked at."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._device = device
        self._rows: dict[int, _Resumed] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: Any) -> None:
        process_dict_updates(self._rows, batch_update, self._new)

    def _new(self, params: Any, prompt_ids: list[int] | None, made: list[int]) -> _Resumed | None:
        told = (params.extra_args or {}).get(_KEY)
        if told is None or prompt_ids is None:
            return None
        begin = len(prompt_ids) - told["delivered"]
        prompt = torch.tensor([prompt_ids[:begin]], dtype=torch.int64, device=self._device)
        penalties = tuple(torch.tensor([p], dtype=torch.float32, device=self._device) for p in told["penalties"])
        return _Resumed(prompt, prompt_ids[begin:], made, penalties)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        for row, r in self._rows.items():
            one = logits[row : row + 1]
            logits[row : row + 1] = apply_all_penalties(one, r.prompt, *r.penalties, [r.delivered + r.made])
        return logits
