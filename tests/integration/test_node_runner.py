"""One runner with a real process: patience, what cannot be started, and what is never to happen."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from authority_fixtures import credentials, replica_env
from integration.node_fixtures import STAND_IN, spec

from headrace.core.causes import Cause
from headrace.core.phase import Phase
from headrace.core.restart import Failures, RestartPolicy
from headrace.core.types import ReplicaSpec
from headrace.node import runner, standing
from headrace.node.conditions import Conditions
from headrace.node.folder import LifeRecord
from headrace.node.memory import OomCount
from headrace.node.runner import Runner
from headrace.process import ProcessRecord
from headrace.rpc.roles import Role

ONCE = RestartPolicy(max_failures=1)
QUICK = RestartPolicy(first_delay_s=0.05, max_delay_s=0.1)


def conditions(folder: Path, **more: Any) -> Conditions:
    env = tuple(replica_env(folder / "credential").items())
    mine = credentials(Role.NODE, "1")
    return Conditions(node_dir=folder, cache_dir=folder / "cache", credentials=mine, env=env, **more)


class Watched:
    """A runner under way, and a way to wait for its status."""

    def __init__(self, wanted: ReplicaSpec, on: Conditions, found: LifeRecord | None = None) -> None:
        self.news = asyncio.Event()
        self.runner = Runner(wanted, on, lambda urgent: self.news.set(), found)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(60):
            while not condition():
                self.news.clear()
                await self.news.wait()

    async def phase(self, phase: Phase) -> None:
        await self.until(lambda: self.runner.status.phase is phase)


@asynccontextmanager
async def running(tmp_path: Path, wanted: ReplicaSpec, **changes: Any) -> AsyncIterator[Watched]:
    on = conditions(tmp_path, command=STAND_IN)
    watched = Watched(wanted, replace(on, **changes))
    async with asyncio.timeout(100), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(watched.runner.run())
        yield watched
        watched.runner.go(0)
        await task
    assert watched.runner.status.phase is Phase.STOPPED


async def test_a_start_that_never_listens_is_ended(tmp_path: Path) -> None:
    async with running(tmp_path, spec("r-1", never_listens=True), endpoint_s=0.5, restart=ONCE) as w:
        await w.phase(Phase.STARTING)
        pid = w.runner.status.pid
        await w.phase(Phase.FAILED)
        assert "made no progress while starting" in w.runner.status.reason
        assert not ProcessRecord.of(pid)


async def test_a_replica_that_cannot_write_where_it_listens_is_heard(tmp_path: Path) -> None:
    async with running(tmp_path, spec("r-1", announces=True)) as w:
        await w.phase(Phase.READY)
        assert not (tmp_path / "replicas" / "r-1" / "endpoint.json").exists()


async def test_an_announcement_of_another_process_is_not_trusted(tmp_path: Path) -> None:
    wanted = spec("r-1", announces=True, wrong_identity=True)
    async with running(tmp_path, wanted, endpoint_s=2.0, restart=ONCE) as w:
        await w.phase(Phase.FAILED)
        assert "made no progress while starting" in w.runner.status.reason


async def test_a_load_without_progress_is_ended(tmp_path: Path) -> None:
    async with running(tmp_path, spec("r-1", hold=True), stalled_s=0.5, restart=ONCE) as w:
        await w.phase(Phase.FAILED)
        assert "made no progress while loading" in w.runner.status.reason


async def test_a_ready_replica_may_be_quiet(tmp_path: Path) -> None:
    async with running(tmp_path, spec("r-1"), stalled_s=0.1, endpoint_s=30) as w:
        await w.phase(Phase.READY)
        step = w.runner.status.load.step
        await w.until(lambda: w.runner.status.load.step > step + 5)
        assert w.runner.status.restarts == 0


async def test_what_cannot_be_started_says_why_and_is_tried_again(tmp_path: Path) -> None:
    program = tmp_path / "program"
    policy = RestartPolicy(first_delay_s=0.05, max_failures=2)
    async with running(tmp_path, spec("r-1"), command=(str(program),), restart=policy) as w:
        await w.phase(Phase.FAILED)
        assert "cannot be started" in w.runner.status.reason
        assert str(program) in w.runner.status.reason


async def test_it_goes_while_it_waits_for_its_next_life(tmp_path: Path) -> None:
    async with running(tmp_path, spec("r-1", crash=1), restart=RestartPolicy(first_delay_s=30)) as w:
        await w.until(lambda: w.runner.status.next_try > 0)
        w.runner.go(30)
        await w.phase(Phase.STOPPED)


async def test_it_goes_while_it_starts(tmp_path: Path) -> None:
    async with running(tmp_path, spec("r-1", hold=True)) as w:
        await w.phase(Phase.STARTING)
        w.runner.go(30)
        await w.phase(Phase.STOPPED)


async def test_a_shorter_time_to_drain_overrides_a_longer_one(tmp_path: Path) -> None:
    async with running(tmp_path, spec("r-1", drains_s=600, overruns=True)) as w:
        await w.phase(Phase.READY)
        w.runner.go(600)
        await w.phase(Phase.DRAINING)
        w.runner.go(0.1)
        await w.phase(Phase.STOPPED)


@pytest.mark.parametrize(
    ("own", "words"),
    [
        (True, "killed by the kernel for memory: its control group of 2 GiB was full"),
        (False, "the machine ran out of memory about then"),
    ],
)
async def test_out_of_memory_is_told_when_the_kernel_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: bool, words: str
) -> None:
    counter = tmp_path / "memory.events"
    counter.write_text("low 0\noom_kill 3\n")
    (tmp_path / "memory.max").write_text(f"{2**31}\n")
    monkeypatch.setattr(runner.OomCount, "of", lambda pid: OomCount(counter, 3, own))
    async with running(tmp_path, spec("r-1"), restart=RestartPolicy(first_delay_s=30)) as w:
        await w.phase(Phase.READY)
        counter.write_text("low 0\noom_kill 4\n")
        os.kill(w.runner.status.pid, signal.SIGKILL)
        await w.phase(Phase.PENDING)
        assert words in w.runner.status.reason
        assert w.runner.status.cause is Cause.OUT_OF_MEMORY


async def killed(w: Watched, times: int) -> None:
    """READY and killed at once, so often."""
    for _ in range(times):
        await w.phase(Phase.READY)
        pid = w.runner.status.pid
        os.kill(pid, signal.SIGKILL)
        await w.until(lambda pid=pid: w.runner.status.pid != pid)


async def test_what_has_served_comes_back_however_often_it_is_killed(tmp_path: Path) -> None:
    async with running(tmp_path, spec("r-1"), restart=QUICK) as w:
        await killed(w, 5)
        await w.phase(Phase.READY)
        assert (w.runner.status.restarts, w.runner.status.failures) == (5, 5)


async def test_beside_an_older_revision_it_has_to_prove_itself(tmp_path: Path) -> None:
    async with running(tmp_path, replace(spec("r-1"), on_trial=True), restart=QUICK) as w:
        await killed(w, 3)
        await w.phase(Phase.FAILED)
        assert w.runner.status.reason.startswith("gave up after 3 failures in a row: was killed by SIGKILL")


async def test_it_is_told_that_its_revision_has_proven_itself_elsewhere(tmp_path: Path) -> None:
    wanted = spec("r-1", crash=3)
    async with running(tmp_path, wanted, restart=QUICK) as w:
        w.runner.update(replace(wanted, proven=True))
        await w.until(lambda: w.runner.status.failures > 4)
        assert w.runner.status.phase is not Phase.FAILED


async def test_what_is_transient_is_tried_until_it_is_over(tmp_path: Path) -> None:
    failure = {"reason": "Cannot read hf://a/b from nowhere (ConnectError).", "cause": "network"}
    async with running(tmp_path, spec("r-1", failure=failure), restart=QUICK) as w:
        await w.until(lambda: w.runner.status.failures > 4 and w.runner.status.next_try > 0)
        status = w.runner.status
        assert (status.phase, status.cause, status.reason) == (Phase.PENDING, Cause.NETWORK, failure["reason"])
        (tmp_path / "replicas" / "r-1" / "mended").touch()
        await w.phase(Phase.READY)


async def test_the_next_scheduler_knows_that_it_has_served(tmp_path: Path) -> None:
    on = conditions(tmp_path, command=STAND_IN, restart=QUICK)
    watched = Watched(spec("r-1"), on)
    async with asyncio.timeout(100), asyncio.TaskGroup() as tasks:
        tasks.create_task(watched.runner.run())
        await killed(watched, 2)
        await watched.phase(Phase.READY)
        watched.runner.leave()
    life = on.folder("r-1").life()
    assert life
    assert (life.served, life.failures) == (True, Failures(2, 2))
    heir = Watched(spec("r-1"), on, life)
    async with asyncio.timeout(100), asyncio.TaskGroup() as tasks:
        tasks.create_task(heir.runner.run())
        await killed(heir, 2)
        await heir.phase(Phase.READY)
        heir.runner.go(0)


async def test_a_full_disk_does_not_take_a_replica_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(standing.ReplicaFolder, "write_life", full)
    async with running(tmp_path, spec("r-1")) as w:
        await w.phase(Phase.READY)
        assert w.runner.status.restarts == 0


async def test_a_fault_of_our_own_fails_the_replica_and_leaves_no_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    async with running(tmp_path, spec("r-1", children=True)) as w:
        await w.phase(Phase.READY)
        pid = w.runner.status.pid
        monkeypatch.setattr(w.runner, "_take", broken)
        await w.phase(Phase.FAILED)
        assert "internal error of its scheduler" in w.runner.status.reason
        assert not ProcessRecord.of(pid)


async def test_left_alone_the_process_runs_on(tmp_path: Path) -> None:
    on = conditions(tmp_path, command=STAND_IN)
    watched = Watched(spec("r-1"), on)
    async with asyncio.timeout(100), asyncio.TaskGroup() as tasks:
        tasks.create_task(watched.runner.run())
        await watched.phase(Phase.READY)
        watched.runner.leave()
    before = watched.runner.status
    assert before.phase is Phase.READY
    assert ProcessRecord.of(before.pid)
    life = on.folder("r-1").life()
    assert life
    heir = Runner(spec("r-1"), on, lambda urgent: None, life)
    assert (heir.status.phase, heir.status.pid, heir.status.address) == (Phase.READY, before.pid, before.address)
    async with asyncio.timeout(100), asyncio.TaskGroup() as tasks:
        tasks.create_task(heir.run())
        await heir.heard.wait()
        heir.go(0)
    assert not ProcessRecord.of(before.pid)


async def test_a_record_of_another_boot_is_not_believed(tmp_path: Path) -> None:
    on = conditions(tmp_path)
    folder = on.folder("r-1")
    folder.prepare(spec("r-1"), host="127.0.0.1", cache_dir=tmp_path)
    me = ProcessRecord.of(os.getpid())
    assert me
    life = LifeRecord(me, Phase.READY, 2, Failures(3, 1), 3.0, 4.0, served=True)
    folder.write_life(life)
    assert folder.life() == life
    path = folder.path / "process.json"
    path.write_text(path.read_text().replace('"boot": "', '"boot": "other'))
    assert folder.life() is None
    path.write_text("{")
    assert folder.life() is None
