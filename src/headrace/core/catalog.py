"""The catalog of models: what an entry may say, which of several wins, and what a deploy request means by it."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from headrace.core.types import Adapter, CatalogEntry, Deployment, DeployRequest, ModelSpec, Resources, check_name
from headrace.errors import Forbidden, HeadraceError, InvalidRequest, NotFound

ENGINES = ("auto", "openvino", "vllm", "simulated")
TASKS = ("", "generate", "embed", "score")
WEIGHT_FORMATS = ("", "fp32", "fp16", "int8", "int4")
MAX_REPLICAS = 1000
MAX_ADAPTERS = 128  # of one deployment
_MAX_CPUS = 4096.0
_MAX_GPUS = 1024
_MAX_CONTEXT = 2**31 - 1
_MAX_TEMPLATE = 256 * 1024
_MAX_ENGINE_ARGS = 64 * 1024
_MAX_DEPTH = 32
_HUB = re.compile(r"hf://[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# A key may have more characters; these need no quoting anywhere.
_S3 = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/(?!\.{1,2}(/|$))[\w.!*'()@=+:,-]+)*/?", re.ASCII)
_FILE = re.compile(r"file:///[^\0?#]{1,4080}")
_SOURCES = "hf://org/name, s3://bucket/prefix, an absolute folder (also as file:///folder) or builtin:demo"
_BUILTIN = re.compile(r"builtin:[a-z0-9-]+")
_PARSER = re.compile(r"[\w.-]{0,64}")
_ADAPTER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_REVISION = re.compile(r"[\w./-]{0,128}")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]i?B|B)?", re.IGNORECASE)
_UNITS = (
    {"b": 1}
    | {f"{c}ib": 1024 ** (i + 1) for i, c in enumerate("kmgt")}
    | {f"{c}b": 1000 ** (i + 1) for i, c in enumerate("kmgt")}
)

_ENTRY_KEYS = (
    "source", "revision", "description", "engine", "context_tokens", "chat_template", "weight_format", "engine_args",
    "task", "tool_parser", "reasoning_parser", "trust_remote_code", "resources", "adapters",
    "openvino", "on_demand",
)  # fmt: skip
_RESOURCE_KEYS = ("cpus", "memory", "gpus", "gpu_memory")

DEFAULT_RESOURCES = Resources(cpus=1.0)


def parse_size(value: object) -> int:
    """Bytes of "2GiB", "512 MB" or a plain number; ValueError if it is no size."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"{value!r} is not a size such as 2GiB")
    found = _SIZE.fullmatch(str(value).strip())
    if not found:
        raise ValueError(f"{value!r} is not a size such as 2GiB")
    size = float(found[1]) * _UNITS[(found[2] or "B").lower()]
    if size >= 2**63:  # the wire's own bound, and more than there is
        raise ValueError(f"{str(value)[:50]!r} is more than any machine has")
    return int(size)


def parse(data: object, where: str, origin: str) -> dict[str, CatalogEntry]:
    """The entries of a catalog file, as YAML loads it: {"models": {name: {…}}}.

    where: names the file in the sentence of the InvalidRequest that anything wrong ends in.
    """
    top = _mapping({} if data is None else data, where, ("models",))
    models = _mapping(top.get("models") or {}, f"{where}: models", None)
    return {name: _entry(name, value, f"{where}: {name}", origin) for name, value in models.items()}


def merge(*layers: Mapping[str, CatalogEntry]) -> dict[str, CatalogEntry]:
    """One catalog of several; of two entries with one name the later layer's counts, as a whole."""
    return dict(sorted({name: e for layer in layers for name, e in layer.items()}.items()))


def check_entry(entry: CatalogEntry) -> CatalogEntry:
    """`entry` if it can stand in a catalog; else InvalidRequest."""
    check_name(entry.name, param="name")
    check_model(entry.model)
    check_resources(entry.resources)
    check_adapters(entry.adapters)
    return entry


def _is_source(s: str) -> bool:
    known = any(p.fullmatch(s) for p in (_HUB, _S3, _FILE, _BUILTIN))
    return known or (s.startswith("/") and "\0" not in s and len(s) < 4096)


def check_model(model: ModelSpec) -> ModelSpec:
    """`model` with its options in one canonical spelling, if every field is in bounds; else InvalidRequest."""
    s = model.source
    if not _is_source(s):
        raise InvalidRequest(f"{s[:200]!r} is not a source: use {_SOURCES}.", param="source")
    if model.source_revision and not s.startswith("hf://"):
        raise InvalidRequest("A revision is for hf:// only; other sources have none.", param="source_revision")
    if model.engine not in ENGINES:
        raise InvalidRequest(f"No engine {model.engine[:50]!r}; there are {', '.join(ENGINES)}.", param="engine")
    if model.weight_format not in WEIGHT_FORMATS:
        formats = ", ".join(WEIGHT_FORMATS[1:])
        raise InvalidRequest(
            f"No weight format {model.weight_format[:50]!r}; there are {formats}.", param="weight_format"
        )
    if model.task not in TASKS:
        raise InvalidRequest(f"No task {model.task[:50]!r}; there are {', '.join(TASKS[1:])}.", param="task")
    for what in ("tool_parser", "reasoning_parser"):
        if not _PARSER.fullmatch(getattr(model, what)):
            raise InvalidRequest(f"{getattr(model, what)[:100]!r} is not the name of a parser.", param=what)
    if not 0 <= model.context_tokens <= _MAX_CONTEXT:
        raise InvalidRequest("context_tokens must be 0 (the model's own) or a positive number.", param="context_tokens")
    if len(model.chat_template) > _MAX_TEMPLATE:
        raise InvalidRequest("The chat template is longer than 256 KiB.", param="chat_template")
    ir = model.openvino_source
    if ir and (ir.startswith("builtin:") or not _is_source(ir)):
        raise InvalidRequest(
            f"{ir[:200]!r} is not a source of OpenVINO IR: use hf://org/name, s3://bucket/prefix or a folder.",
            param="openvino_source",
        )
    for what in ("source_revision", "openvino_revision"):
        if not _REVISION.fullmatch(getattr(model, what)):
            raise InvalidRequest(f"{getattr(model, what)[:200]!r} is not a revision.", param=what)
    options = _engine_args(model.engine_args_json or "{}")
    return replace(model, engine_args_json=json.dumps(options, sort_keys=True, separators=(",", ":")))


def _engine_args(text: str) -> dict[str, object]:
    """The options of an engine, from JSON. InvalidRequest if that is no object, too long or too deep."""
    options: object = None
    try:
        if len(text) <= _MAX_ENGINE_ARGS:
            options = json.loads(text)
    except (ValueError, RecursionError):
        pass
    if not isinstance(options, dict) or _deeper(cast("object", options), _MAX_DEPTH):
        raise InvalidRequest(
            f"engine_args must be a JSON object, of at most {_MAX_ENGINE_ARGS // 1024} KiB and {_MAX_DEPTH} levels.",
            param="engine_args_json",
        )
    return cast("dict[str, object]", options)


def _deeper(value: object, most: int) -> bool:
    """Whether lists and objects stand in one another more than `most` deep."""
    level = [value]
    for _ in range(most + 1):
        inner: list[object] = []
        for x in level:
            if isinstance(x, dict):
                inner += cast("dict[str, object]", x).values()
            elif isinstance(x, list):
                inner += cast("list[object]", x)
        if not inner:
            return False
        level = inner
    return True


def check_adapters(adapters: Sequence[Adapter]) -> tuple[Adapter, ...]:
    """`adapters` by name, if a deployment can have them; else InvalidRequest."""
    for a in adapters:
        if not _ADAPTER.fullmatch(a.name):
            raise InvalidRequest(
                f"{a.name[:100]!r} is not an adapter's name: use up to 64 letters, digits, '.', '_' and '-', beginning"
                " with a letter or digit.",
                param="adapters",
            )
        if a.source.startswith("builtin:"):
            raise InvalidRequest(
                f"The adapter {a.name} needs a source: hf://org/name, s3://bucket/prefix or an absolute folder.",
                param="adapters",
            )
        check_model(ModelSpec(a.source, a.source_revision))
    if len({a.name for a in adapters}) < len(adapters):
        raise InvalidRequest("Two adapters of one deployment have the same name.", param="adapters")
    if len(adapters) > MAX_ADAPTERS:
        raise InvalidRequest(f"A deployment has at most {MAX_ADAPTERS} adapters.", param="adapters")
    return tuple(sorted(adapters, key=lambda a: a.name))


def check_remote_code(model: ModelSpec, forbidden: bool) -> None:
    """Forbidden, if `model` is to run code of its own and that is not allowed here."""
    if forbidden and model.trust_remote_code:
        raise Forbidden(
            "This head runs no code that comes with weights (--forbid_remote_code): deploy without trust_remote_code.",
            param="trust_remote_code",
        )


def check_resources(r: Resources) -> Resources:
    """`r` if every field is in bounds; else InvalidRequest."""
    if not 0.0 <= r.cpus <= _MAX_CPUS:  # also false for NaN
        raise InvalidRequest(f"cpus must be between 0 and {_MAX_CPUS:g}.", param="cpus")
    if not 0 <= r.gpus <= _MAX_GPUS:
        raise InvalidRequest(f"gpus must be between 0 and {_MAX_GPUS}.", param="gpus")
    for name in ("memory_bytes", "gpu_memory_bytes"):
        if not 0 <= getattr(r, name) < 2**60:
            raise InvalidRequest(f"{name} must not be negative, nor more than 2^60.", param=name)
    if r.gpu_memory_bytes and not r.gpus:
        raise InvalidRequest("gpu_memory_bytes needs gpus to be 1 or more.", param="gpu_memory_bytes")
    return r


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a deploy request comes to."""

    name: str
    model: ModelSpec
    resources: Resources
    min_replicas: int
    max_replicas: int
    adapters: tuple[Adapter, ...]


def resolve(request: DeployRequest, catalog: Mapping[str, CatalogEntry], existing: Deployment | None = None) -> Wanted:
    """What `request` asks for, the catalog filling in what it leaves open; `existing` its replica range
    and its adapters.

    existing: the deployment that has `name_of(request)` now. NotFound, naming what there is, for an unknown model;
    InvalidRequest with its `param` for anything out of bounds.
    """
    entry = catalog.get(request.model)
    if entry is None and not request.model.startswith(("/", "hf://", "s3://", "file://", "builtin:")):
        raise NotFound(_unknown(request.model, catalog), param="model", code="model_not_found")
    model = entry.model if entry else ModelSpec(source=request.model.rstrip("/"))
    resources = entry.resources if entry else DEFAULT_RESOURCES
    low, high = _range(request, existing)
    adapters = existing.adapters if existing else entry.adapters if entry else ()
    if request.source_revision is not None:
        model = replace(model, openvino_source="", openvino_revision="")  # which is made of another revision
    model = check_model(
        replace(
            model,
            **_given(request, "engine", "context_tokens", "weight_format", "engine_args_json"),
            **_given(request, "source_revision", "chat_template", "task", "tool_parser", "reasoning_parser"),
            **_given(request, "trust_remote_code"),
        )
    )
    resources = replace(resources, **_given(request, "cpus", "memory_bytes", "gpus", "gpu_memory_bytes"))
    return Wanted(
        name=name_of(request),
        model=model,
        resources=check_resources(_with_gpus(model, resources, asked=request.gpus is not None)),
        min_replicas=low,
        max_replicas=high,
        adapters=check_adapters(adapters if request.adapters is None else request.adapters),
    )


_PARALLEL = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")


def _with_gpus(model: ModelSpec, resources: Resources, *, asked: bool) -> Resources:
    """`resources` with the GPUs that the engine's arguments for parallelism take. 0 on purpose stays 0: on CPUs."""
    if model.engine not in ("vllm", "auto"):
        return resources
    options = cast("dict[str, object]", json.loads(model.engine_args_json))
    taken = 1
    for name in _PARALLEL:
        size = options.get(name, 1)
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InvalidRequest(f"{name} must be a whole number from 1, not {size!r}.", param="engine_args_json")
        taken *= size
    if taken == 1 or (asked and not resources.gpus):
        return resources
    if resources.gpus and resources.gpus != taken:
        named = " x ".join(name for name in _PARALLEL if name in options)
        raise InvalidRequest(f"{named} takes {taken} GPUs, but gpus is {resources.gpus}.", param="gpus")
    return replace(resources, gpus=taken)


def name_of(request: DeployRequest) -> str:
    """The public name that `request` is about: the given one, the catalog's, or the last part of the path."""
    last = re.split(r"[/]", request.model.rstrip("/"))[-1].removeprefix("builtin:")
    return check_name(request.name or last, param="name")


def _given(request: DeployRequest, *names: str) -> dict[str, Any]:
    return {n: v for n in names if (v := getattr(request, n)) is not None}


def _range(request: DeployRequest, existing: Deployment | None) -> tuple[int, int]:
    """The replica range: what is given; else what is there already; else one."""
    low, high = request.min_replicas, request.max_replicas
    if low is None:
        low = existing.min_replicas if existing else 1
        low = low if high is None else min(low, high)
    if high is None:
        high = max(low, existing.max_replicas if existing and request.min_replicas is None else low)
    return check_range(low, high)


def check_range(low: int, high: int) -> tuple[int, int]:
    """(low, high) if it is a replica range; else InvalidRequest."""
    if not 0 <= low <= high <= MAX_REPLICAS:
        raise InvalidRequest(
            f"The replica range {low} to {high} is not possible: 0 ≤ min ≤ max ≤ {MAX_REPLICAS}.", param="max_replicas"
        )
    return low, high


def _unknown(name: str, catalog: Mapping[str, CatalogEntry]) -> str:
    near = difflib.get_close_matches(name, catalog, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    return f"No model {name[:100]!r} in the catalog; there are {', '.join(sorted(catalog)) or 'none'}.{hint}"


# --- the file's schema ---


def _entry(name: str, value: object, where: str, origin: str) -> CatalogEntry:
    said = _mapping(value, where, _ENTRY_KEYS)
    if not said.get("source"):
        raise InvalidRequest(f"{where}: needs a source ({_SOURCES}).")
    ir = _mapping(said.get("openvino") or {}, f"{where}: openvino", ("source", "revision"))
    options = _mapping(said.get("engine_args") or {}, f"{where}: engine_args", None)
    try:
        entry = CatalogEntry(
            name=name,
            model=ModelSpec(
                source=_text(said, "source", where),
                source_revision=_text(said, "revision", where),
                engine=_text(said, "engine", where) or "auto",
                context_tokens=_whole(said, "context_tokens", where),
                chat_template=_text(said, "chat_template", where),
                weight_format=_text(said, "weight_format", where),
                engine_args_json=json.dumps(options),
                task=_text(said, "task", where),
                tool_parser=_text(said, "tool_parser", where),
                reasoning_parser=_text(said, "reasoning_parser", where),
                trust_remote_code=_flag(said, "trust_remote_code", where),
                openvino_source=_text(ir, "source", f"{where}: openvino"),
                openvino_revision=_text(ir, "revision", f"{where}: openvino"),
            ),
            resources=_resources(said.get("resources"), f"{where}: resources"),
            description=_text(said, "description", where),
            origin=origin,
            adapters=_adapters(said.get("adapters"), f"{where}: adapters"),
            on_demand=_flag(said, "on_demand", where),
        )
        return replace(check_entry(entry), model=check_model(entry.model))
    except (HeadraceError, ValueError, TypeError) as e:
        told = str(e)
        raise InvalidRequest(told if told.startswith(where) else f"{where}: {told}") from e


def _adapters(value: object, where: str) -> tuple[Adapter, ...]:
    """{name: source, or {source, revision}}."""
    found: list[Adapter] = []
    for name, said in _mapping(value or {}, where, None).items():
        one = f"{where}: {name}"
        given = _mapping({"source": said} if isinstance(said, str) else said, one, ("source", "revision"))
        found.append(Adapter(name, _text(given, "source", one), _text(given, "revision", one)))
    return check_adapters(found)


def _resources(value: object, where: str) -> Resources:
    if value is None:
        return DEFAULT_RESOURCES
    said = _mapping(value, where, _RESOURCE_KEYS)
    cpus = said.get("cpus", DEFAULT_RESOURCES.cpus)
    if isinstance(cpus, bool) or not isinstance(cpus, int | float):
        raise InvalidRequest(f"{where}: cpus must be a number, not {cpus!r}.")
    sizes: list[int] = []
    for key in ("memory", "gpu_memory"):
        try:
            sizes.append(parse_size(said.get(key, 0)))
        except ValueError as e:
            raise InvalidRequest(f"{where}: {key}: {e}.") from e
    return Resources(float(cpus), sizes[0], _whole(said, "gpus", where), sizes[1])


def _mapping(value: object, where: str, keys: tuple[str, ...] | None) -> dict[str, object]:
    """`value` as a mapping with nothing but `keys` (None: any); else InvalidRequest naming the nearest key."""
    if not isinstance(value, dict):
        raise InvalidRequest(f"{where} must be a mapping, not {type(value).__name__}.")
    found: dict[str, object] = {}
    for key, item in cast("dict[object, object]", value).items():
        if not isinstance(key, str):
            raise InvalidRequest(f"{where}: the key {key!r} must be a string; put it in quotes.")
        if keys is not None and key not in keys:
            near = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(keys)}."
            raise InvalidRequest(f"{where}: unknown key {key!r}; {hint}")
        found[key] = item
    return found


def _text(said: Mapping[str, object], key: str, where: str) -> str:
    value = said.get(key)
    if value is not None and not isinstance(value, str):
        raise InvalidRequest(f"{where}: {key} must be a string, not {value!r}; put it in quotes.")
    return value or ""


def _flag(said: Mapping[str, object], key: str, where: str) -> bool:
    value = said.get(key, False)
    if not isinstance(value, bool):
        raise InvalidRequest(f"{where}: {key} must be true or false, not {value!r}.")
    return value


def _whole(said: Mapping[str, object], key: str, where: str) -> int:
    value = said.get(key, 0)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequest(f"{where}: {key} must be a whole number, not {value!r}.")
    return value
