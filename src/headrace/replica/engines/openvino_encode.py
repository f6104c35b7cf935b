"""Embeddings and scores with OpenVINO: one thread that takes up to a batch of what is queued.

OpenVINO itself runs the model, on the token ids of the front end. genai's TextEmbeddingPipeline and TextRerankPipeline
(2026.4) would take texts only, cut in an OpenVINO tokenizer of their own, and fail for pairs whose parts a model tells
apart (BERT's token types).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from headrace.core.streams import Sampling, Task
from headrace.core.types import Load, ModelInfo, Resources
from headrace.errors import HeadraceError, UserError
from headrace.replica import telemetry
from headrace.replica.config_files import read_json
from headrace.replica.engine import EncodeRequest, EngineRequest, OutputParser, Parsing, Row, Step
from headrace.replica.engines.options import parse_options
from headrace.replica.sampling import context_of

telemetry.forbid()
import numpy as np  # noqa: E402
import openvino  # noqa: E402

POOLINGS = ("cls", "mean", "last")
_OFFSET_MODELS = ("roberta", "xlm-roberta", "camembert")  # their first two positions are not a text's


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """Engine options of a deployment with task embed or score."""

    precision: str = "f32"
    max_batch: int = 32
    pooling: str = ""  # of a text's vectors to one: cls, mean or last; "": as the model's 1_Pooling says, else cls
    normalize: bool = True
    device: str = "CPU"
    stall_s: float = 60.0  # so long without a batch, with requests to work on, means that the engine is dead

    @staticmethod
    def parse(given: dict[str, Any]) -> EncodeOptions:
        """UserError for what is unknown or out of range."""
        options = parse_options(EncodeOptions, given, "openvino")
        if options.pooling not in ("", *POOLINGS):
            raise UserError(f"pooling must be one of {', '.join(POOLINGS)}.")
        if options.max_batch < 1 or options.stall_s <= 0:
            raise UserError("max_batch must be at least 1, and stall_s more than 0.")
        return options


def pooling_of(folder: Path) -> str:
    """What sentence-transformers' 1_Pooling/config.json says; "cls" without one. UserError for what we cannot do."""
    modes = [k for k, v in read_json(folder / "1_Pooling" / "config.json").items() if k.startswith("pooling_") and v]
    known = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_lasttoken": "last"}
    if not modes:
        return "cls"
    if len(modes) > 1 or modes[0] not in known:
        raise UserError(f"{folder} pools as {', '.join(modes)}; only {', '.join(POOLINGS)} can be had.")
    return known[modes[0]]


def pool(hidden: np.ndarray, mask: np.ndarray, how: str) -> np.ndarray:
    """One vector per text: hidden [texts, tokens, size] and mask [texts, tokens] → [texts, size]."""
    if how == "cls":
        return hidden[:, 0]
    if how == "last":
        return hidden[np.arange(len(hidden)), mask.sum(1) - 1]
    return (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdims=True)


class OpenVinoEncoder:
    """An embedding model or a cross-encoder. Only its own thread infers after `start`."""

    prefix_tokens = 0

    def __init__(
        self, folder: Path, task: Task, options: EncodeOptions, resources: Resources, context_tokens: int
    ) -> None:
        """Loads the model. UserError if the folder cannot be used; HeadraceError if OpenVINO fails to."""
        config = read_json(folder / "config.json")
        labels = len(config.get("id2label") or ()) or int(config.get("num_labels") or 1)
        if task is Task.SCORE and labels != 1:
            raise UserError(f"{folder} tells {labels} classes apart; a score needs a model with one.")
        properties: dict[str, Any] = {"INFERENCE_PRECISION_HINT": options.precision, "ENABLE_CPU_PINNING": False}
        if resources.cpus > 0:
            properties["INFERENCE_NUM_THREADS"] = max(1, int(resources.cpus))
        try:
            model = openvino.Core().compile_model(folder / "openvino_model.xml", options.device, properties)
            self._inputs = {next(iter(port.get_names())) for port in model.inputs}
            self._infer = model.create_infer_request()
        except RuntimeError as e:
            raise HeadraceError(f"OpenVINO cannot load {folder}: {_brief(e)}") from e
        if unknown := self._inputs - {"input_ids", "attention_mask", "token_type_ids", "position_ids"}:
            raise UserError(f"{folder} is no model of task {task}: it also wants {', '.join(sorted(unknown))}.")
        self._pooling = (options.pooling or pooling_of(folder)) if task is Task.EMBED else ""
        self._task, self._normalize, self._max_batch = task, options.normalize, options.max_batch
        self._pad = int(config.get("pad_token_id") or 0)
        own = context_of(folder) - (2 if config.get("model_type") in _OFFSET_MODELS else 0)
        context = min(n for n in (context_tokens, own, 2**20) if n > 0)
        self.info = ModelInfo(
            "openvino", openvino.__version__, context, int(config.get("vocab_size") or 0), frozenset(), (task.value,)
        )
        self.stall_s = options.stall_s
        self._on_cpu = options.device == "CPU"
        self.eos_ids: tuple[int, ...] = ()
        self.defaults = Sampling()
        self._changed = threading.Condition()
        self._queue: deque[EncodeRequest] = deque()
        self._ended: list[Row] = []
        self._closed = False
        self._load = Load(max_running=2 * self._max_batch)  # the next batch is to be there when one is done
        self._thread = threading.Thread(target=self._run, name="openvino-encoder", daemon=True)

    def parser(self, parsing: Parsing) -> OutputParser | None:
        return None

    def set_adapters(self, adapters: Mapping[str, Path]) -> Mapping[str, str]:
        return dict.fromkeys(adapters, "OpenVINO has no LoRA adapters for this task.")

    def start(self, on_step: Callable[[Step], None], on_death: Callable[[str], None]) -> None:
        self._on_step, self._on_death = on_step, on_death
        self._thread.start()

    def submit(self, request: EngineRequest) -> None:
        self._end(Row(request.id, (), "error", error="This model generates no text.", kind="invalid_request"))

    def encode(self, request: EncodeRequest) -> None:
        if request.dimensions:
            why = "This model's vectors have one length only; leave 'dimensions' out."
            self._end(Row(request.id, (), "error", error=why, kind="invalid_request"))
            return
        with self._changed:
            self._queue.append(request)
            self._changed.notify()

    def _end(self, row: Row) -> None:
        with self._changed:
            self._ended.append(row)
            self._changed.notify()

    def abort(self, request_id: int) -> None:
        """What is in a batch already ends with it."""
        with self._changed:
            for request in self._queue:
                if request.id == request_id:
                    self._queue.remove(request)
                    self._ended.append(Row(request_id, (), "abort"))
                    self._changed.notify()
                    return

    def load(self) -> Load:
        with self._changed:
            cpu_s = time.process_time() if self._on_cpu else 0.0
            return replace(self._load, waiting=len(self._queue), cpu_s=cpu_s)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(5.0)

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except Exception as e:
            self._on_death(f"The OpenVINO engine failed: {_brief(e)}")

    def _turn(self) -> bool:
        """Wait for something to do and do one batch. False: closed."""
        with self._changed:
            while not (self._queue or self._ended or self._closed):
                self._changed.wait()
            if self._closed:
                return False
            rows, self._ended = self._ended, []
            batch = [self._queue.popleft() for _ in range(min(self._max_batch, len(self._queue)))]
            self._load = replace(self._load, running=len(batch))
        if batch:
            rows += self._answer(batch)
        with self._changed:
            tokens = self._load.tokens_total + sum(len(r.ids) for r in batch)
            last = self._load
            self._load = replace(last, running=0, waiting=len(self._queue), step=last.step + 1, tokens_total=tokens)
            load = self._load
        self._on_step(Step(rows, load))
        return True

    def _answer(self, batch: Sequence[EncodeRequest]) -> list[Row]:
        try:
            values = self._numbers(batch)
        except RuntimeError as e:
            why = f"The engine failed on the request: {_brief(e)}."
            return [Row(r.id, (), "error", error=why) for r in batch]
        return [Row(r.id, (), "stop", values=v) for r, v in zip(batch, values.tolist(), strict=True)]

    def _numbers(self, batch: Sequence[EncodeRequest]) -> np.ndarray:
        """[requests, values]."""
        shape = (len(batch), max(len(r.ids) for r in batch))
        ids, mask, types = np.full(shape, self._pad, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        for row, r in enumerate(batch):
            ids[row, : len(r.ids)], mask[row, : len(r.ids)] = r.ids, 1
            types[row, : len(r.types)] = r.types
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        given["position_ids"] = np.maximum(mask.cumsum(1) - 1, 0)
        self._infer.infer({name: value for name, value in given.items() if name in self._inputs})
        out = np.asarray(self._infer.get_output_tensor(0).data, dtype=np.float32)
        if self._task is Task.SCORE:
            return 1 / (1 + np.exp(-out.reshape(len(batch), 1)))
        vectors = pool(out, mask, self._pooling)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True) if self._normalize else vectors


def _brief(e: BaseException) -> str:
    lines = [line.strip() for line in str(e).splitlines() if line.strip()]
    return (lines[-1] if lines else type(e).__name__)[:300].rstrip(".")
