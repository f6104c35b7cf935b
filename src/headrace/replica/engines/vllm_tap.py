"""What is put into vLLM's output path, so that a step's outputs come in one piece and little is made of them.

Facts that shaped this (vLLM 0.32):
- all outputs of one step are put into their requests' collectors within one callback of the event loop: a tap in their
  place gathers them into one step, with no task, future or wake-up per request;
- the object that it makes of an output for its callers costs more than the rest of the way: a request that wants ids
  alone has them taken before that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from headrace.replica.engine import Row
from headrace.replica.engines.vllm_outputs import finish_of, plain_row


class Taker(Protocol):
    """Whom the outputs are for."""

    def take(self, live: Live, output: Any) -> None:
        """An output as vLLM makes it, or an exception in its place."""
        ...

    def took(self, live: Live, row: Row) -> None: ...


@dataclass(slots=True)
class Live:
    """One request in vLLM. `put` takes its outputs, in the place of its collector's own."""

    engine: Taker
    id: int
    stops: frozenset[int]
    logprobs: int | None
    prompt_logprobs: int | None
    internal_id: str = ""
    ended: bool = False
    state: Any = None  # vLLM's own of it

    def put(self, output: Any) -> None:
        if not self.ended:
            self.engine.take(self, output)

    def put_ids(
        self, new_token_ids: list[int], pooling_output: Any, finish_reason: Any, *args: Any, **more: Any
    ) -> None:
        """In the place of the state's `make_request_output`; None: nothing is to be put anywhere."""
        if not self.ended:
            finish = None if finish_reason is None else finish_of(str(finish_reason))
            cached = self.state.num_cached_tokens or 0
            self.engine.took(self, plain_row(self.id, new_token_ids, finish, self.stops, cached))


def tap(live: Live, collector: Any, processor: Any) -> None:
    """Have the outputs of a request that was added come to `live`, and only ids where nothing else is wanted."""
    live.internal_id = collector.request_id
    early = collector.output
    collector.put = live.put
    if live.logprobs is None and live.prompt_logprobs is None:
        live.state = processor.request_states.get(live.internal_id)
        if live.state is not None and live.state.logprobs_processor is not None and live.state.stream_interval == 1:
            live.state.make_request_output = live.put_ids
    if early is not None:
        live.put(early)


def count_no_tokens(processor: Any) -> None:
    """Have vLLM leave out its own latencies of every token and request, which nobody reads here."""
    process: Callable[..., Any] = processor.process_outputs

    def without(outputs: Any, timestamp: Any = None, iteration_stats: Any = None, **more: Any) -> Any:
        return process(outputs, timestamp, None, **more)

    processor.process_outputs = without
