"""The engines, and how one is opened. Their packages are imported only when they are used."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from headrace.core.types import ModelSpec, Resources
from headrace.engines_here import HOW_TO_INSTALL, installed, pick
from headrace.errors import UserError
from headrace.replica.conversion import converted
from headrace.replica.engine import Engine
from headrace.replica.engines import vllm_args, vllm_processes
from headrace.replica.remote_code import remote_code_said
from headrace.replica.weights import Cache, Model, Report, Weights, resolve


@dataclass(frozen=True, slots=True)
class Opened:
    """An engine with its model, not started yet, and the folder its front end reads."""

    engine: Engine
    model: Model


def prepare(spec: ModelSpec, resources: Resources) -> None:
    """Begin with what can go on beside all else. Quick; call it from the main thread, at the start of the process."""
    name, _ = pick(spec.engine, installed(), resources.gpus)
    if name == "vllm" and name in installed():
        vllm_processes.start_server({} if resources.gpus else vllm_args.cpu_environment(resources))


def open_engine(spec: ModelSpec, resources: Resources, cache: Cache, report: Report) -> Opened:
    """Find, fetch, convert and load what `spec` asks for. Slow; call it in a thread.

    UserError: trying again cannot help. Other HeadraceErrors: it may.
    """
    name, why = pick(spec.engine, installed(), resources.gpus)
    report(f"starting the engine {name} ({why})", -1.0)
    given = _engine_args(spec)
    if name == "simulated":
        from headrace.replica.engines.simulated import SimulatedEngine

        return Opened(SimulatedEngine(given, spec.context_tokens, report), Model(None))
    if name not in HOW_TO_INSTALL:
        raise UserError(f"There is no engine {name!r}: use auto, openvino, vllm or simulated.")
    if name not in installed():
        raise UserError(HOW_TO_INSTALL[name])
    return (_open_vllm if name == "vllm" else _open_openvino)(spec, given, resources, cache, report)


def _open_openvino(
    spec: ModelSpec, given: dict[str, Any], resources: Resources, cache: Cache, report: Report
) -> Opened:
    from headrace.replica.engines.openvino import OpenVinoEngine, OpenVinoOptions

    settings = OpenVinoOptions.parse(given)
    model = resolve(spec.source, spec.source_revision, cache, report, remote_code=spec.trust_remote_code)
    assert model.folder
    if model.weights is not Weights.OPENVINO:
        made = converted(model.folder, spec.weight_format, cache, report, remote_code=spec.trust_remote_code)
        model = Model(made, Weights.OPENVINO)
    assert model.folder
    report("loading the model", -1.0)
    return Opened(OpenVinoEngine(model.folder, settings, resources, spec.context_tokens), model)


def _open_vllm(spec: ModelSpec, given: dict[str, Any], resources: Resources, cache: Cache, report: Report) -> Opened:
    model = resolve(
        spec.source,
        spec.source_revision,
        cache,
        report,
        remote_code=spec.trust_remote_code,
        prefer=Weights.SAFETENSORS,
    )
    assert model.folder
    if model.weights is Weights.OPENVINO and not any(model.folder.glob("*.safetensors")):
        raise UserError(f"{model.folder} has weights for OpenVINO only; vLLM needs safetensors.")
    if spec.weight_format:
        raise UserError("weight_format is OpenVINO's; for vLLM say --engine_arg dtype=… or quantization=….")
    report("importing vLLM", -1.0)
    from headrace.replica.engines.vllm import VllmEngine

    report("loading the model", -1.0)
    with remote_code_said(model.folder):
        return Opened(VllmEngine(model.folder, spec, given, resources), model)


def _engine_args(spec: ModelSpec) -> dict[str, Any]:
    try:
        given = json.loads(spec.engine_args_json or "{}")
        if not isinstance(given, dict):
            raise ValueError("not an object")
    except ValueError as e:
        raise UserError(f"The engine arguments are not a JSON object: {e}.") from e
    return given
