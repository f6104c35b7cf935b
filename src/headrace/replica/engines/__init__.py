"""The engines, and how one is opened. Their packages are imported only when they are used."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.core.types import ModelSpec, Resources
from headrace.engines_here import HOW_TO_INSTALL, installed, pick
from headrace.errors import UserError
from headrace.replica.conversion import converted
from headrace.replica.engine import Engine
from headrace.replica.models import Model, Report, Weights, resolve


@dataclass(frozen=True, slots=True)
class Opened:
    """An engine with its model, not started yet, and the folder its front end reads."""

    engine: Engine
    model: Model


def open_engine(spec: ModelSpec, resources: Resources, cache_dir: Path, report: Report) -> Opened:
    """Find, fetch, convert and load what `spec` asks for. Slow; call it in a thread.

    UserError: trying again cannot help. Other HeadraceErrors: it may.
    """
    name, _ = pick(spec.engine, installed(), resources.gpus)
    options = _options(spec)
    if name == "simulated":
        from headrace.replica.engines.simulated import SimulatedEngine

        return Opened(SimulatedEngine(options, spec, report), Model(None))
    if name not in HOW_TO_INSTALL:
        raise UserError(f"There is no engine {name!r}: use auto, openvino, vllm or simulated.")
    if name not in installed():
        raise UserError(HOW_TO_INSTALL[name])
    from headrace.replica.engines.openvino import OpenVinoEngine, OpenVinoOptions

    settings = OpenVinoOptions.parse(options)
    model = resolve(spec.source, spec.source_revision, cache_dir, report)
    assert model.folder
    if model.weights is not Weights.OPENVINO:
        model = Model(converted(model.folder, spec.weight_format, cache_dir, report), Weights.OPENVINO)
    assert model.folder
    report("loading the model", -1.0)
    return Opened(OpenVinoEngine(model.folder, settings, resources, spec.context_tokens), model)


def _options(spec: ModelSpec) -> dict[str, Any]:
    try:
        options = json.loads(spec.engine_args_json or "{}")
        if not isinstance(options, dict):
            raise ValueError("not an object")
    except ValueError as e:
        raise UserError(f"The engine options are not a JSON object: {e}.") from e
    return options
