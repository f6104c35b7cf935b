"""The contract between a replica's front end and the engine that runs its model.

An engine knows token ids only. Text, chat templates and stop strings belong to the front end, which is the same for all
engines. An engine runs a thread (or a task) of its own and calls `on_step` once per step, from that thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from headrace.core.types import Load, ModelInfo, Sampling


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """One sequence to generate. `sampling` holds no None that has a default: the front end has filled it in.

    `prompt_ids` already contains the delivered ids of a resumed stream; `delivered` says how many of them are the
    answer's own, so that penalties and min_tokens can count them. `max_tokens` counts new tokens only.
    """

    id: int
    prompt_ids: Sequence[int]
    max_tokens: int
    sampling: Sampling
    stop_token_ids: tuple[int, ...] = ()
    delivered: int = 0


@dataclass(slots=True)
class Row:
    """The news of one request: new token ids, and why it ended if it did.

    `logprobs`: one per token, (chosen, ((id, logprob) of alternatives…)); empty unless asked for.
    `tokens` leaves out the end-of-sequence token and stop tokens.
    """

    id: int
    tokens: Sequence[int]
    finish: str | None = None  # "stop", "length", "abort", "error"
    logprobs: Sequence[tuple[float, Sequence[tuple[int, float]]]] = ()
    cached_tokens: int = 0
    error: str = ""


@dataclass(slots=True)
class Step:
    """What one engine step brought, for all requests."""

    rows: list[Row] = field(default_factory=list)
    load: Load = field(default_factory=Load)


class Engine(Protocol):
    """One model, loaded."""

    info: ModelInfo
    eos_ids: tuple[int, ...]
    defaults: Sampling  # from the model's generation_config.json

    def start(self, on_step: Callable[[Step], None], on_death: Callable[[str], None]) -> None:
        """Begin to step. `on_death` is called once, with a reason, if the engine can never step again."""
        ...

    def submit(self, request: EngineRequest) -> None:
        """Queue a request. Thread-safe. A request that cannot run ends with a row of finish "error"."""
        ...

    def abort(self, request_id: int) -> None:
        """End a request soon. Thread-safe, idempotent; a last row with a finish always follows."""
        ...

    def load(self) -> Load:
        """The load now. Thread-safe, cheap."""
        ...

    def close(self) -> None:
        """Stop stepping and free everything; requests in flight end without a row."""
        ...
