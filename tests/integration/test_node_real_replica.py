"""The scheduler with real replica processes (and the simulated engine)."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from adapter_fixtures import write_adapter
from authority_fixtures import credentials
from integration.node_fixtures import Head, head_double, spawn_scheduler

from headrace.core.phase import Phase
from headrace.core.specfile import parse_spec
from headrace.core.types import Adapter, AdapterStatus, ModelSpec, ReplicaId, ReplicaSpec, ReplicaStatus, Resources
from headrace.process import ProcessRecord
from headrace.rpc.channel import open_channel
from headrace.rpc.roles import Role
from headrace.rpc.v1 import replica_pb2, replica_pb2_grpc


@pytest.fixture
async def head() -> AsyncIterator[Head]:
    async with head_double() as double:
        yield double


def simulated(name: str, source: str = "builtin:demo", **options: Any) -> ReplicaSpec:
    model = ModelSpec(source, engine="simulated", engine_args_json=json.dumps(options))
    return ReplicaSpec(ReplicaId(name), "demo", 1, model, Resources(1.0), drain_s=5.0)


async def test_start_adoption_crash_and_end(head: Head, tmp_path: Path) -> None:
    first = spawn_scheduler(head, tmp_path, "real")
    head.want(simulated("r-1"))
    before = await head.phase("r-1", Phase.READY)
    assert before.model is not None
    assert before.model.engine == "simulated"
    assert "simulated" in head.hellos[0].engines
    os.kill(first.pid, signal.SIGKILL)
    await first.wait()
    second = spawn_scheduler(head, tmp_path, "real")
    await head.until(lambda: len(head.hellos) == 2)
    reports = len(head.reports)
    await head.until(lambda: len(head.reports) > reports)
    assert (head.seen["r-1"].phase, head.seen["r-1"].pid) == (Phase.READY, before.pid)
    assert head.seen["r-1"].model == before.model
    # What it is asked is answered by the one that was expected.
    async with open_channel(before.address, credentials(Role.NODE), Role.NODE) as channel:
        watch = replica_pb2_grpc.ReplicaServiceStub(channel).Watch(replica_pb2.WatchReplicaRequest(replica_id="r-1"))
        async for status in watch:
            assert status.pid == before.pid
            break
        watch.cancel()
    os.kill(before.pid, signal.SIGKILL)
    await head.until(lambda: head.seen["r-1"].phase is Phase.READY and head.seen["r-1"].pid != before.pid)
    last = head.seen["r-1"].pid
    assert await second.stop(term_s=30) == 0
    assert not ProcessRecord.of(last)
    assert head.seen["r-1"].phase is Phase.STOPPED


async def test_failures_in_the_replicas_own_words_and_a_polite_end(head: Head, tmp_path: Path) -> None:
    child = spawn_scheduler(head, tmp_path, "real")
    head.want(
        simulated("good"),
        simulated("bad", fail_load="The weights are for another model.", permanent=True),
        simulated("stuck", refuse_to_stop=True),
    )
    failed = await head.phase("bad", Phase.FAILED)
    assert failed.permanent
    assert "The weights are for another model." in failed.reason
    assert failed.restarts == 0
    stuck = await head.phase("stuck", Phase.READY)
    await head.phase("good", Phase.READY)
    head.want(simulated("stuck", refuse_to_stop=True))
    await head.phase("good", Phase.STOPPED)
    await head.phase("bad", Phase.STOPPED)
    assert ProcessRecord.of(stuck.pid)
    assert await child.stop(term_s=30) == 0
    assert not ProcessRecord.of(stuck.pid)


async def test_adapters_reach_a_running_replica_an_adopted_one_and_the_next_life(head: Head, tmp_path: Path) -> None:
    a, b = (Adapter(name, str(write_adapter(tmp_path / name))) for name in "ab")

    async def loaded(*adapters: Adapter) -> ReplicaStatus:
        wanted = tuple(AdapterStatus(x, loaded=True) for x in adapters)
        await head.until(lambda: head.seen["r-1"].phase is Phase.READY and head.seen["r-1"].adapters == wanted)
        return head.seen["r-1"]

    first = spawn_scheduler(head, tmp_path / "state", "real")
    spec = replace(simulated("r-1"), adapters=(a,))
    head.want(spec)
    await head.phase("r-1", Phase.READY)
    before = await loaded(a)
    head.want(replace(spec, adapters=(a, b)))
    assert (await loaded(a, b)).pid == before.pid
    kept = parse_spec((tmp_path / "state/nodes/1/replicas/r-1/spec.json").read_text()).spec
    assert kept.adapters == (a, b), "for a scheduler or a start that no head speaks to"

    os.kill(first.pid, signal.SIGKILL)
    await first.wait()
    head.want(replace(spec, adapters=(b,)))
    second = spawn_scheduler(head, tmp_path / "state", "real")
    assert (await loaded(b)).pid == before.pid, "told to the one that was adopted"

    os.kill(before.pid, signal.SIGKILL)
    await head.until(lambda: head.seen["r-1"].pid not in (0, before.pid))
    last = await loaded(b)
    assert last.restarts == 1
    assert await second.stop(term_s=30) == 0
