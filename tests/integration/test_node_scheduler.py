"""The life of a scheduler itself: its ends, its heirs, its rivals, and a head that goes away."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from integration.node_fixtures import Head, head_double, scheduler, settings, spawn_scheduler, spec

from headrace.core.phase import Phase
from headrace.core.types import ReplicaStatus
from headrace.errors import UserError
from headrace.node import agent
from headrace.node.agent import serve
from headrace.node.epoch import next_incarnation
from headrace.process import Child, ProcessRecord
from headrace.rpc.v1 import node_pb2
from headrace.settings import TlsSettings


@pytest.fixture
async def head() -> AsyncIterator[Head]:
    async with head_double() as double:
        yield double


async def ready(head: Head, *names: str) -> dict[str, ReplicaStatus]:
    await head.until(lambda: all(n in head.seen and head.seen[n].phase is Phase.READY for n in names))
    return dict(head.seen)


def folder(state: Path, name: str) -> Path:
    return state / "nodes" / "1" / "replicas" / name


async def appears(path: Path, words: str) -> None:
    async with asyncio.timeout(30):
        while words not in (path.read_text() if path.exists() else ""):  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(0.02)


async def kill(child: Child) -> None:
    os.kill(child.pid, signal.SIGKILL)
    assert await child.wait() == -signal.SIGKILL


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_a_signal_ends_it_and_leaves_nothing(head: Head, tmp_path: Path, signum: int) -> None:
    child = spawn_scheduler(head, tmp_path)
    head.want(spec("r-1"), spec("r-2", children=True), spec("r-3", hold=True))
    before = await ready(head, "r-1", "r-2")
    os.kill(child.pid, signum)
    assert await child.wait() == 0
    assert not any(ProcessRecord.of(s.pid) for s in before.values())
    await head.until(lambda: head.clean_ends == 1)
    assert {s.phase for s in head.seen.values()} == {Phase.STOPPED}
    assert "ends 3 replicas and stops" in (tmp_path / "scheduler.log").read_text()


async def test_the_heir_of_a_killed_scheduler_adopts_the_same_processes(head: Head, tmp_path: Path) -> None:
    first = spawn_scheduler(head, tmp_path)
    wanted = [spec("r-1"), spec("r-2", children=True), spec("r-3")]
    head.want(*wanted)
    before = await ready(head, "r-1", "r-2", "r-3")
    await kill(first)
    second = spawn_scheduler(head, tmp_path)
    reports = len(head.reports)
    await head.until(lambda: len(head.hellos) == 2 and len(head.reports) > reports)
    # From the first report on: the same processes, ready, at the same addresses.
    for report in head.reports[reports:]:
        for name in ("r-1", "r-2", "r-3"):
            assert (report[name].phase, report[name].pid) == (Phase.READY, before[name].pid)
            assert report[name].address == before[name].address
            assert report[name].started_at == before[name].started_at
            assert report[name].model == before[name].model
    assert head.hellos[1].incarnation > head.hellos[0].incarnation
    # They are kept running, started again and ended as any other.
    children = [int(x) for x in (folder(tmp_path, "r-2") / "children").read_text().split()]
    os.kill(before["r-2"].pid, signal.SIGKILL)
    await head.until(lambda: head.seen["r-2"].phase is Phase.READY and head.seen["r-2"].pid != before["r-2"].pid)
    assert head.seen["r-2"].restarts == 1
    assert not any(ProcessRecord.of(c) for c in children)
    head.want(spec("r-2"))
    await head.until(lambda: {head.seen[n].phase for n in head.seen if n != "r-2"} <= {Phase.STOPPED})
    assert await second.stop(term_s=30) == 0


async def test_the_heir_waits_for_the_head_before_it_ends_anything(head: Head, tmp_path: Path) -> None:
    first = spawn_scheduler(head, tmp_path)
    head.want(spec("r-1"), spec("r-2"))
    before = await ready(head, "r-1", "r-2")
    await kill(first)
    head.specs = None  # the head does not know yet what it wants
    second = spawn_scheduler(head, tmp_path)
    await head.until(lambda: len(head.hellos) == 2)
    reports = len(head.reports)
    await head.until(lambda: len(head.reports) > reports + 3)
    assert {n: s.pid for n, s in head.seen.items()} == {n: s.pid for n, s in before.items()}
    head.want(spec("r-1"))
    await head.until(lambda: head.seen.get("r-2") is None or head.seen["r-2"].phase is Phase.STOPPED)
    assert head.seen["r-1"].pid == before["r-1"].pid
    assert await second.stop(term_s=30) == 0


async def test_the_heir_ends_what_a_dead_replica_left(head: Head, tmp_path: Path) -> None:
    first = spawn_scheduler(head, tmp_path)
    head.want(spec("r-1", children=True), spec("r-2", children=True))
    before = await ready(head, "r-1", "r-2")
    await kill(first)
    os.kill(before["r-1"].pid, signal.SIGKILL)
    (folder(tmp_path, "r-2") / "process.json").unlink()  # as if killed before it was written
    left = [int(x) for n in ("r-1", "r-2") for x in (folder(tmp_path, n) / "children").read_text().split()]
    assert all(ProcessRecord.of(c) for c in left)
    head.want()
    second = spawn_scheduler(head, tmp_path)
    await head.until(lambda: len(head.hellos) == 2)
    assert not any(ProcessRecord.of(c) for c in [*left, before["r-2"].pid])
    assert (folder(tmp_path, "r-1") / "replica.log").exists()
    assert await second.stop(term_s=30) == 0


async def test_the_heir_finishes_a_drain(head: Head, tmp_path: Path) -> None:
    first = spawn_scheduler(head, tmp_path)
    head.want(spec("r-1", 60.0, deaf=True, drains_s=60), spec("r-2", 60.0, drains_s=60))
    before = await ready(head, "r-1", "r-2")
    head.want(spec("r-1"))
    await head.phase("r-2", Phase.DRAINING)
    await kill(first)
    head.want()
    second = spawn_scheduler(head, tmp_path)
    await head.until(lambda: len(head.hellos) == 2 and head.seen["r-2"].phase is Phase.DRAINING)
    assert head.seen["r-2"].pid == before["r-2"].pid
    os.kill(second.pid, signal.SIGTERM)
    await appears(tmp_path / "scheduler.log", "and stops (SIGTERM)")
    assert await second.stop(term_s=25) == 0  # told twice, it does not wait for what would take a minute
    assert not any(ProcessRecord.of(s.pid) for s in before.values())


async def test_replicas_can_be_kept_over_a_polite_restart(head: Head, tmp_path: Path) -> None:
    first = spawn_scheduler(head, tmp_path, "keep")
    head.want(spec("r-1"))
    before = await ready(head, "r-1")
    assert await first.stop(term_s=30) == 0
    assert ProcessRecord.of(before["r-1"].pid)
    await head.until(lambda: head.clean_ends == 1)
    assert head.seen["r-1"].phase is Phase.READY  # or the head would think that it has gone
    second = spawn_scheduler(head, tmp_path)
    await head.until(lambda: len(head.hellos) == 2 and "r-1" in head.seen)
    assert head.seen["r-1"].pid == before["r-1"].pid
    assert await second.stop(term_s=30) == 0
    assert not ProcessRecord.of(before["r-1"].pid)


async def test_a_second_scheduler_with_the_same_id_is_refused(head: Head, tmp_path: Path) -> None:
    async with scheduler(head, tmp_path):
        head.want(spec("r-1"))
        before = await ready(head, "r-1")
        with pytest.raises(UserError, match=rf"node id 1 is running already \(process {os.getpid()}\)"):
            await serve(settings(head, tmp_path), _never)
        async with scheduler(head, tmp_path, node_id="2"):
            await head.until(lambda: len(head.hellos) == 2)
        assert ProcessRecord.of(before["r-1"].pid)
    async with scheduler(head, tmp_path):  # and once it has gone the id is free
        await head.until(lambda: len(head.hellos) == 3)


async def test_a_fenced_scheduler_ends_and_leaves_its_replicas(head: Head, tmp_path: Path) -> None:
    first = spawn_scheduler(head, tmp_path)
    head.want(spec("r-1"))
    before = await ready(head, "r-1")
    head.send(node_pb2.HeadMessage(fenced=node_pb2.Fenced(reason="host b has node id 1 now")))
    assert await first.wait() == 1
    assert "host b has node id 1 now" in (tmp_path / "scheduler.log").read_text().splitlines()[-1]
    assert ProcessRecord.of(before["r-1"].pid)
    async with scheduler(head, tmp_path):
        await head.until(lambda: len(head.hellos) == 2)


async def test_a_head_that_goes_away_and_comes_back_changes_nothing(head: Head, tmp_path: Path) -> None:
    child = spawn_scheduler(head, tmp_path)
    head.want(spec("r-1"))
    before = await ready(head, "r-1")
    await head.stop()
    words = tmp_path / "scheduler.log"
    await appears(words, "no head at")
    os.kill(before["r-1"].pid, signal.SIGKILL)  # it goes on looking after its replicas
    await head.start()
    await head.until(lambda: len(head.hellos) == 2)
    await head.until(lambda: head.seen["r-1"].phase is Phase.READY and head.seen["r-1"].pid != before["r-1"].pid)
    assert head.hellos[0] == head.hellos[1]
    assert words.read_text().count("no head at") == 1
    assert words.read_text().count("joined head at") == 2
    assert await child.stop(term_s=30) == 0


async def test_a_scheduler_may_come_before_its_head(head: Head, tmp_path: Path) -> None:
    await head.stop()
    child = spawn_scheduler(head, tmp_path)
    words = tmp_path / "scheduler.log"
    await appears(words, "no head at")
    await head.start()
    await head.until(lambda: head.hellos)
    assert await child.stop(term_s=30) == 0
    assert words.read_text().count("no head at") == 1


async def test_a_replica_that_cannot_be_ended_does_not_hold_up_the_end(
    head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stuck(self: Child, term_s: float = 0, kill_s: float = 0) -> None:
        await asyncio.Event().wait()

    async with scheduler(head, tmp_path):
        head.want(spec("r-1"))
        before = await ready(head, "r-1")
        os.kill(before["r-1"].pid, signal.SIGSTOP)
        monkeypatch.setattr(Child, "stop", stuck)
        monkeypatch.setattr(agent, "_END_S", 0.3)
    monkeypatch.undo()
    left = Child.adopt(ProcessRecord(before["r-1"].pid, _start_time(tmp_path, "r-1")))
    assert left
    await left.kill_group()


def _start_time(state: Path, name: str) -> float:
    return float(json.loads((folder(state, name) / "process.json").read_text())["start_time"])


async def test_without_a_head_it_ends_as_well(head: Head, tmp_path: Path) -> None:
    child = spawn_scheduler(head, tmp_path)
    head.want(spec("r-1"))
    before = await ready(head, "r-1")
    await head.stop()
    assert await child.stop(term_s=30) == 0
    assert not ProcessRecord.of(before["r-1"].pid)


async def test_an_older_leader_is_not_obeyed_also_after_a_restart(head: Head, tmp_path: Path) -> None:
    async with scheduler(head, tmp_path, keep_replicas=True):
        head.want(spec("r-1"))
        before = await ready(head, "r-1")
        assert head.epochs[-1] == 7
        head.send(node_pb2.HeadMessage(desired=node_pb2.Desired()), epoch=6)
        await head.until(lambda: len(head.hellos) == 2)  # it broke the session off
        assert head.seen["r-1"].phase is Phase.READY
    head.epoch, head.specs = 6, []
    said = len(head.hellos)
    first = spawn_scheduler(head, tmp_path)
    await head.until(lambda: len(head.hellos) >= said + 2)  # and broke it off again
    assert head.seen["r-1"].pid == before["r-1"].pid
    assert head.epochs[-1] == 7
    head.epoch = 8
    head.want()
    await head.until(lambda: head.epochs[-1] == 8)
    await head.phase("r-1", Phase.STOPPED)
    words = (tmp_path / "scheduler.log").read_text()
    assert words.count("It has epoch 6, but this node has obeyed epoch 7") == 1
    assert await first.stop(term_s=30) == 0


def test_incarnations_grow_even_when_the_clock_is_set_back(tmp_path: Path) -> None:
    path = tmp_path / "incarnation"
    assert [next_incarnation(path, now) for now in (100, 200, 150, 150, 300)] == [100, 200, 201, 202, 300]
    path.write_text("damaged")
    assert next_incarnation(path, 400) == 400


async def test_a_damaged_epoch_file_is_not_guessed(head: Head, tmp_path: Path) -> None:
    (tmp_path / "nodes" / "1").mkdir(parents=True)
    (tmp_path / "nodes" / "1" / "epoch").write_text("7x")
    with pytest.raises(UserError, match="epoch cannot be read"):
        await serve(settings(head, tmp_path), _never)


async def test_old_folders_are_deleted_and_the_newest_kept_for_their_logs(head: Head, tmp_path: Path) -> None:
    for number in range(25):
        path = folder(tmp_path, f"old-{number}")
        path.mkdir(parents=True)
        os.utime(path, (number, time.time() - 1000 + number))
    async with scheduler(head, tmp_path):
        await head.until(lambda: head.hellos)
        assert sorted(p.name for p in (tmp_path / "nodes/1/replicas").iterdir()) == sorted(
            f"old-{n}" for n in range(5, 25)
        )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"host": "0.0.0.0", "allow_insecure": True}, "no address that others can reach"),
        ({"node_id": "../up"}, "--node_id"),
        ({"tls": TlsSettings(cert=Path("a.pem"))}, "all three files"),
        ({"tls": TlsSettings(cert=Path("/a"), key=Path("/b"), ca=Path("/c"))}, "Cannot read the TLS file"),
        ({"num_gpus": 99}, "--num_gpus=99"),
    ],
)
async def test_settings_that_cannot_be(head: Head, tmp_path: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        await serve(settings(head, tmp_path, **changes), _never)


async def _never() -> str:
    return await asyncio.Event().wait() and ""
