"""An engine without a model: for tests, and to plan capacity without hardware. Its tokens are core/simulated.py's."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from headrace import __version__
from headrace.core import simulated
from headrace.core.instances import CannotMake
from headrace.core.streams import Sampling
from headrace.core.types import Load, ModelInfo, ModelSpec
from headrace.errors import HeadraceError, UserError
from headrace.replica.engine import EncodeRequest, EngineRequest, OutputParser, Parsing, Row, Step
from headrace.replica.engines.options import parse_options
from headrace.replica.engines.simulated_answers import Speaker, logprobs, prompt_logprobs, values_of
from headrace.replica.engines.simulated_cache import SimulatedCache
from headrace.replica.engines.simulated_parsing import SimulatedParser
from headrace.replica.sampling import FEATURES, cannot_guide
from headrace.replica.weights import Report


@dataclass(frozen=True, slots=True)
class SimulatedOptions:
    """How the simulated engine behaves, and how it fails."""

    ttft_s: float = 0.0  # from a request's admission to its first token, at least
    step_s: float = 0.005
    load_s: float = 0.0
    kv_tokens: int = 1_000_000
    max_running: int = 256
    prefill_chunk: int = 512  # prompt tokens that one step takes in, over all requests
    prefix_cache: bool = True  # prompt tokens that are in the KV cache already need not be taken in
    text: str = ""  # what every answer says, over and over; "": made from (prompt, seed, index)
    answer_tokens: int = 0  # after so many the answer ends by itself; 0: a function of the prompt and seed
    crash_at_token: int = -1  # SIGKILL to itself instead of producing a stream's token of this index
    crash_marker: str = ""  # SIGKILL to itself when a prompt with this text is admitted
    hang_at_token: int = -1  # never steps again, instead of producing that token
    die_at_token: int = -1  # the engine dies, the process does not
    orders_dir: str = ""  # before each step obeys the file named by its process id: "die", "hang" or "slow SECONDS"
    refuse_to_stop: bool = False  # `close` never returns
    hang_load: bool = False  # loading never ends, nor gets anywhere
    fail_load: str = ""  # loading fails with this reason
    stall_s: float = 60.0  # so long without a step, with requests to work on, means that it is dead
    permanent: bool = False  # and trying again cannot help


# Every token is the only likely one: however it is drawn it stays, but what changes likelihoods cannot be honoured.
_CANNOT = {"logit_bias", "presence_penalty", "frequency_penalty", "repetition_penalty"}
_FEATURES = FEATURES - _CANNOT | {
    "adapters", "json_schema", "json_object", "choices", "prompt_logprobs", "dimensions"
}  # fmt: skip


class _Died(Exception):
    """The engine was told to die."""


@dataclass(slots=True)
class _Sequence:
    request: EngineRequest
    key: bytes
    end: int  # index at which the answer ends by itself
    index: int  # of the next token
    unread: int  # prompt tokens still to take in
    ready_at: float = 0.0
    reserved: int = 0
    ids: list[int] | None = None  # what the answer says; None: made from the key
    cached: int = 0  # prompt tokens that the prefix cache had
    made: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _Inbox:
    new: list[EngineRequest] = field(default_factory=list)
    encodings: list[EncodeRequest] = field(default_factory=list)
    aborted: list[int] = field(default_factory=list)
    closed: bool = False


class SimulatedEngine:
    """Steps batches as a real engine does: admission by KV space, prefill in chunks, a token per sequence and step."""

    def __init__(self, options: Mapping[str, Any], spec: ModelSpec, report: Report) -> None:
        """Takes `load_s`. UserError or HeadraceError if it is told to fail."""
        for what, name in (("tool_parser", spec.tool_parser), ("reasoning_parser", spec.reasoning_parser)):
            if name not in ("", "simulated"):
                raise UserError(f"The simulated engine has no {what} {name!r}; it has 'simulated'.")
        self._finds_calls, self._reasons = bool(spec.tool_parser), bool(spec.reasoning_parser)
        self._options = o = parse_options(SimulatedOptions, options, "simulated")
        begin = time.monotonic()
        while (passed := time.monotonic() - begin) < o.load_s:
            report("loading the model", passed / o.load_s)
            time.sleep(min(0.05, o.load_s - passed))
        while o.hang_load:
            time.sleep(1.0)
        if o.fail_load:
            raise (UserError if o.permanent else HeadraceError)(o.fail_load)
        features = _FEATURES | {"tool_parser"} if self._finds_calls else _FEATURES
        tasks = (spec.task,) if spec.task else ("generate", "embed", "score")
        context = spec.context_tokens or 8192
        self.info = ModelInfo("simulated", __version__, context, simulated.VOCAB_SIZE, features, tasks)
        self.stall_s = o.stall_s
        self.eos_ids: tuple[int, ...] = (simulated.EOS_ID,)
        self.defaults = Sampling()
        self._speaker = Speaker(o.text, calls=self._finds_calls, reasons=self._reasons)
        self._changed = threading.Condition()
        self._inbox = _Inbox()
        self._waiting: deque[_Sequence] = deque()
        self._encodings: list[EncodeRequest] = []
        self._running: dict[int, _Sequence] = {}
        self._kv_used = 0
        self._cache = SimulatedCache(o.kv_tokens) if o.prefix_cache else None
        self.prefix_tokens = o.kv_tokens if o.prefix_cache else 0
        self._load = Load(max_running=o.max_running)
        self._pending = 0  # requests without a last row, under the lock
        self._thread = threading.Thread(target=self._run, name="simulated-engine", daemon=True)

    def start(self, on_step: Callable[[Step], None], on_death: Callable[[str], None]) -> None:
        self._on_step, self._on_death = on_step, on_death
        self._thread.start()

    def submit(self, request: EngineRequest) -> None:
        with self._changed:
            self._inbox.new.append(request)
            self._pending += 1
            self._changed.notify()

    def encode(self, request: EncodeRequest) -> None:
        with self._changed:
            self._inbox.encodings.append(request)
            self._pending += 1
            self._changed.notify()

    def parser(self, parsing: Parsing) -> OutputParser | None:
        calls = self._finds_calls and bool(parsing.tools)
        return SimulatedParser(self._reasons, calls) if self._reasons or calls else None

    def set_adapters(self, adapters: Mapping[str, Path]) -> Mapping[str, str]:
        return {}  # an adapter's name is all that it is here

    def abort(self, request_id: int) -> None:
        with self._changed:
            self._inbox.aborted.append(request_id)
            self._changed.notify()

    def load(self) -> Load:
        with self._changed:
            return self._now()

    def close(self) -> None:
        if self._options.refuse_to_stop:
            threading.Event().wait()
        with self._changed:
            self._inbox.closed = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(2.0)

    def _now(self) -> Load:
        """The load, with what is still in the inbox. Hold the lock."""
        running = min(len(self._running), self._pending)
        last = self._load
        kv_usage = self._kv_used / self._options.kv_tokens
        return replace(last, running=running, waiting=self._pending - running, kv_usage=kv_usage)

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except _Died as e:
            self._on_death(str(e))

    def _turn(self) -> bool:
        """Wait for something to do and do one step. False: closed."""
        with self._changed:
            while not (self._inbox != _Inbox() or self._busy()):
                self._changed.wait()
            inbox, self._inbox = self._inbox, _Inbox()
        if inbox.closed:
            return False
        rows: list[Row] = []
        self._take_in(inbox, rows)
        if self._busy():
            with self._changed:
                # A step takes its time, but for closing.
                self._changed.wait_for(lambda: self._inbox.closed, self._delay_s())
            rows.extend(Row(r.id, (), "stop", values=values_of(r)) for r in self._encodings)
            self._encodings.clear()
            self._obey()
            self._admit(rows)
            self._prefill()
            self._decode(rows)
        with self._changed:
            self._pending -= sum(row.finish is not None for row in rows)
            tokens = self._load.tokens_total + sum(len(r.tokens) for r in rows)
            queries, hits = (self._cache.queries, self._cache.hits) if self._cache else (0, 0)
            self._load = replace(
                self._load,
                step=self._load.step + 1,
                tokens_total=tokens,
                prefix_query_tokens=queries,
                prefix_hit_tokens=hits,
            )
            load = self._load = self._now()
        self._on_step(Step(rows, load))
        return True

    def _obey(self) -> None:
        """Do what the folder of orders says for this process, now and as long as it says so."""
        if not self._options.orders_dir:
            return
        try:
            order, _, seconds = (Path(self._options.orders_dir) / str(os.getpid())).read_text().partition(" ")
        except OSError:
            return
        if order == "die":
            raise _Died("The simulated engine died because it was ordered to.")
        if order == "hang":
            threading.Event().wait()
        if order == "slow":
            time.sleep(float(seconds or 0))

    def _busy(self) -> bool:
        return bool(self._waiting or self._running or self._encodings)

    def _delay_s(self) -> float:
        """How long this step takes: until something can be produced, but an engine that lives steps."""
        idle = self._running and not (self._waiting or self._encodings)
        idle = idle and not any(s.unread for s in self._running.values())
        until_ready = min(s.ready_at for s in self._running.values()) - time.monotonic() if idle else 0.0
        return max(self._options.step_s, min(until_ready, 0.5))

    def _take_in(self, inbox: _Inbox, rows: list[Row]) -> None:
        self._encodings += inbox.encodings
        for request in inbox.new:
            prompt = request.prompt_ids[: len(request.prompt_ids) - request.delivered]
            key = simulated.digest(prompt, request.sampling.seed, request.adapter)
            why = cannot_guide(request.guide, request.sampling)
            ids: list[int] | None = None
            try:
                ids = self._speaker.said(request.guide, prompt, key)
            except CannotMake as e:
                why = f"it cannot hold an answer to this schema: {e}"
            if why:
                why = f"The simulated engine refuses the request: {why}."
                rows.append(Row(request.id, (), "error", error=why, kind="invalid_request"))
                continue
            end = len(ids) if ids is not None else self._options.answer_tokens or simulated.natural_length(key)
            end = 2**62 if request.sampling.ignore_eos else max(end, request.sampling.min_tokens or 0)
            sequence = _Sequence(request, key, end, request.delivered, len(request.prompt_ids))
            sequence.ids = ids or self._speaker.text_ids or None
            self._waiting.append(sequence)
        for request_id in inbox.aborted:
            rows.extend(self._abort(request_id))

    def _abort(self, request_id: int) -> list[Row]:
        """Its last row, if it is here."""
        if request_id in self._running:
            self._release(self._running[request_id])
            return [Row(request_id, (), "abort")]
        for queue in (self._waiting, self._encodings):
            for r in queue:
                if (r.request.id if isinstance(r, _Sequence) else r.id) == request_id:
                    queue.remove(r)  # type: ignore[arg-type]
                    return [Row(request_id, (), "abort")]
        return []

    def _admit(self, rows: list[Row]) -> None:
        now = time.monotonic()
        while self._waiting and len(self._running) < self._options.max_running:
            s = self._waiting[0]
            s.reserved = len(s.request.prompt_ids) + min(s.request.max_tokens, max(1, s.end - s.index))
            if s.reserved > self._options.kv_tokens:
                self._waiting.popleft()
                rows.append(
                    Row(s.request.id, (), "error", error=f"Needs {s.reserved} tokens of KV cache, has too few.")
                )
                continue
            if self._kv_used + s.reserved > self._options.kv_tokens:
                break
            self._waiting.popleft()
            self._kv_used += s.reserved
            s.ready_at = now + self._options.ttft_s
            self._running[s.request.id] = s
            if self._cache:
                s.cached = self._cache.find(s.request.adapter, s.request.prompt_ids)
                s.unread -= s.cached
            marker = self._options.crash_marker
            if marker and marker in simulated.decode(s.request.prompt_ids):
                os.kill(os.getpid(), signal.SIGKILL)

    def _prefill(self) -> None:
        budget = self._options.prefill_chunk
        for s in self._running.values():
            taken = min(s.unread, budget)
            s.unread -= taken
            budget -= taken
            if taken and not s.unread and self._cache:
                self._cache.add(s.request.adapter, s.request.prompt_ids, self._kv_used)

    def _decode(self, rows: list[Row]) -> None:
        now = time.monotonic()
        o = self._options
        for s in list(self._running.values()):
            if s.unread or now < s.ready_at:
                continue
            if s.index == o.crash_at_token:
                os.kill(os.getpid(), signal.SIGKILL)
            if s.index == o.hang_at_token:
                threading.Event().wait()
            if s.index == o.die_at_token:
                raise _Died(f"The simulated engine died at token {s.index}.")
            if s.index >= s.end:
                rows.append(Row(s.request.id, (), "stop", cached_tokens=s.cached))
                self._release(s)
                continue
            token = s.ids[s.index % len(s.ids)] if s.ids else simulated.token_at(s.key, s.index)
            made = s.index - s.request.delivered + 1
            finish = "length" if made >= s.request.max_tokens else None
            row = Row(s.request.id, (token,), finish, logprobs(s.request, token), s.cached)
            s.made.append(token)
            if made == 1:
                row.prompt_logprobs = prompt_logprobs(s.request)
            s.index += 1
            rows.append(row)
            if finish:
                self._release(s)

    def _release(self, s: _Sequence) -> None:
        del self._running[s.request.id]
        self._kv_used -= s.reserved
        if self._cache and not s.unread:
            self._cache.add(s.request.adapter, [*s.request.prompt_ids, *s.made], self._kv_used)
