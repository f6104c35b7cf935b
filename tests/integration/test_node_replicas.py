"""What a scheduler makes of its replicas: starts, failures, drains, and what they leave behind."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from integration.node_fixtures import Head, head_double, scheduler, spec

from headrace.core.causes import Cause
from headrace.core.phase import Phase
from headrace.process import ProcessRecord, environment


@pytest.fixture
async def head(tmp_path: Path) -> AsyncIterator[Head]:
    """A head with one scheduler."""
    async with head_double() as double, scheduler(double, tmp_path):
        await double.until(lambda: double.hellos)
        yield double


def folder(tmp_path: Path, name: str) -> Path:
    return tmp_path / "nodes" / "1" / "replicas" / name


async def test_a_replica_starts_loads_and_is_ready(head: Head, tmp_path: Path) -> None:
    head.want(spec("r-1", hold=True))
    loading = await head.phase("r-1", Phase.LOADING)
    assert (loading.activity, round(loading.progress, 2)) == ("loading", 0.4)
    (folder(tmp_path, "r-1") / "ready").touch()
    ready = await head.phase("r-1", Phase.READY)
    assert ready.address.startswith("127.0.0.1:")
    assert ready.model is not None
    assert ready.model.context_tokens == 256
    assert (ready.restarts, ready.reason) == (0, "")
    assert ready.started_at > 0
    assert head.story("r-1") in (
        [Phase.STARTING, Phase.LOADING, Phase.READY],
        [Phase.PENDING, Phase.STARTING, Phase.LOADING, Phase.READY],
    )
    # It sees no GPU unless it was given one, and can be told from others by its environment.
    env = environment(ready.pid)
    assert env["CUDA_VISIBLE_DEVICES"] == ""
    assert env["HEADRACE_REPLICA_ID"] == "r-1"


async def test_the_load_is_reported_at_each_interval(head: Head) -> None:
    head.want(spec("r-1"))
    step = (await head.phase("r-1", Phase.READY)).load.step
    await head.until(lambda: head.seen["r-1"].load.step > step + 3)


async def test_many_at_once_and_only_the_unwanted_one_goes(head: Head) -> None:
    names = ["r-1", "r-2", "r-3"]
    head.want(*(spec(n) for n in names))
    for name in names:
        await head.phase(name, Phase.READY)
    before = dict(head.seen)
    head.want(spec("r-1"), spec("r-3"))
    stopped = await head.phase("r-2", Phase.STOPPED)
    assert (stopped.pid, stopped.address) == (0, "")
    assert {head.seen[n].pid for n in ("r-1", "r-3")} == {before[n].pid for n in ("r-1", "r-3")}
    head.want(spec("r-1"), spec("r-3"))
    await head.until(lambda: set(head.seen) == {"r-1", "r-3"})  # it is forgotten once nobody asks


async def test_a_crash_is_followed_by_a_new_life(head: Head) -> None:
    head.want(spec("r-1"))
    first = await head.phase("r-1", Phase.READY)
    os.kill(first.pid, signal.SIGKILL)
    waiting = await head.phase("r-1", Phase.PENDING)
    assert "was killed by SIGKILL (out of memory, or by hand)" in waiting.reason
    assert (waiting.cause, waiting.failures) == (Cause.CRASH, 1)
    assert 0 < waiting.next_try - time.time() <= 1.0
    assert (waiting.pid, waiting.address, waiting.model) == (0, "", None)
    second = await head.phase("r-1", Phase.READY)
    assert second.pid != first.pid
    assert (second.restarts, second.reason, second.cause, second.next_try) == (1, "", None, 0.0)


async def test_it_gives_up_after_three_failures_and_says_what_the_log_says(head: Head, tmp_path: Path) -> None:
    head.want(spec("r-1", crash=3), spec("r-2"))
    failed = await head.phase("r-1", Phase.FAILED)
    assert "3 failures in a row" in failed.reason
    assert "exited with code 3: something is wrong with the weights" in failed.reason
    assert (failed.cause, failed.permanent, failed.next_try, failed.restarts) == (Cause.CRASH, False, 0.0, 2)
    assert (folder(tmp_path, "r-1") / "replica.log").read_text().count("life of r-1") == 3
    await head.phase("r-2", Phase.READY)
    head.want(spec("r-2"))
    await head.phase("r-1", Phase.STOPPED)


async def test_one_failure_is_forgiven(head: Head) -> None:
    head.want(spec("r-1", crash=3, once=True))
    assert (await head.phase("r-1", Phase.READY)).restarts == 1


async def test_a_permanent_failure_is_not_retried(head: Head, tmp_path: Path) -> None:
    reason = "There is no folder /models/nothing."
    head.want(spec("r-1", failure={"reason": reason, "cause": "unusable"}))
    failed = await head.phase("r-1", Phase.FAILED)
    assert (failed.reason, failed.permanent, failed.restarts) == (reason, True, 0)
    assert (folder(tmp_path, "r-1") / "replica.log").read_text().count("life of r-1") == 1


async def test_a_drain_gives_streams_their_time(head: Head, tmp_path: Path) -> None:
    head.want(spec("r-1", 30.0, drains_s=0.5))
    pid = (await head.phase("r-1", Phase.READY)).pid
    head.want()
    draining = await head.phase("r-1", Phase.DRAINING)
    assert draining.pid == pid
    assert ProcessRecord.of(pid)
    await head.phase("r-1", Phase.STOPPED)
    assert ProcessRecord.of(pid) is None
    assert "drain for 30 s" in (folder(tmp_path, "r-1") / "replica.log").read_text()


async def test_one_that_will_not_drain_nor_end_is_killed_with_its_children(tmp_path: Path) -> None:
    async with head_double() as head, scheduler(head, tmp_path):
        head.want(spec("r-1", deaf=True, children=True))
        pid = (await head.phase("r-1", Phase.READY)).pid
        children = [int(x) for x in (folder(tmp_path, "r-1") / "children").read_text().split()]
        assert all(ProcessRecord.of(c) for c in children)
    # The scheduler was told to stop: it leaves nothing, within its short patience.
    assert not any(ProcessRecord.of(p) for p in [pid, *children])
    assert head.seen["r-1"].phase is Phase.STOPPED
    assert head.clean_ends == 1


async def test_what_a_dead_replica_started_is_ended_before_it_lives_again(head: Head, tmp_path: Path) -> None:
    head.want(spec("r-1", children=True))
    first = await head.phase("r-1", Phase.READY)
    children = [int(x) for x in (folder(tmp_path, "r-1") / "children").read_text().split()]
    os.kill(first.pid, signal.SIGKILL)
    await head.phase("r-1", Phase.PENDING)
    assert not any(ProcessRecord.of(c) for c in children)
    await head.phase("r-1", Phase.READY)


async def test_a_broken_watch_is_opened_again(head: Head) -> None:
    head.want(spec("r-1", break_watch=2))
    ready = await head.phase("r-1", Phase.READY)
    await head.until(lambda: head.seen["r-1"].load.step > 6)
    assert (head.seen["r-1"].pid, head.seen["r-1"].restarts) == (ready.pid, 0)


async def test_a_replica_that_contradicts_itself_stays_what_it_was(head: Head) -> None:
    head.want(spec("r-1", contradict=True, break_watch=6))
    await head.phase("r-1", Phase.READY)
    await asyncio.sleep(0)
    count = len(head.reports)
    await head.until(lambda: len(head.reports) > count + 3)
    assert head.seen["r-1"].phase is Phase.READY


async def test_an_endpoint_of_another_process_is_not_trusted(head: Head) -> None:
    head.want(spec("r-1", wrong_identity=True), spec("r-2"))
    await head.phase("r-2", Phase.READY)
    count = len(head.reports)
    await head.until(lambda: len(head.reports) > count + 3)
    assert (head.seen["r-1"].phase, head.seen["r-1"].address) == (Phase.STARTING, "")


async def test_an_id_that_is_no_folder_name_is_refused(head: Head, tmp_path: Path) -> None:
    head.want(spec("../../escape"), spec("r-2"))
    await head.phase("r-2", Phase.READY)
    assert "../../escape" not in head.seen
    assert not (tmp_path / "nodes" / "escape").exists()


async def test_one_wanted_again_while_it_goes_comes_back(head: Head) -> None:
    head.want(spec("r-1", 10.0, drains_s=0.5))
    first = await head.phase("r-1", Phase.READY)
    head.want()
    await head.phase("r-1", Phase.DRAINING)
    head.want(spec("r-1"))
    await head.until(lambda: "r-1" in head.seen and head.seen["r-1"].phase is Phase.READY)
    assert head.seen["r-1"].pid != first.pid
