"""Imported by the server that vLLM's processes are forked from, and by nothing else: what those processes need."""

from __future__ import annotations

import os
from importlib.util import find_spec

from headrace.replica import telemetry
from headrace.replica.engines.vllm_processes import end_with_parent, fork_workers

end_with_parent()
_CPUS = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set[int]()
telemetry.forbid()
import vllm.v1.engine.core  # noqa: E402  # pyright: ignore[reportMissingImports]
import vllm.v1.executor.multiproc_executor  # noqa: E402, F401  # pyright: ignore[reportMissingImports]
from vllm.platforms import current_platform  # noqa: E402  # pyright: ignore[reportMissingImports]

# The worker's own modules, which vLLM looks up by name.
_WORKERS = ("vllm.v1.worker.cpu_worker",) if current_platform.is_cpu() else ("vllm.v1.worker.gpu_worker",)
for _name in _WORKERS:
    if find_spec(_name) is not None:
        __import__(_name)
fork_workers(_CPUS)
