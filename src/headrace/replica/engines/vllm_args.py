"""What a deployment says to vLLM: checked against vLLM's own arguments, with defaults for the machine it runs on."""

from __future__ import annotations

import difflib
import math
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import psutil

from headrace.core.types import ModelSpec, Resources
from headrace.errors import UserError

OURS = frozenset(
    {
        "model", "tokenizer", "served_model_name", "max_model_len", "trust_remote_code", "revision", "code_revision",
        "tokenizer_revision", "download_dir", "hf_token", "disable_log_stats", "enable_log_requests",
        "skip_tokenizer_init",
    }
)  # fmt: skip
"""Arguments of vLLM that Headrace sets itself, from the deployment's own fields."""

PARALLEL = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
"""Over how many processes a model is spread is the product of these."""

_STALL_S = 60.0
_GIB = 1024**3


def split_off_ours(given: Mapping[str, Any]) -> tuple[dict[str, Any], float]:
    """vLLM's arguments, and `stall_s`: so many seconds without a step while requests run mean a dead engine."""
    rest = dict(given)
    stall_s = rest.pop("stall_s", _STALL_S)
    if isinstance(stall_s, bool) or not isinstance(stall_s, int | float) or stall_s <= 0:
        raise UserError(f"The vllm engine's argument 'stall_s' must be a number of seconds, not {stall_s!r}.")
    return rest, float(stall_s)


def check_names(given: Iterable[str], known: Iterable[str]) -> None:
    """UserError, naming the nearest one, for an argument that vLLM does not have or that is ours to set."""
    names = sorted(n for n in known if n not in OURS and not n.startswith("_"))
    for name in given:
        if name in OURS:
            raise UserError(f"The vllm engine's argument {name!r} is set by Headrace; see `headrace deploy --help`.")
        if name not in names:
            near = difflib.get_close_matches(name.replace("-", "_"), [*names, "stall_s"], n=1)
            hint = f"did you mean {near[0]!r}?" if near else "`vllm serve --help=all` lists them."
            raise UserError(f"vLLM has no argument {name!r}: {hint}")


def engine_args(kind: type, folder: Path, spec: ModelSpec, given: Mapping[str, Any], resources: Resources) -> Any:
    """vLLM's own dataclass `kind` for one replica. UserError for what vLLM does not know, or refuses."""
    check_names(given, [f.name for f in fields(kind)])
    own: dict[str, Any] = {
        "model": str(folder),
        "trust_remote_code": spec.trust_remote_code,
        "disable_log_stats": True,  # its own loggers; ours is added
        "max_model_len": spec.context_tokens or None,
    }
    if resources.gpus > 1 and not set(PARALLEL) & set(given):
        own["tensor_parallel_size"] = resources.gpus
    if spec.task in ("embed", "score"):
        own["runner"] = "pooling"
    if spec.reasoning_parser:
        own["reasoning_parser"] = spec.reasoning_parser  # a structured answer begins after the reasoning
    try:
        return kind(**own | dict(given))
    except (TypeError, ValueError) as e:
        raise UserError(f"vLLM refuses its arguments: {brief(e)}") from e


def cpu_defaults(given: Mapping[str, Any], resources: Resources, own_float32: bool) -> dict[str, Any]:
    """Arguments for a machine without a GPU, where the deployment leaves them open.

    Compiling takes minutes there for a large model, but a pipeline's later stages get their buffers only from the
    warm-up that goes with it. bfloat16 without hardware for it is slower than float32.
    """
    stages = given.get("pipeline_parallel_size", 1) not in (1, None)
    if stages and given.get("enforce_eager"):
        raise UserError("On a CPU vLLM's pipeline_parallel_size needs enforce_eager=false; leave enforce_eager out.")
    found: dict[str, Any] = {"enforce_eager": not stages}
    if own_float32:
        found["dtype"] = "float32"
    if "kv_cache_memory_bytes" not in given and "VLLM_CPU_KVCACHE_SPACE" not in os.environ:
        free = psutil.virtual_memory().available
        found["kv_cache_memory_bytes"] = resources.memory_bytes // 2 or min(4 * _GIB, free // 10)
    return {k: v for k, v in found.items() if k not in given}


def workers_of(given: Mapping[str, Any]) -> int:
    """How many processes run the model; 1 for what is no number, which vLLM refuses itself."""
    sizes = (given.get(name, 1) for name in PARALLEL)
    return math.prod(n for n in sizes if isinstance(n, int) and not isinstance(n, bool) and n > 1)


def cpu_environment(resources: Resources, workers: int = 1) -> dict[str, str]:
    """Variables that vLLM's processes need on a CPU, where the user has not set them.

    Without Intel's OpenMP library and a list of CPUs it runs at half speed on small machines; each worker has its own.
    """
    found: dict[str, str] = {}
    library = Path(sys.prefix) / "lib" / "libiomp5.so"
    loaded = os.environ.get("LD_PRELOAD", "")
    if "omp" not in loaded and library.is_file():
        found["LD_PRELOAD"] = f"{library}:{loaded}".rstrip(":")
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if "VLLM_CPU_OMP_THREADS_BIND" not in os.environ and cpus:
        wanted = max(1, int(resources.cpus)) if resources.cpus > 0 else len(cpus)
        each = min(wanted, len(cpus)) // workers
        if wanted >= len(cpus) and each:
            lists = (cpus[i * each : (i + 1) * each] for i in range(workers))
            found["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(",".join(map(str, c)) for c in lists)
        else:
            # Replicas of one machine would all be bound to its first CPUs.
            threads = str(max(1, each))
            found |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": threads, "KMP_BLOCKTIME": "5"}
    return found


def brief(e: BaseException) -> str:
    """What vLLM said, in a line for people."""
    while isinstance(e, BaseExceptionGroup):
        e = e.exceptions[0]
    errors = getattr(e, "errors", None)
    if callable(errors):  # pydantic's
        try:
            found: Any = errors()
            first: Any = found[0]
            where = ".".join(str(x) for x in first["loc"])
            return f"{where}: {first['msg']}".lstrip(": ").rstrip(".")[:400] + "."
        except (LookupError, TypeError):
            pass
    lines = [line.strip() for line in str(e).splitlines() if line.strip()]
    return (lines[-1] if lines else type(e).__name__)[:400].rstrip(".") + "."
