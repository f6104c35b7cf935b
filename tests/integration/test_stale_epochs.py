"""A stale head at the wire (I6): whatever it commands with an epoch below the highest seen, nothing is done."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from integration.node_fixtures import Head, head_double, spawn_scheduler, spec

from headrace.core.phase import Phase
from headrace.node import epoch
from headrace.node.epoch import EpochFile
from headrace.process import ProcessRecord
from headrace.rpc.v1 import node_pb2

COMMANDS = {
    "stop everything": node_pb2.HeadMessage(desired=node_pb2.Desired()),
    "be fenced": node_pb2.HeadMessage(fenced=node_pb2.Fenced(reason="I say so")),
    "show a log": node_pb2.HeadMessage(read_log=node_pb2.ReadLog(request=1, replica_id="r-1")),
    "welcome": node_pb2.HeadMessage(welcome=node_pb2.Welcome(lease_s=1, report_interval_s=0.01)),
}


@pytest.fixture
async def head() -> AsyncIterator[Head]:
    async with head_double() as double:
        yield double


async def test_no_command_of_a_stale_head_is_obeyed_also_by_the_heir_of_a_killed_scheduler(
    head: Head, tmp_path: Path
) -> None:
    scheduler = spawn_scheduler(head, tmp_path)
    head.want(spec("r-1"))
    before = await head.phase("r-1", Phase.READY)
    for life in (1, 2):
        for message in COMMANDS.values():
            hellos = len(head.hellos)
            head.send(message, epoch=6)
            await head.until(lambda n=hellos: len(head.hellos) > n)  # it breaks the session off, and comes again
            await head.until(lambda: head.seen.get("r-1") is not None and head.seen["r-1"].phase is Phase.READY)
        assert head.seen["r-1"].pid == before.pid
        assert not head.logs
        if life == 1:
            os.kill(scheduler.pid, signal.SIGKILL)
            await scheduler.wait()
            head.specs = None
            hellos, head.epoch = len(head.hellos), 6  # all that it hears now is stale, from the welcome on
            scheduler = spawn_scheduler(head, tmp_path)
            await head.until(lambda n=hellos: len(head.hellos) > n + 1)
            assert ProcessRecord.of(before.pid)
            head.epoch = 7
            await head.until(lambda: head.epochs[-1] == 7)
    assert await scheduler.stop(term_s=30) == 0


def test_an_epoch_that_a_full_disk_did_not_take_is_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    file = EpochFile(tmp_path / "epoch")
    with monkeypatch.context() as m:
        m.setattr(epoch, "write_atomic", full)
        assert file.accept(5)
        assert not file.accept(4)
    assert EpochFile(tmp_path / "epoch").highest == 0
    assert file.accept(5)
    assert EpochFile(tmp_path / "epoch").highest == 5
