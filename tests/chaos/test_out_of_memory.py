"""A control group that runs out of memory: the kernel kills the replica, and its reason says so."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from authority_fixtures import trusted
from integration.node_fixtures import HERE, Head, head_double, spec
from namespaces import remove_group

from headrace.core.phase import Phase
from headrace.process import Child, child_env

LIMIT = 256 * 1024 * 1024
V1, V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group with little memory, as a container is one."""
    version_1 = (V1 / "memory.limit_in_bytes").exists()
    path = (V1 if version_1 else V2) / f"headrace-test-{os.getpid()}"
    try:
        path.mkdir()
    except OSError as e:
        pytest.skip(f"no memory control group can be made here: {e}")
    try:
        limit = path / ("memory.limit_in_bytes" if version_1 else "memory.max")
        if not limit.exists():
            pytest.skip("the memory controller is not on for control groups here")
        limit.write_text(str(LIMIT))
        yield path
    finally:
        remove_group(path)


@pytest.fixture
async def head() -> AsyncIterator[Head]:
    async with head_double() as double:
        yield double


async def test_the_kernels_kill_is_told_and_the_replica_starts_again(head: Head, tmp_path: Path, group: Path) -> None:
    inside = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(group)]
    argv = [*inside, sys.executable, str(HERE / "node_scheduler.py"), str(head.port), str(trusted(tmp_path)), "1"]
    scheduler = Child.spawn(argv, env=child_env(), output=tmp_path / "scheduler.log")
    head.want(spec("r-1", eats_once=True))
    first = await head.phase("r-1", Phase.READY)
    (tmp_path / "nodes/1/replicas/r-1/eat").touch()
    waiting = await head.phase("r-1", Phase.PENDING)
    assert "was killed by the kernel for memory: its control group of 0.25 GiB was full" in waiting.reason
    second = await head.phase("r-1", Phase.READY)
    assert (second.pid != first.pid, second.restarts) == (True, 1)
    # One that is killed by hand is not said to have been out of memory.
    os.kill(second.pid, 9)
    await head.until(lambda: head.seen["r-1"].phase is Phase.PENDING)
    assert "was killed by SIGKILL (out of memory, or by hand)" in head.seen["r-1"].reason
    assert await scheduler.stop(term_s=30) == 0
