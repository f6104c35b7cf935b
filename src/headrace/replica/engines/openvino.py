"""OpenVINO's continuous batching, stepped by a thread of its own, in a process of its own: see hosted.

Facts that shaped this (openvino-genai 2026.4):
- a step holds Python's interpreter from its begin to its end;
- generated ids include the end-of-sequence token;
- a request that is cancelled, or does not fit in the cache, ends without an output;
- unseeded requests all use seed 0; random numbers belong to a request: a seed gives the same tokens in any batch, but
  not when a request goes on from delivered tokens;
- presence and frequency penalties do not see the prompt, repetition penalty does;
- a prefix that is read goes through another attention kernel than tokens that are made, and so do steps of fewer
  streams than threads: in float32 logits differ by 1e-5, which a KV cache of 16 bits makes 1e-3, and dynamic
  quantization (of activations, where weights have 8 or 4 bits) 0.1. Where two are nearer to each other than that, a
  continuation differs from the whole run: benchmarks/moved_streams.py;
- a guide is read in a request's first step, and one that is broken breaks that step for all: see openvino_guides;
- guides need the model's OpenVINO tokenizer; what a finished one lets a request go on with is not text.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from headrace.core.streams import Sampling
from headrace.core.types import Load, ModelInfo, Resources
from headrace.errors import HeadraceError
from headrace.replica import telemetry
from headrace.replica.config_files import read_json
from headrace.replica.engine import EncodeRequest, EngineRequest, OutputParser, Parsing, Row, Step
from headrace.replica.engines import openvino_guides
from headrace.replica.engines.openvino_lora import Pipelines
from headrace.replica.engines.openvino_options import KV_BYTES, OpenVinoOptions
from headrace.replica.engines.openvino_parsers import Parsers
from headrace.replica.sampling import cannot_guide, context_of, continued, read_generation_config

telemetry.forbid()
import numpy as np  # noqa: E402
import openvino  # noqa: E402
import openvino_genai as genai  # noqa: E402
from openvino_genai.py_openvino_genai import GenerationFinishReason, GenerationStatus  # noqa: E402

FEATURES = frozenset(
    {
        "temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty", "frequency_penalty", "repetition_penalty",
        "logprobs", "ignore_eos", "min_tokens", "adapters",
    }
)  # fmt: skip

_BLOCK_TOKENS = 32  # of the CPU plugin's KV cache
_MIB = 1024 * 1024


def kv_blocks(
    config: dict[str, Any], options: OpenVinoOptions, memory_bytes: int, free_bytes: int, context: int
) -> int:
    """How many blocks of KV cache to give a model: no more than its batch can use, no less than one full context."""
    heads = int(config.get("num_attention_heads") or config.get("n_head") or 1)
    layers = int(config.get("num_hidden_layers") or config.get("n_layer") or 1)
    hidden = int(config.get("hidden_size") or config.get("n_embd") or heads)
    head_dim = int(config.get("head_dim") or hidden // heads)
    kv_heads = int(config.get("num_key_value_heads") or heads)
    token_bytes = 2 * layers * kv_heads * head_dim * KV_BYTES[options.kv_cache_precision]
    budget = options.kv_cache_mib * _MIB or memory_bytes // 2 or min(1024 * _MIB, free_bytes // 10)
    one = context // _BLOCK_TOKENS + 2
    return max(one, min(budget // (token_bytes * _BLOCK_TOKENS), options.max_running * one))


@dataclass(slots=True)
class _Live:
    handle: Any
    stops: frozenset[int]
    logprobs: bool


@dataclass(slots=True)
class _Inbox:
    new: list[EngineRequest] = field(default_factory=list)
    aborted: list[int] = field(default_factory=list)
    closed: bool = False

    def anything(self) -> bool:
        return bool(self.new or self.aborted or self.closed)


class OpenVinoEngine:
    """One model in a ContinuousBatchingPipeline (and one more for each LoRA adapter), used by the engine's thread."""

    def __init__(
        self, folder: Path, options: OpenVinoOptions, resources: Resources, context_tokens: int, parsers: Parsers
    ) -> None:
        """Loads the model. UserError if the folder cannot be used; HeadraceError if OpenVINO fails to."""
        config = read_json(folder / "config.json")
        context = min(n for n in (context_tokens, context_of(folder), 2**20) if n > 0)
        self.defaults, self.eos_ids = read_generation_config(folder)
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = 0
        free = psutil.virtual_memory().available
        scheduler.num_kv_blocks = kv_blocks(config, options, resources.memory_bytes, free, context)
        scheduler.dynamic_split_fuse = True
        scheduler.max_num_batched_tokens = options.step_tokens
        scheduler.max_num_seqs = options.max_running
        scheduler.enable_prefix_caching = options.prefix_cache
        properties: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": options.precision,
            "KV_CACHE_PRECISION": options.kv_cache_precision,
            # Replicas of one machine would all be pinned to its first cores.
            "ENABLE_CPU_PINNING": False,
        }
        if not options.dynamic_quantization:
            properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 0
        if resources.cpus > 0:
            properties["INFERENCE_NUM_THREADS"] = max(1, int(resources.cpus))

        def make(more: Mapping[str, Any]) -> genai.ContinuousBatchingPipeline:
            return genai.ContinuousBatchingPipeline(str(folder), scheduler, options.device, {**properties, **more})

        try:
            self._pipelines = Pipelines(folder, make)
        except RuntimeError as e:
            raise HeadraceError(f"OpenVINO cannot load {folder}: {_brief(e)}") from e
        vocab_size = int(config.get("vocab_size") or 0)
        self._parsers = parsers
        features = FEATURES | parsers.features
        if (folder / "openvino_tokenizer.xml").exists():
            features |= openvino_guides.FEATURES
        self.stall_s = options.stall_s
        self.info = ModelInfo("openvino", genai.__version__, context, vocab_size, features)
        self._kv_tokens = scheduler.num_kv_blocks * _BLOCK_TOKENS
        self.prefix_tokens = self._kv_tokens if options.prefix_cache else 0
        self._changed = threading.Condition()
        self._inbox = _Inbox()
        self._live: dict[int, _Live] = {}
        self._load = Load(max_running=options.max_running)
        self._pending = 0  # requests without a last row
        self._thread = threading.Thread(target=self._run, name="openvino-engine", daemon=True)

    def start(self, on_step: Callable[[Step], None], on_death: Callable[[str], None]) -> None:
        self._on_step, self._on_death = on_step, on_death
        self._thread.start()

    def submit(self, request: EngineRequest) -> None:
        """`request.guide`, if any, has been tried."""
        with self._changed:
            self._pending += 1
            self._inbox.new.append(request)
            self._changed.notify()

    def encode(self, request: EncodeRequest) -> None:
        raise NotImplementedError  # `info.tasks` does not name it

    def parser(self, parsing: Parsing) -> OutputParser | None:
        return self._parsers.new(parsing)

    def set_adapters(self, adapters: Mapping[str, Path]) -> Mapping[str, str]:
        return self._pipelines.set(adapters)

    def abort(self, request_id: int) -> None:
        with self._changed:
            self._inbox.aborted.append(request_id)
            self._changed.notify()

    def load(self) -> Load:
        with self._changed:
            return self._now()

    def close(self) -> None:
        with self._changed:
            self._inbox.closed = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(5.0)

    def _now(self) -> Load:
        """The load as of the last step, with what has been submitted since. Hold the lock."""
        running = min(self._load.running, self._pending)
        return replace(self._load, running=running, waiting=self._pending - running)

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except Exception as e:  # the pipeline cannot be trusted after it threw from a step
            self._on_death(f"The OpenVINO engine failed: {_brief(e)}")

    def _turn(self) -> bool:
        """Wait for something to do and do one step. False: closed."""
        with self._changed:
            while not (self._inbox.anything() or self._live):
                self._changed.wait()
            inbox, self._inbox = self._inbox, _Inbox()
        if inbox.closed:
            return False
        rows: list[Row] = []
        for request in inbox.new:
            self._add(request, rows)
        for request_id in inbox.aborted:
            if live := self._live.pop(request_id, None):
                live.handle.cancel()
                rows.append(Row(request_id, (), "abort"))
        self._pipelines.step()
        self._read(rows)
        scheduled, cache_usage = self._pipelines.metrics()
        with self._changed:
            self._pending -= sum(row.finish is not None for row in rows)
            last = self._load
            self._load = replace(
                last,
                running=min(scheduled, len(self._live)),
                kv_usage=cache_usage if self._live else 0.0,
                step=last.step + 1,
                tokens_total=last.tokens_total + sum(len(row.tokens) for row in rows),
            )
            load = self._load = self._now()
        self._on_step(Step(rows, load))
        return True

    def _add(self, request: EngineRequest, rows: list[Row]) -> None:
        try:
            if why := cannot_guide(request.guide, request.sampling) or self._parsers.cannot_guide(request):
                raise ValueError(why)
            if len(request.prompt_ids) >= self._kv_tokens:
                raise ValueError(f"the prompt needs more than the KV cache's {self._kv_tokens} tokens")
            stops = frozenset() if request.sampling.ignore_eos else frozenset((*self.eos_ids, *request.stop_token_ids))
            ids = openvino.Tensor(np.array([request.prompt_ids], dtype=np.int64))
            pipeline = self._pipelines.of(request.adapter)
            handle = pipeline.add_request(request.id, ids, _generation_config(request, stops))
        except Exception as e:  # whatever it is, it is this request's and nobody else's
            kind = "invalid_request" if isinstance(e, ValueError) else "internal"
            rows.append(Row(request.id, (), "error", error=f"The engine refuses the request: {_brief(e)}.", kind=kind))
        else:
            self._live[request.id] = _Live(handle, stops, request.sampling.logprobs is not None)

    def _read(self, rows: list[Row]) -> None:
        for request_id, live in list(self._live.items()):
            row = _read_row(request_id, live)
            if row is not None:
                rows.append(row)
                if row.finish:
                    del self._live[request_id]


def _read_row(request_id: int, live: _Live) -> Row | None:
    """What the last step brought for one request."""
    tokens: list[int] = []
    logprobs: list[tuple[float, tuple[()]]] = []
    finish: str | None = None
    handle = live.handle
    while finish is None and handle.can_read():
        for output in handle.read().values():
            tokens += output.generated_ids
            if live.logprobs:
                logprobs += [(p, ()) for p in output.generated_log_probs]
            reason = output.finish_reason
            if reason != GenerationFinishReason.NONE:
                finish = "length" if reason == GenerationFinishReason.LENGTH else "stop"
    if finish == "stop" and tokens and tokens[-1] in live.stops:
        del tokens[-1], logprobs[len(tokens) :]
    if tokens or finish:
        return Row(request_id, tokens, finish, logprobs)
    if handle.get_status() != GenerationStatus.RUNNING:
        return Row(request_id, (), "error", error="The engine ran out of KV cache memory for this request.")
    return None


def _generation_config(request: EngineRequest, stops: frozenset[int]) -> genai.GenerationConfig:
    s: Sampling = continued(request.sampling, request.delivered)
    c = genai.GenerationConfig()
    c.apply_chat_template = False
    c.max_new_tokens = request.max_tokens
    c.ignore_eos = bool(s.ignore_eos)
    c.stop_token_ids = set(stops)
    c.min_new_tokens = min(request.max_tokens, max(0, (s.min_tokens or 0) - request.delivered))
    c.presence_penalty = s.presence_penalty or 0.0
    c.frequency_penalty = s.frequency_penalty or 0.0
    c.repetition_penalty = s.repetition_penalty or 1.0
    c.logprobs = 0 if s.logprobs is None else 1
    if request.guide:
        terms = openvino_guides.terms_of(request.guide)
        c.structured_output_config = genai.StructuredOutputConfig(**terms)
    # A nucleus of nothing is its most probable token.
    if s.temperature and s.top_p != 0.0:
        c.do_sample = True
        c.temperature = s.temperature
        c.top_p = 1.0 if s.top_p is None else s.top_p
        c.min_p = min(s.min_p or 0.0, 0.999999)  # 1 is refused there, but means the most probable token
        if s.top_k:
            c.top_k = s.top_k
        c.rng_seed = secrets.randbits(63) if s.seed is None else s.seed
    return c


def _brief(e: BaseException) -> str:
    """The last line of what OpenVINO said, which is the one for people."""
    lines = [line.strip() for line in str(e).splitlines() if line.strip()]
    return (lines[-1] if lines else type(e).__name__)[:300].rstrip(".")
