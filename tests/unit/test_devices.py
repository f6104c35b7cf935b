"""What a node offers, read from made-up file trees."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.core.types import Gpu
from headrace.errors import UserError
from headrace.node.devices import choose, detect, nvidia_gpus, usable_cpus, usable_memory, visible

GIB = 1024**3


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_a_bare_machine_is_used_whole(tmp_path: Path) -> None:
    assert usable_cpus(tmp_path, affinity=6) == 6
    assert usable_memory(tmp_path, total=8 * GIB) == 8 * GIB


def test_v2_limits_in_a_container(tmp_path: Path) -> None:
    tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/\n",
            "sys/fs/cgroup/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/memory.max": f"{2 * GIB}\n",
        },
    )
    assert usable_cpus(tmp_path, affinity=8) == 1.5
    assert usable_memory(tmp_path, total=8 * GIB) == 2 * GIB


def test_v2_the_tightest_limit_of_all_above_counts(tmp_path: Path) -> None:
    tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/user.slice/app.service\n",
            "sys/fs/cgroup/user.slice/cpu.max": "300000 100000\n",
            "sys/fs/cgroup/user.slice/memory.max": f"{3 * GIB}\n",
            "sys/fs/cgroup/user.slice/app.service/cpu.max": "max 100000\n",
            "sys/fs/cgroup/user.slice/app.service/memory.max": "max\n",
        },
    )
    assert usable_cpus(tmp_path, affinity=8) == 3
    assert usable_memory(tmp_path, total=8 * GIB) == 3 * GIB


def test_affinity_below_the_quota_counts(tmp_path: Path) -> None:
    tree(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "400000 100000\n"})
    assert usable_cpus(tmp_path, affinity=2) == 2


def test_v1_limits_where_the_container_mounts_its_own_group_as_root(tmp_path: Path) -> None:
    tree(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/docker/0123\n3:cpu,cpuacct:/docker/0123\n1:name=systemd:/docker/0123\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "50000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{GIB}\n",
        },
    )
    assert usable_cpus(tmp_path, affinity=8) == 0.5
    assert usable_memory(tmp_path, total=8 * GIB) == GIB


def test_v1_without_limits(tmp_path: Path) -> None:
    tree(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/jobs/a\n1:cpu:/\n0::/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/jobs/a/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        },
    )
    assert usable_cpus(tmp_path, affinity=2) == 2
    assert usable_memory(tmp_path, total=8 * GIB) == 8 * GIB


def test_garbage_is_no_limit(tmp_path: Path) -> None:
    tree(
        tmp_path, {"proc/self/cgroup": "0::/\nnonsense\n", "sys/fs/cgroup/cpu.max": "x", "sys/fs/cgroup/memory.max": ""}
    )
    assert usable_cpus(tmp_path, affinity=2) == 2
    assert usable_memory(tmp_path, total=GIB) == GIB


A = (Gpu(0, "H100", 80 * GIB, 79 * GIB), "GPU-aaaa-1")
B = (Gpu(1, "H100", 80 * GIB, 10 * GIB), "GPU-bbbb-2")
C = (Gpu(2, "L4", 24 * GIB, 24 * GIB), "GPU-cccc-3")


def offer(
    gpus: tuple[tuple[Gpu, str], ...] | None = None,
    num_cpus: float | None = None,
    num_gpus: int | None = None,
    memory_bytes: int | None = None,
) -> tuple[float, int, int, list[int]]:
    found = choose(cpus=8, memory=16 * GIB, gpus=gpus, num_cpus=num_cpus, num_gpus=num_gpus, memory_bytes=memory_bytes)
    r = found.resources
    return r.cpus, r.memory_bytes, r.gpus, [g.index for g in found.gpus]


def test_all_there_is_is_offered_unless_told_otherwise() -> None:
    assert offer((A, B, C)) == (8, 16 * GIB, 3, [0, 1, 2])
    assert offer((A, B, C), num_cpus=2, num_gpus=1, memory_bytes=GIB) == (2, GIB, 1, [0])
    assert offer((A,), num_gpus=0) == (8, 16 * GIB, 0, [])
    assert offer(None, num_gpus=0) == (8, 16 * GIB, 0, [])


@pytest.mark.parametrize(
    ("gpus", "flags", "words"),
    [
        (None, {"num_gpus": 1}, "no NVIDIA driver"),
        ((A,), {"num_gpus": 2}, "only 1 can be used"),
        ((A,), {"num_gpus": -1}, "--num_gpus"),
        (None, {"num_cpus": 0}, "--num_cpus"),
        (None, {"num_cpus": float("nan")}, "--num_cpus"),
        (None, {"memory_bytes": 0}, "--memory_bytes"),
    ],
)
def test_what_cannot_be_is_refused_by_its_flag(
    gpus: tuple[tuple[Gpu, str], ...] | None, flags: dict[str, int], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        offer(gpus, **flags)


@pytest.mark.parametrize(
    ("setting", "left"), [(None, [0, 1, 2]), ("", []), ("2,0", [0, 2]), ("GPU-bbbb", [1]), ("-1", []), ("GPU", [])]
)
def test_cuda_visible_devices_narrows_what_is_offered(setting: str | None, left: list[int]) -> None:
    seen = visible((A, B, C), setting)
    assert seen is not None
    assert [gpu.index for gpu, _ in seen] == left


def test_the_real_machine_has_something_and_missing_drivers_do_no_harm() -> None:
    found = detect(None, None, None)
    assert found.resources.cpus > 0
    assert found.resources.memory_bytes > 64 * 1024**2
    if nvidia_gpus() is None:
        assert found.gpus == ()
