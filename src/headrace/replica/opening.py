"""How an engine is opened with its model."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.core.streams import Task
from headrace.core.types import ModelSpec, Resources
from headrace.engines_here import ENGINES, how_to_install, installed, pick
from headrace.errors import UserError
from headrace.replica.config_files import check_config_files
from headrace.replica.conversion import converted
from headrace.replica.engine import Engine
from headrace.replica.engines import vllm_args, vllm_parsers, vllm_processes
from headrace.replica.engines.hosted import Host, HostedEngine
from headrace.replica.engines.openvino_options import OpenVinoOptions
from headrace.replica.engines.openvino_parsers import Parsers
from headrace.replica.remote_code import remote_code_said
from headrace.replica.weights import Cache, Model, Report, Weights, resolve


@dataclass(frozen=True, slots=True)
class Opened:
    """An engine with its model, not started yet, and the folder its front end reads."""

    engine: Engine
    model: Model


def prepare(spec: ModelSpec, resources: Resources) -> Host | None:
    """Begin with what can go on beside all else. Quick; call it from the main thread, at the start of the process.

    What it returns is for `open_engine`.
    """
    name, _ = pick(spec.engine, installed(), resources.gpus)
    if name == "openvino" and name in installed() and spec.task not in ("embed", "score"):
        return Host()
    if name == "vllm" and name in installed():
        workers = 1
        with contextlib.suppress(UserError):  # `open_engine` will say it
            workers = vllm_args.workers_of(_engine_args(spec))
        vllm_processes.start_server({} if resources.gpus else vllm_args.cpu_environment(resources, workers))
    return None


def open_engine(
    spec: ModelSpec,
    resources: Resources,
    cache: Cache,
    report: Report,
    *,
    adapters: bool = False,
    host: Host | None = None,
) -> Opened:
    """Find, fetch, convert and load what `spec` asks for. Slow; call it in a thread. `host`: what `prepare` returned.

    adapters: some are wanted already, for engines that make room for them at the start or never.
    UserError: trying again cannot help. Other HeadraceErrors: it may.
    """
    name, why = pick(spec.engine, installed(), resources.gpus)
    report(f"starting the engine {name} ({why})", -1.0)
    given = _engine_args(spec)
    if name == "simulated":
        from headrace.replica.engines.simulated import SimulatedEngine

        return Opened(SimulatedEngine(given, spec, report), Model(None))
    if name not in ENGINES:
        raise UserError(f"There is no engine {name!r}: use auto, openvino, vllm or simulated.")
    if name not in installed():
        raise UserError(how_to_install(name))
    if name == "vllm":
        return _open_vllm(spec, given, resources, cache, report, adapters)
    if host:
        return _open_openvino(spec, given, resources, cache, report, host)
    return _open_encoder(spec, given, resources, cache, report)


def _open_openvino(
    spec: ModelSpec, given: dict[str, Any], resources: Resources, cache: Cache, report: Report, host: Host
) -> Opened:
    settings = OpenVinoOptions.parse(given)
    parsers = Parsers(spec.tool_parser, spec.reasoning_parser)
    folder = _openvino_folder(spec, cache, report)
    report("loading the model", -1.0)
    loaded = host.load(folder, settings, resources, spec.context_tokens, parsers)
    return Opened(HostedEngine(host, loaded, settings, parsers), Model(folder, Weights.OPENVINO))


def _open_encoder(spec: ModelSpec, given: dict[str, Any], resources: Resources, cache: Cache, report: Report) -> Opened:
    from headrace.replica.engines.openvino_encode import EncodeOptions, OpenVinoEncoder

    if spec.tool_parser or spec.reasoning_parser:
        raise UserError(f"A model of task {spec.task} generates no text; leave tool_parser and reasoning_parser out.")
    settings = EncodeOptions.parse(given)
    folder = _openvino_folder(spec, cache, report)
    report("loading the model", -1.0)
    engine = OpenVinoEncoder(folder, Task(spec.task), settings, resources, spec.context_tokens)
    return Opened(engine, Model(folder, Weights.OPENVINO))


def _openvino_folder(spec: ModelSpec, cache: Cache, report: Report) -> Path:
    """The model as OpenVINO IR: ready-made where there is some and the weights' format does not matter."""
    source, revision = spec.source, spec.source_revision
    if spec.openvino_source and not spec.weight_format:
        source, revision = spec.openvino_source, spec.openvino_revision
    model = resolve(source, revision, cache, report, remote_code=spec.trust_remote_code)
    assert model.folder
    check_config_files(model.folder)
    if model.weights is Weights.OPENVINO:
        return model.folder
    return converted(model.folder, spec.weight_format, cache, report, spec.task, remote_code=spec.trust_remote_code)


def _open_vllm(
    spec: ModelSpec, given: dict[str, Any], resources: Resources, cache: Cache, report: Report, adapters: bool
) -> Opened:
    vllm_parsers.check_before_import(spec.tool_parser, spec.reasoning_parser, given)
    remote_code, prefer = spec.trust_remote_code, Weights.SAFETENSORS
    model = resolve(spec.source, spec.source_revision, cache, report, remote_code=remote_code, prefer=prefer)
    assert model.folder
    check_config_files(model.folder)
    if model.weights is Weights.OPENVINO and not any(model.folder.glob("*.safetensors")):
        raise UserError(f"{model.folder} has weights for OpenVINO only; vLLM needs safetensors.")
    if spec.weight_format:
        raise UserError("weight_format is OpenVINO's; for vLLM say --engine_arg dtype=… or quantization=….")
    report("importing vLLM", -1.0)
    from headrace.replica.engines.vllm import VllmEngine

    report("loading the model", -1.0)
    with remote_code_said(model.folder):
        return Opened(VllmEngine(model.folder, spec, given, resources, adapters=adapters), model)


def _engine_args(spec: ModelSpec) -> dict[str, Any]:
    try:
        given = json.loads(spec.engine_args_json or "{}")
        if not isinstance(given, dict):
            raise ValueError("not an object")
    except ValueError as e:
        raise UserError(f"The engine arguments are not a JSON object: {e}.") from e
    return given
