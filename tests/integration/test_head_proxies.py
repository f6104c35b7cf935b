"""The head keeps its proxies alive, and they outlive it."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from head_fixtures import (
    STAND_IN,
    Admin,
    HeadProcess,
    SchedulerDouble,
    free_port,
    head_process,
    head_settings,
    until,
)

from headrace.core.phase import Phase
from headrace.core.route_delta import NOTHING, RouteChange, RouteDelta, apply
from headrace.core.types import ClusterStatus, Route, RouteState, RouteTable
from headrace.errors import UserError
from headrace.head import proxies
from headrace.head.controller import serving
from headrace.head.http_port import reserve
from headrace.head.services import RouteService
from headrace.head.spare import Spare
from headrace.head.topic import Topic
from headrace.process import ProcessRecord, environment, signal_group
from headrace.rpc import convert_head
from headrace.rpc.v1 import head_pb2

HEAD = (
    sys.executable,
    "-c",
    """
import asyncio, json, sys
from pathlib import Path
from headrace.head.controller import serving
from headrace.process import told_to_stop
from headrace.settings import HeadSettings

flags = dict(a.removeprefix("--").split("=", 1) for a in sys.argv[1:])
program = flags.pop("program").split(",")
settings = HeadSettings(**{k: Path(v) if k == "state_dir" else int(v) for k, v in flags.items()})

async def main():
    async with serving(settings, program):
        await told_to_stop()

asyncio.run(main())
""",
)
PROGRAM = f"--program={','.join(STAND_IN)}"


def running(n: int) -> object:
    return lambda s: [p.state for p in s.proxies] == ["running"] * n


def pids(status: ClusterStatus) -> list[int]:
    return [p.pid for p in status.proxies]


@asynccontextmanager
async def head_with_proxies(tmp_path: Path, n: int, *more: str) -> AsyncIterator[tuple[HeadProcess, Admin]]:
    flags = (PROGRAM, f"--num_proxies={n}", *more)
    async with head_process(tmp_path, *flags, program=HEAD) as head, Admin(head.endpoint.grpc) as admin:
        yield head, admin


def end_all(pids: Sequence[int]) -> None:
    for pid in pids:
        signal_group(pid, signal.SIGKILL)


async def test_proxies_share_a_port_are_restarted_and_end_with_the_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_API_KEY", "a-person's")
    monkeypatch.setenv("HEADRACE_JOIN", "another-cluster's")
    settings = head_settings(tmp_path, num_proxies=2)
    async with serving(settings, STAND_IN) as head, Admin(head.grpc) as admin:
        status = await admin.status_when(running(2))
        assert [p.proxy_id for p in status.proxies] == ["proxy-1", "proxy-2"]
        assert status.http_address == head.http
        assert not any(k in environment(p) for p in pids(status) for k in ("HEADRACE_API_KEY", "HEADRACE_JOIN"))
        assert {environment(p)["HEADRACE_LEAST_EPOCH"] for p in pids(status)} == {str(status.epoch)}
        host, _, port = head.http.rpartition(":")
        with socket.create_connection((host, int(port))):
            pass
        victim, other = pids(status)
        os.kill(victim, signal.SIGKILL)
        after = await admin.status_when(lambda s: s.proxies[0].restarts == 1 and running(2)(s))  # type: ignore[operator]
        assert after.proxies[0].pid not in (victim, 0)
        assert after.proxies[1].pid == other
        async for _ in admin.tables("guest"):
            status = await admin.status_when(lambda s: len(s.proxies) == 3)
            assert (status.proxies[2].proxy_id, status.proxies[2].state) == ("guest", "watching")
            break
    assert not any(ProcessRecord.of(p) for p in pids(after))
    assert list((tmp_path / "head" / "proxies").glob("*.json")) == []


async def test_a_watcher_gets_the_table_once_and_then_what_changes(tmp_path: Path) -> None:
    async with (
        serving(head_settings(tmp_path)) as head,
        Admin(head.grpc) as admin,
        SchedulerDouble(head.node) as node,
    ):
        await admin.deploy("demo", min_replicas=3)
        before = await admin.table_when(lambda t: len(t.routes["demo"].endpoints) == 3)
        watch = aiter(admin.deltas())
        first = await anext(watch)
        assert apply(first, NOTHING) == before
        victim = max(node.replicas)
        await node.move(victim, Phase.PENDING, "it died")
        delta = await anext(watch)
        assert (delta.epoch, delta.base) == (first.epoch, first.version)
        change = RouteChange(replace(before.routes["demo"], endpoints=()), (victim,))
        assert (delta.changed, delta.removed) == ((change,), ())


async def test_a_slow_watcher_gets_one_delta_for_all_that_it_missed() -> None:
    overview: Any = SimpleNamespace(routes_changed=Topic(), watched_by=lambda *_: nullcontext(), table=None)
    service = RouteService(overview, cast("Any", None), cast("Any", None))

    def show(version: int, *names: str) -> None:
        overview.table = RouteTable(1, version, {n: Route(n, RouteState.STARTING) for n in names})
        overview.routes_changed.notify()

    show(1, "a", "b")
    watch = service.Watch(head_pb2.WatchRoutesRequest(proxy_id="p"), cast("Any", None))
    other = service.Watch(head_pb2.WatchRoutesRequest(proxy_id="p"), cast("Any", None))
    assert len((await anext(watch)).changed) == len((await anext(other)).changed) == 2
    show(2, "a")
    assert convert_head.route_delta_from_pb(await anext(other)) == RouteDelta(1, 2, 1, (), ("b",))
    show(3, "a", "c")
    show(4, "c")
    change = RouteChange(Route("c", RouteState.STARTING))
    assert convert_head.route_delta_from_pb(await anext(watch)) == RouteDelta(1, 4, 1, (change,), ("a", "b"))
    assert convert_head.route_delta_from_pb(await anext(other)) == RouteDelta(1, 4, 2, (change,), ("a",))


async def test_a_spare_takes_the_place_of_a_dead_proxy_and_ends_with_the_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proxies, "_SPARE_S", 0.05)
    spares: list[int] = []
    start = Spare.__init__

    def started(self: Spare, *args: Any) -> None:
        start(self, *args)
        spares.append(self._child.pid)

    monkeypatch.setattr(Spare, "__init__", started)
    async with serving(head_settings(tmp_path, num_proxies=1), STAND_IN) as head, Admin(head.grpc) as admin:
        before = pids(await admin.status_when(running(1)))
        await until(lambda: spares)
        os.kill(before[0], signal.SIGKILL)
        after = await admin.status_when(lambda s: s.proxies[0].restarts == 1 and running(1)(s))  # type: ignore[operator]
        assert pids(after) == spares[:1]
        record = json.loads((tmp_path / "head/proxies/proxy-1.json").read_text())
        assert (record["pid"], "--proxy_id=proxy-1" in record["argv"]) == (spares[0], True), "a next head adopts it"
        await until(lambda: len(spares) == 2)
    assert not any(ProcessRecord.of(p) for p in [*spares, *pids(after)])


async def test_proxies_outlive_a_killed_head_and_the_next_adopts_them(tmp_path: Path) -> None:
    async with head_with_proxies(tmp_path, 2) as (first, admin):
        before = await admin.status_when(running(2))
        await first.kill()
    try:
        assert all(ProcessRecord.of(p) for p in pids(before))
        async with head_with_proxies(tmp_path, 2) as (second, admin):
            assert second.endpoint.http == first.endpoint.http
            assert pids(await admin.status_when(running(2))) == pids(before)
            await second.kill()
        async with head_with_proxies(tmp_path, 1) as (third, admin):
            assert pids(await admin.status_when(running(1))) == pids(before)[:1]
            assert not ProcessRecord.of(pids(before)[1])
            await third.kill()
        port = free_port()
        async with head_with_proxies(tmp_path, 1, f"--http_port={port}") as (fourth, admin):
            now = await admin.status_when(running(1))
            assert fourth.endpoint.http == f"127.0.0.1:{port}"
            assert pids(now) != pids(before)[:1]
            assert not ProcessRecord.of(pids(before)[0])
            os.kill(fourth.child.pid, signal.SIGTERM)
            await fourth.child.wait()
            assert not ProcessRecord.of(pids(now)[0])
    finally:
        end_all(pids(before))


async def test_an_adopted_proxy_that_dies_is_replaced(tmp_path: Path) -> None:
    async with head_with_proxies(tmp_path, 1) as (first, admin):
        before = await admin.status_when(running(1))
        await first.kill()
    async with head_with_proxies(tmp_path, 1) as (second, admin):
        await admin.status_when(running(1))
        os.kill(pids(before)[0], signal.SIGKILL)
        await admin.status_when(lambda s: s.proxies[0].restarts == 1 and running(1)(s))  # type: ignore[operator]
        os.kill(second.child.pid, signal.SIGTERM)
        await second.child.wait()


async def test_a_proxy_that_cannot_start_is_tried_again_and_says_so(tmp_path: Path) -> None:
    settings = head_settings(tmp_path, num_proxies=1)
    program = (sys.executable, "-c", "raise SystemExit('no')")
    async with serving(settings, program) as head, Admin(head.grpc) as admin:
        status = await admin.status_when(lambda s: s.proxies[0].restarts >= 2)
        assert status.proxies[0].state in ("restarting", "starting")
    assert "no" in (tmp_path / "head" / "proxies" / "proxy-1.log").read_text()


@pytest.mark.parametrize("share", [False, True])
async def test_a_port_in_use_by_somebody_else_is_told(tmp_path: Path, share: bool) -> None:
    with socket.socket() as other:
        if share:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError) as caught:
            await serving(head_settings(tmp_path, num_proxies=1, http_port=port), STAND_IN).__aenter__()
    assert caught.value.message == f"Port {port} is in use; choose another with --http_port."


async def test_a_reserved_port_gets_no_connections_and_is_nobody_elses() -> None:
    held = reserve("127.0.0.1", 0, shared=False)
    try:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", held.port))
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", held.port))
    finally:
        held.close()


@pytest.mark.parametrize("port", ["node_port", "grpc_port"])
async def test_a_grpc_port_in_use_is_told_with_its_flag(tmp_path: Path, port: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = {port: other.getsockname()[1]}
        with pytest.raises(UserError, match=f"Choose another with --{port}"):
            await serving(head_settings(tmp_path, **taken)).__aenter__()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"http_host": "0.0.0.0", "num_proxies": 1}, "--api_keys_file"),
        ({"http_host": "::", "num_proxies": 1}, "--allow_insecure"),
    ],
)
async def test_http_beyond_this_machine_without_keys_is_refused(
    tmp_path: Path, more: dict[str, object], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        await serving(head_settings(tmp_path, **more)).__aenter__()


async def test_the_last_thing_a_head_does_is_not_to_wait_for_ever(tmp_path: Path) -> None:
    """A proxy that does not listen to TERM is killed."""
    stubborn = (
        "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('up', flush=True)\ntime.sleep(99)"
    )
    settings = head_settings(tmp_path, num_proxies=1)
    async with serving(settings, (sys.executable, "-c", stubborn)) as head, Admin(head.grpc) as admin:
        pid = (await admin.status_when(lambda s: s.proxies[0].pid)).proxies[0].pid
        log = tmp_path / "head" / "proxies" / "proxy-1.log"
        await until(lambda: "up" in log.read_text())
    assert not ProcessRecord.of(pid)
