"""vLLM's AsyncLLM in this process, in an event loop and a thread of its own; the model runs in processes of vLLM's.

Facts that shaped this (vLLM 0.32):
- generated ids include the end-of-sequence or stop token;
- a dead engine process shows as `errored` within 0.1 s, and as an exception in every collector;
- statistics come with every step, also with one that brings no token.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from headrace.core.streams import Task
from headrace.core.types import Load, ModelInfo, ModelSpec, Resources
from headrace.errors import HeadraceError, UserError
from headrace.replica import telemetry
from headrace.replica.config_files import read_json
from headrace.replica.engine import EncodeRequest, EngineRequest, OutputParser, Parsing, Row, Step
from headrace.replica.engines import vllm_args, vllm_processes
from headrace.replica.engines.vllm_args import brief
from headrace.replica.sampling import FEATURES, read_generation_config

telemetry.forbid()
os.environ["HF_HUB_OFFLINE"] = "1"  # what there is to download has been
# One step's outputs in one piece, so that they become one frame.
os.environ.setdefault("VLLM_V1_OUTPUT_PROC_CHUNK_SIZE", "4096")
import vllm  # noqa: E402  # pyright: ignore[reportMissingImports]
from vllm.engine.arg_utils import AsyncEngineArgs  # noqa: E402  # pyright: ignore[reportMissingImports]
from vllm.inputs import tokens_input  # noqa: E402  # pyright: ignore[reportMissingImports]
from vllm.lora.request import LoRARequest  # noqa: E402  # pyright: ignore[reportMissingImports]
from vllm.platforms import current_platform  # noqa: E402  # pyright: ignore[reportMissingImports]
from vllm.pooling_params import PoolingParams  # noqa: E402  # pyright: ignore[reportMissingImports]
from vllm.v1.engine.async_llm import AsyncLLM  # noqa: E402  # pyright: ignore[reportMissingImports]
from vllm.v1.metrics.loggers import StatLoggerBase  # noqa: E402  # pyright: ignore[reportMissingImports]

from headrace.replica.engines import vllm_penalties  # noqa: E402
from headrace.replica.engines.vllm_outputs import numbers_of, refusal_of, row_of, sampling_params  # noqa: E402
from headrace.replica.engines.vllm_parsers import Parsers, check_registered  # noqa: E402
from headrace.replica.engines.vllm_tap import Live, Taps  # noqa: E402

_GUIDES = {"json_schema", "json_object", "regex", "grammar", "choices"}
_WATCH_S = 0.25
_CLOSE_S = 4.0


class _Stats(StatLoggerBase):
    """vLLM's statistics of each step, handed to us."""

    def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
        self.on_stats: Callable[[Any], None] = lambda stats: None

    def record(self, scheduler_stats: Any, iteration_stats: Any, *args: Any, **kwargs: Any) -> None:
        if scheduler_stats is not None:
            self.on_stats(scheduler_stats)

    def log_engine_initialized(self) -> None: ...


class VllmEngine:
    """One model in vLLM. Only the event loop of its own thread touches AsyncLLM after `start`."""

    def __init__(
        self, folder: Path, spec: ModelSpec, given: Mapping[str, Any], resources: Resources, *, adapters: bool = False
    ) -> None:
        """Loads the model: half a minute. UserError if vLLM cannot use what it is given; HeadraceError if it fails."""
        given, self.stall_s = vllm_args.split_off_ours(given)
        if adapters or given.get("enable_lora"):
            # Room for adapters of the usual sizes, several in one batch; vLLM's own is for one, of rank 16.
            given = {"enable_lora": True, "max_loras": 4, "max_cpu_loras": 32, "max_lora_rank": 64} | given
        if current_platform.is_cpu():
            os.environ.update(vllm_args.cpu_environment(resources, vllm_args.workers_of(given)))
            given |= vllm_args.cpu_defaults(given, resources, own_float32=not _fast_bfloat16())
        args = vllm_args.engine_args(AsyncEngineArgs, folder, spec, given, resources)
        try:
            config = args.create_engine_config()
        except Exception as e:
            raise UserError(f"vLLM cannot serve {folder}: {brief(e)}") from e
        check_registered(spec.tool_parser, spec.reasoning_parser)
        resumed = _count_resumed(config)
        vllm_processes.fork_engines_from_server()
        try:
            self._llm = AsyncLLM.from_vllm_config(config, stat_loggers=[self._stat_logger], disable_log_stats=True)
        except Exception as e:
            raise HeadraceError(f"vLLM failed to start: {vllm_processes.last_error() or brief(e)}") from e
        self._taps = Taps(self._llm.output_processor, self._flush)
        model, cache = config.model_config, config.cache_config
        # The engine's processes have found out how many blocks there is memory for.
        caches = bool(cache.enable_prefix_caching) and spec.task not in ("embed", "score")
        self.prefix_tokens = int(cache.num_gpu_blocks or 0) * int(cache.block_size or 0) if caches else 0
        self._adapters_on = bool(given.get("enable_lora"))
        self.defaults, eos = read_generation_config(folder)
        self.eos_ids = eos or tuple(_ids(model.hf_text_config.eos_token_id))
        self._parsers = Parsers(spec.tool_parser, spec.reasoning_parser, self._llm, model)
        tasks = {"embed": ("embed",), "score": ("score",)}.get(spec.task, ("generate",))
        features = FEATURES | _GUIDES | {"prompt_logprobs"} | self._parsers.features | resumed
        if self._adapters_on:
            features |= {"adapters"}
        if getattr(model, "is_matryoshka", False):
            features |= {"dimensions"}
        self.info = ModelInfo(
            "vllm", vllm.__version__, int(model.max_model_len), int(model.get_vocab_size()), features, tasks
        )
        # Models that tell a pair's two texts apart by types of tokens.
        self._typed = spec.task == "score" and int(read_json(folder / "config.json").get("type_vocab_size") or 1) > 1
        self._lock = threading.Lock()
        self._new: list[EngineRequest | EncodeRequest] = []
        self._aborted: list[int] = []
        self._pending = 0  # requests without a last row, under the lock
        self._load = Load(max_running=int(config.scheduler_config.max_num_seqs))
        self._live: dict[int, Live] = {}
        self._rows: list[Row] = []
        self._loras: dict[str, LoRARequest] = {}
        self._lora_ids = itertools.count(1)
        self._dead = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="vllm-engine", daemon=True)

    def _stat_logger(self, vllm_config: Any, engine_index: int = 0) -> _Stats:
        stats = _Stats(vllm_config, engine_index)
        stats.on_stats = self._on_stats
        return stats

    # --- called from other threads ---

    def start(self, on_step: Callable[[Step], None], on_death: Callable[[str], None]) -> None:
        self._on_step, self._on_death = on_step, on_death
        started = threading.Event()
        self._started = started
        self._thread.start()
        started.wait()

    def submit(self, request: EngineRequest) -> None:
        self._enqueue(request)

    def encode(self, request: EncodeRequest) -> None:
        self._enqueue(request)

    def _enqueue(self, request: EngineRequest | EncodeRequest) -> None:
        with self._lock:
            self._new.append(request)
            self._pending += 1
        self._call(self._wake.set)

    def abort(self, request_id: int) -> None:
        with self._lock:
            self._aborted.append(request_id)
        self._call(self._wake.set)

    def load(self) -> Load:
        with self._lock:
            return self._now()

    def parser(self, parsing: Parsing) -> OutputParser | None:
        return self._parsers.new(parsing)

    def set_adapters(self, adapters: Mapping[str, Path]) -> Mapping[str, str]:
        if not self._adapters_on:
            why = "This replica was started without adapters; deploy with --engine_arg enable_lora=true."
            return dict.fromkeys(adapters, why)
        assert self._loop
        return asyncio.run_coroutine_threadsafe(self._set_adapters(dict(adapters)), self._loop).result()

    def close(self) -> None:
        """Ends vLLM's processes too; what is left of them after a while is for whoever ends our process group."""
        self._dead = True
        closing = threading.Thread(target=self._shut_down, daemon=True)
        closing.start()
        closing.join(_CLOSE_S)

    def _shut_down(self) -> None:
        with contextlib.suppress(Exception):  # nothing can be done about it, and the processes are ended anyway
            self._llm.shutdown(timeout=_CLOSE_S / 2)

    def _call(self, what: Callable[[], object]) -> None:
        assert self._loop
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(what)

    def _now(self) -> Load:
        """The load as of the last step, with what has been submitted since. Hold the lock."""
        running = min(self._load.running, self._pending)
        return replace(self._load, running=running, waiting=self._pending - running)

    # --- the engine's thread ---

    def _run(self) -> None:
        import uvloop

        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(self._main())
        except BaseException as e:
            self._die(f"The vLLM engine failed: {brief(e)}")

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._started.set()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch())
            while True:
                await self._wake.wait()
                self._wake.clear()
                with self._lock:
                    new, self._new = self._new, []
                    aborted, self._aborted = self._aborted, []
                for request in new:
                    await self._add(request)
                for request_id in aborted:
                    if live := self._live.get(request_id):
                        self._end(live, Row(request_id, (), "abort"))
                        await self._llm.abort(live.internal_id, internal=True)

    async def _watch(self) -> None:
        """Notice a dead engine also when nothing runs."""
        while not self._dead:
            await asyncio.sleep(_WATCH_S)
            if self._llm.errored:
                self._die("vLLM's engine process died; the replica's log says more.")

    def _die(self, why: str) -> None:
        if not self._dead:
            self._dead = True
            self._on_death(why)

    async def _add(self, request: EngineRequest | EncodeRequest) -> None:
        try:
            if isinstance(request, EngineRequest):
                live, added = self._generation(request)
            else:
                live, added = self._encoding(request)
            self._live[request.id] = live
            collector = await added
        except Exception as e:  # whatever it is, it is this request's and nobody else's
            self._live.pop(request.id, None)
            if self._llm.errored:
                return  # the watch says so for all
            self._queue(refusal_of(request.id, e))
            return
        self._taps.add(live, collector)

    def _generation(self, request: EngineRequest) -> tuple[Live, Coroutine[Any, Any, Any]]:
        stops = frozenset() if request.sampling.ignore_eos else frozenset((*self.eos_ids, *request.stop_token_ids))
        live = Live(self, request.id, stops, request.sampling.logprobs, request.prompt_logprobs)
        params = sampling_params(request)
        lora = self._loras[request.adapter] if request.adapter else None
        prompt, more = tokens_input(list(request.prompt_ids)), self._parsers.guided(request)
        return live, self._llm.add_request(str(request.id), prompt, params, lora_request=lora, **more)

    def _encoding(self, request: EncodeRequest) -> tuple[Live, Coroutine[Any, Any, Any]]:
        ids = list(request.ids)
        params = PoolingParams(task="embed" if request.task is Task.EMBED else "classify")
        if request.dimensions:
            params.dimensions = request.dimensions
        if self._typed and request.types:
            second = next((i for i, kind in enumerate(request.types) if kind), len(ids))
            params.extra_kwargs = {"compressed_token_type_ids": second}  # where the second text begins
        lora = self._loras[request.adapter] if request.adapter else None
        live = Live(self, request.id, frozenset(), None, None)
        return live, self._llm.add_request(str(request.id), tokens_input(ids), params, lora_request=lora)

    def take(self, live: Live, output: Any) -> None:
        """One request's news of the step at hand."""
        if isinstance(output, Exception):
            if self._llm.errored:
                self._die("vLLM's engine process died; the replica's log says more.")
            else:
                self._end(live, refusal_of(live.id, output))
            return
        if not hasattr(output.outputs, "__len__"):
            self._end(live, numbers_of(live.id, output))
            return
        row = row_of(live.id, output, live.stops, live.logprobs, live.prompt_logprobs)
        if row.prompt_logprobs:
            live.prompt_logprobs = None  # told once
        self.took(live, row)

    def took(self, live: Live, row: Row) -> None:
        if row.finish is None:
            self._queue(row)
        else:
            self._end(live, row)

    def _end(self, live: Live, row: Row) -> None:
        live.end()
        self._live.pop(live.id, None)
        self._queue(row)

    def _queue(self, row: Row) -> None:
        """For this step's frame, which goes out when vLLM has handed over all of its outputs, or begins the next's."""
        if not self._rows:
            assert self._loop
            self._loop.call_soon(self._flush)
        self._rows.append(row)

    def _flush(self) -> None:
        rows, self._rows = self._rows, []
        if not rows:
            return  # the next step's outputs came in the same breath
        with self._lock:
            self._pending -= sum(row.finish is not None for row in rows)
            tokens = self._load.tokens_total + sum(len(row.tokens) for row in rows)
            self._load = replace(self._load, tokens_total=tokens)
            load = self._now()
        self._on_step(Step(rows, load))

    def _on_stats(self, stats: Any) -> None:
        prefix = stats.prefix_cache_stats
        with self._lock:
            last = self._load
            self._load = replace(
                last,
                running=stats.num_running_reqs,
                kv_usage=stats.kv_cache_usage,
                step=last.step + 1,
                prefix_hit_tokens=last.prefix_hit_tokens + (prefix.hits if prefix else 0),
                prefix_query_tokens=last.prefix_query_tokens + (prefix.queries if prefix else 0),
            )

    # --- adapters ---

    async def _set_adapters(self, wanted: dict[str, Path]) -> dict[str, str]:
        failed: dict[str, str] = {}
        for name in [n for n, lora in self._loras.items() if str(wanted.get(n, "")) != lora.lora_path]:
            await self._llm.remove_lora(self._loras.pop(name).lora_int_id)
        for name, folder in wanted.items():
            if name in self._loras:
                continue
            lora = LoRARequest(lora_name=name, lora_int_id=next(self._lora_ids), lora_path=str(folder))
            try:
                if not await self._llm.add_lora(lora):
                    raise ValueError("vLLM did not take it")
            except Exception as e:  # of one adapter: the others and the model go on
                failed[name] = f"vLLM cannot load the adapter {name}: {brief(e)}"
            else:
                self._loras[name] = lora
        return failed


def _ids(value: Any) -> list[int]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [int(value)]


def _count_resumed(config: Any) -> set[str]:
    """Have vLLM count a resumed stream's tokens for its penalties, where that costs the other requests nothing.

    On a GPU a processor makes every step wait for the one before it, or is another one for another model runner.
    """
    model = config.model_config
    fits = current_platform.is_cpu() and not (config.use_v2_model_runner or config.speculative_config)
    if not fits or model.runner_type == "pooling":
        return set()
    model.logits_processors = [*(model.logits_processors or ()), vllm_penalties.NAME]
    return {"resumed_penalties"}


def _fast_bfloat16() -> bool:
    import torch  # pyright: ignore[reportMissingImports]

    known = getattr(torch.cpu, "_is_avx512_bf16_supported", None) or getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(known and known())
