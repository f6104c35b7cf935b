"""Head, scheduler, replica and the replica's child die in every order: what lives afterwards is what is wanted."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from authority_fixtures import credentials
from integration.node_fixtures import Head, head_double, spawn_scheduler, spec
from integration.replica_fixtures import a_spec

from headrace.cli.leftovers import marked
from headrace.core.phase import Phase
from headrace.process import ProcessRecord
from headrace.rpc.channel import open_channel
from headrace.rpc.roles import Role
from headrace.rpc.v1 import replica_pb2, replica_pb2_grpc

pytestmark = pytest.mark.long

CLEAN_S = 10.0  # from the restart; the promise (I4)
VICTIMS = ("head", "scheduler", "replica", "child")
ORDERS = [*itertools.permutations(VICTIMS), ("scheduler", "replica"), ("replica", "scheduler"), ("scheduler", "child")]


@pytest.fixture
async def head() -> AsyncIterator[Head]:
    async with head_double() as double:
        yield double


def name(order: tuple[str, ...]) -> str:
    return "-".join(order)


# Every fourth; with CHAOS_ALL all of them.
@pytest.mark.parametrize("order", ORDERS if "CHAOS_ALL" in os.environ else ORDERS[::4], ids=name)
async def test_no_orphan_is_left_and_none_is_there_twice(head: Head, tmp_path: Path, order: tuple[str, ...]) -> None:
    scheduler = spawn_scheduler(head, tmp_path)
    head.want(spec("r-1", children=True), spec("r-2"))
    await head.phase("r-1", Phase.READY)
    bystander = (await head.phase("r-2", Phase.READY)).pid
    first = head.seen["r-1"].pid
    children = [int(x) for x in (tmp_path / "nodes/1/replicas/r-1/children").read_text().split()]
    old = {r for pid in (first, *children) if (r := ProcessRecord.of(pid))}
    for victim in order:
        match victim:
            case "head":
                await head.stop()
            case "scheduler":
                os.kill(scheduler.pid, signal.SIGKILL)
                await scheduler.wait()
            case "replica":
                # A scheduler that lives may have started it again by now.
                end(next((r.pid for r in named(tmp_path, "r-1") if r.pid not in children), 0))
            case _:
                end(children[0])
    head.specs = [spec("r-1", children=True), spec("r-2")]
    if "head" in order:
        await head.start()
    hellos = len(head.hellos)
    began = time.monotonic()
    heir = spawn_scheduler(head, tmp_path)
    await head.until(lambda: len(head.hellos) > hellos)
    replica_died = "replica" in order
    if replica_died:
        assert not any(r.alive() for r in old)
    assert time.monotonic() - began <= CLEAN_S
    await head.until(
        lambda: (
            {n: s.phase for n, s in head.seen.items()} == {"r-1": Phase.READY, "r-2": Phase.READY}
            and (head.seen["r-1"].pid == first) is not replica_died
        )
    )
    assert head.seen["r-2"].pid == bystander, "what did not die was adopted"
    wanted = {head.seen[n].pid for n in ("r-1", "r-2")}
    wanted |= {int(x) for x in (tmp_path / "nodes/1/replicas/r-1/children").read_text().split()}
    assert {r.pid for r in marked(tmp_path)} <= wanted
    assert await heir.stop(term_s=30) == 0
    assert not marked(tmp_path)


async def test_a_replica_whose_scheduler_never_comes_back_serves_whom_it_has_and_then_ends(
    head: Head, tmp_path: Path
) -> None:
    scheduler = spawn_scheduler(head, tmp_path, "real", "impatient")
    wanted = a_spec(options={"step_s": 0.01})
    head.want(wanted)
    at = await head.phase(wanted.replica_id, Phase.READY)
    (replica,) = marked(tmp_path)
    async with open_channel(at.address, credentials(Role.PROXY), Role.NODE) as channel:
        session = replica_pb2_grpc.ReplicaServiceStub(channel).Session()
        hello = replica_pb2.SessionHello(proxy_id="p", replica_id=wanted.replica_id)
        await session.write(replica_pb2.SessionRequest(hello=hello))
        frames = aiter(session)
        await anext(frames)
        os.kill(scheduler.pid, signal.SIGKILL)
        await scheduler.wait()
        await head.stop()
        began = time.monotonic()
        while time.monotonic() - began < 4.0:  # far longer than it would stay alone
            assert (await anext(frames)).HasField("load")
        assert replica.alive()
        session.cancel()
    async with asyncio.timeout(CLEAN_S):
        while replica.alive():  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    log = tmp_path / "nodes/1/replicas" / wanted.replica_id / "replica.log"
    assert "neither its scheduler nor a proxy was there for 1.5 s" in log.read_text()


async def test_a_replica_that_its_scheduler_watches_needs_no_proxy(head: Head, tmp_path: Path) -> None:
    scheduler = spawn_scheduler(head, tmp_path, "real", "impatient")
    wanted = a_spec()
    head.want(wanted)
    before = await head.phase(wanted.replica_id, Phase.READY)
    await head.stop()
    await asyncio.sleep(4.0)  # far longer than it would stay alone
    await head.start()
    reports = len(head.reports)
    await head.until(lambda: len(head.reports) > reports)
    now = head.seen[wanted.replica_id]
    assert (now.pid, now.restarts) == (before.pid, 0)
    assert await scheduler.stop(term_s=30) == 0


def named(state: Path, replica_id: str) -> list[ProcessRecord]:
    """The living processes of one replica, its leader first."""
    from headrace.node.conditions import REPLICA_ENV
    from headrace.process import environment

    found = [r for r in marked(state) if environment(r.pid).get(REPLICA_ENV) == replica_id]
    return sorted(found, key=lambda r: r.start_time)


def end(pid: int) -> None:
    if pid:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
