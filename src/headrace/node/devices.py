"""What this machine, or the part of it that our control group leaves us, has to offer: CPUs, memory, NVIDIA GPUs.

`root` is where the file system begins; tests give a folder of their own.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import psutil
import structlog

from headrace.core.types import Gpu, Resources
from headrace.errors import UserError
from headrace.node.cgroups import ROOT, groups, number, read

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Devices:
    resources: Resources
    gpus: tuple[Gpu, ...] = ()


def detect(num_cpus: float | None, num_gpus: int | None, memory_bytes: int | None) -> Devices:
    """What there is, or what we were told to offer. UserError for numbers that cannot be."""
    return choose(
        cpus=usable_cpus(),
        memory=usable_memory(),
        gpus=visible(nvidia_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES")),
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        memory_bytes=memory_bytes,
    )


def choose(
    *,
    cpus: float,
    memory: int,
    gpus: tuple[tuple[Gpu, str], ...] | None,
    num_cpus: float | None,
    num_gpus: int | None,
    memory_bytes: int | None,
) -> Devices:
    """What to offer of what there is. `gpus`: each with its uuid; None: no NVIDIA driver. CPUs and memory may be
    overstated (they are for accounting); GPUs may not, since each is handed to a replica by its number."""
    if num_cpus is not None and not num_cpus > 0:
        raise UserError(f"--num_cpus must be more than 0, not {num_cpus:g}.")
    if memory_bytes is not None and memory_bytes <= 0:
        raise UserError(f"--memory_bytes must be more than 0, not {memory_bytes}.")
    if num_gpus is not None and num_gpus < 0:
        raise UserError(f"--num_gpus must not be negative: {num_gpus}.")
    there = tuple(gpu for gpu, _ in gpus or ())
    if num_gpus is not None and num_gpus > len(there):
        found = f"only {len(there)} can be used here" if gpus is not None else "there is no NVIDIA driver here"
        raise UserError(f"--num_gpus={num_gpus}, but {found}: leave the flag out to use what there is.")
    offered = there if num_gpus is None else there[:num_gpus]
    least = min((gpu.memory_bytes for gpu in offered), default=0)
    return Devices(
        Resources(num_cpus or cpus, memory_bytes or memory, len(offered), least),
        offered,
    )


# --- CPUs and memory ---


def usable_cpus(root: Path = ROOT, affinity: int | None = None) -> float:
    """CPUs that we may use: the affinity (which obeys the cpuset), or the tightest quota above us if that is less."""
    if affinity is None:
        affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cpus = float(affinity)
    for group in groups(root, "cpu"):
        quota, period = _quota(group)
        if quota > 0 and period > 0:
            cpus = min(cpus, quota / period)
    return round(max(cpus, 0.01), 2)


def usable_memory(root: Path = ROOT, total: int | None = None) -> int:
    """Bytes of memory that we may use: the machine's, or the tightest limit above us if that is less."""
    memory = psutil.virtual_memory().total if total is None else total
    for group in groups(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = number(read(group / name))
            if limit > 0:
                memory = min(memory, limit)
    return memory


def _quota(group: Path) -> tuple[int, int]:
    """(quota, period) in µs of one control group, version 2 or 1; quota ≤ 0: none."""
    both = read(group / "cpu.max").split()
    if len(both) == 2:
        return number(both[0]), number(both[1])
    return number(read(group / "cpu.cfs_quota_us")), number(read(group / "cpu.cfs_period_us"))


# --- GPUs ---


def nvidia_gpus() -> tuple[tuple[Gpu, str], ...] | None:
    """The GPUs that NVML sees, each with its uuid; None where there is no driver (or no NVML)."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    found: list[tuple[Gpu, str]] = []
    try:
        for index in range(pynvml.nvmlDeviceGetCount()):
            try:
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
                name, uuid = _text(pynvml.nvmlDeviceGetName(handle)), _text(pynvml.nvmlDeviceGetUUID(handle))
            except pynvml.NVMLError as e:  # one broken GPU must not hide the others
                log.warning("gpu_unreadable", index=index, error=str(e))
                continue
            found.append((Gpu(index, name, int(memory.total), int(memory.free)), uuid))
    except pynvml.NVMLError as e:
        log.warning("gpus_unreadable", error=str(e))
    finally:
        pynvml.nvmlShutdown()
    return tuple(found)


def visible(gpus: tuple[tuple[Gpu, str], ...] | None, setting: str | None) -> tuple[tuple[Gpu, str], ...] | None:
    """Those of `gpus` that CUDA_VISIBLE_DEVICES (numbers or the beginnings of uuids) leaves to us."""
    if gpus is None or setting is None:
        return gpus
    wanted = [part.strip() for part in setting.split(",")]
    return tuple(
        (gpu, uuid)
        for gpu, uuid in gpus
        if any(part == str(gpu.index) or (part.startswith("GPU-") and uuid.startswith(part)) for part in wanted)
    )


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
