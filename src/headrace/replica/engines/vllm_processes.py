"""How vLLM's own processes are started: forked from one that has imported vLLM, while the replica still imports it.

Stock vLLM starts the engine's process and then its worker's anew, and each imports for 10 s on two cores. Here a server
(multiprocessing's fork server) begins to import when the replica begins to live; the engine's process is a fork of it,
and the worker's a fork of the engine's, as vLLM itself does it where nothing forbids. No process is forked after it has
started CUDA. The kernel ends each of them with its parent: none outlives the replica, however that ends.

Intel's OpenMP library binds the first thread of every fork to the machine's first CPU, where all engines of all
replicas would then wait for each other while the rest idles: each fork gets back the CPUs that the server began with.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import multiprocessing.forkserver
import os
import re
import signal
import stat
import sys
from collections.abc import Mapping, Set
from typing import Any

PRELOADED = "headrace.replica.engines.vllm_preload"
_PR_SET_PDEATHSIG = 1


def start_server(environment: Mapping[str, str]) -> None:
    """Begin to import vLLM in a process to fork from; `environment` is what it and its forks find beside ours.

    Call it from the main thread: the server ends with the thread that started it.
    """
    if sys.platform != "linux":
        return
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        multiprocessing.set_forkserver_preload([PRELOADED])
        multiprocessing.forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)


def fork_engines_from_server() -> None:
    """Have vLLM start its engine's process from the server. Call before AsyncLLM is made."""
    if sys.platform == "linux":
        _use("vllm.v1.engine.utils", "forkserver")


def fork_workers(cpus: Set[int]) -> None:
    """In the server: have engines fork their workers, and have every fork end with its parent and run on `cpus`."""
    _use("vllm.v1.executor.multiproc_executor", "fork")
    os.register_at_fork(after_in_child=end_with_parent)
    if cpus:
        # Python's own hooks run after those of the libraries.
        os.register_at_fork(after_in_child=lambda: os.sched_setaffinity(0, cpus))


def end_with_parent() -> None:
    """Ask the kernel to kill this process when the thread that forked it ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


_ERROR = re.compile(rb"((?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception): .+)$", re.MULTILINE)
_TAIL_BYTES = 256 * 1024


def last_error() -> str:
    """The last exception that a process of vLLM's has printed to our log, for a failure whose own words say nothing.

    "" if our standard error is no file, or none is there.
    """
    try:
        path = os.readlink("/proc/self/fd/2")
        if not stat.S_ISREG(os.stat(path).st_mode):
            return ""
        with open(path, "rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
            found = [m for m in _ERROR.findall(log.read()) if b"Engine core initialization failed" not in m]
    except OSError:
        return ""
    return found[-1].decode(errors="replace").strip()[:400] if found else ""


def _use(module_name: str, method: str) -> None:
    """Make a module of vLLM's use a start method that its settings do not offer, unless CUDA is running already."""
    from vllm.utils.system_utils import cuda_is_initialized  # pyright: ignore[reportMissingImports]

    module: Any = __import__(module_name, fromlist=["get_mp_context"])
    stock = module.get_mp_context

    def get_mp_context() -> Any:
        return stock() if cuda_is_initialized() else multiprocessing.get_context(method)

    module.get_mp_context = get_mp_context
