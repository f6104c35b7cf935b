"""What is put into vLLM's output path, so that a step's outputs come in one piece and little is made of them.

Facts that shaped this (vLLM 0.32):
- all outputs of one step are put into their requests' collectors within one callback of the event loop: a tap in their
  place gathers them into one step, with no task, future or wake-up per request;
- where several steps' outputs are there at once it hands them over one after another, in one callback too;
- the object that it makes of an output for its callers costs more than the rest of the way, and what it does before
  that is for text, log-probabilities, and a request's begin and end: a request that wants ids alone has those between
  its first and its last taken before.
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
    flowing: dict[str, Live] | None = None  # where it is from its first ids to its end, if ids are all that is wanted

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
            if finish is None and self.flowing is not None:
                self.flowing[self.internal_id] = self
            self.engine.took(self, plain_row(self.id, new_token_ids, finish, self.stops, cached))

    def end(self) -> None:
        """Hear no more of it."""
        self.ended, self.state = True, None  # which refers to us
        if self.flowing is not None:
            self.flowing.pop(self.internal_id, None)


class Taps:
    """All taps of one AsyncLLM, whose output processor they sit on.

    `begin` is called before outputs are handed over: what was taken until then was of an earlier step, or of none.
    """

    def __init__(self, processor: Any, begin: Callable[[], None]) -> None:
        self._processor, self._begin = processor, begin
        self._flowing: dict[str, Live] = {}
        self._process: Callable[..., Any] = processor.process_outputs
        processor.process_outputs = self._process_outputs

    def add(self, live: Live, collector: Any) -> None:
        """Have the outputs of a request that was added come to `live`, and only ids where nothing else is wanted."""
        live.internal_id = collector.request_id
        early = collector.output
        collector.put = live.put
        if live.logprobs is None and live.prompt_logprobs is None:
            state = self._processor.request_states.get(live.internal_id)
            if state is not None and state.logprobs_processor is not None and state.stream_interval == 1:
                live.state, live.flowing = state, self._flowing
                state.make_request_output = live.put_ids
        if early is not None:
            live.put(early)

    def _process_outputs(
        self, engine_core_outputs: Any, engine_core_timestamp: Any = None, iteration_stats: Any = None, **more: Any
    ) -> Any:
        """vLLM's, for all but tokens of streams that flow; without its latencies, which nobody reads here."""
        self._begin()
        rest: list[Any] = []
        for output in engine_core_outputs:
            live = self._flowing.get(output.request_id)
            if live is None or output.finish_reason is not None:
                rest.append(output)
            else:
                live.engine.took(live, Row(live.id, output.new_token_ids))
        return self._process(rest, engine_core_timestamp, None, **more)
