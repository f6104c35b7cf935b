"""A node's disk is full: no replica has failed by that, what ends starts again, and all goes on when there is room."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from integration.node_fixtures import Head, head_double, spawn_scheduler
from integration.test_node_real_replica import simulated
from test_head_disk_full import fill

from headrace.core.causes import Cause
from headrace.core.phase import Phase


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB, by a tmpfs."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0:
        pytest.skip("a small tmpfs needs root")
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {made.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def keep_full(disk: Path, end: threading.Event) -> Path:
    """Take also what others give back, until told to end. The file to delete for room."""
    while True:
        ballast = fill(disk)
        if end.wait(0.01):
            return ballast


@pytest.fixture
async def head() -> AsyncIterator[Head]:
    async with head_double() as double:
        yield double


async def test_a_full_disk_fails_nothing(head: Head, small_disk: Path) -> None:
    scheduler = spawn_scheduler(head, small_disk, "real")
    stays_full = threading.Event()
    try:
        head.want(simulated("r-1"))
        first = await head.phase("r-1", Phase.READY)
        filling = asyncio.create_task(asyncio.to_thread(keep_full, small_disk, stays_full))

        # What ran there starts again without any room.
        os.kill(first.pid, signal.SIGKILL)
        await head.until(lambda: head.seen["r-1"].phase is Phase.READY and head.seen["r-1"].pid != first.pid)
        folder = small_disk / "nodes" / "1" / "replicas" / "r-1"

        # What is new waits, and says for what and until when.
        head.want(simulated("r-1"), simulated("r-2"))
        await head.until(lambda: (s := head.seen.get("r-2")) and s.failures > 4 and s.next_try)
        waiting = head.seen["r-2"]
        assert (waiting.phase, waiting.cause) == (Phase.PENDING, Cause.DISK_FULL)
        assert "No space left on device" in waiting.reason

        stays_full.set()
        (await filling).unlink()
        await head.phase("r-2", Phase.READY)
        stories = [head.story(name) for name in ("r-1", "r-2")]
        assert not any(Phase.FAILED in story for story in stories)

        # What there was no room for is written by now or soon, so the next scheduler finds both.
        await head.until(lambda: all((folder / f"{name}.json").exists() for name in ("endpoint", "process")))
        before = {name: s.pid for name, s in head.seen.items()}
        os.kill(scheduler.pid, signal.SIGKILL)
        await scheduler.wait()
        scheduler = spawn_scheduler(head, small_disk, "real")
        await head.until(lambda: len(head.hellos) == 2)
        reports = len(head.reports)
        await head.until(lambda: len(head.reports) > reports)
        assert {name: s.pid for name, s in head.seen.items()} == before
    finally:
        stays_full.set()
        await scheduler.stop(term_s=30)
