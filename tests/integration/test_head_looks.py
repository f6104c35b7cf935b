"""What people see of a running head: loads that move, and the logs of its parts."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from authority_fixtures import credentials
from head_fixtures import Admin, SchedulerDouble, head_settings

from headrace.core.types import Load, RouteState
from headrace.errors import NotFound, Unavailable
from headrace.head.controller import serving
from headrace.rpc.admin import AdminClient


async def test_a_watch_moves_while_only_the_load_changes(tmp_path: Path) -> None:
    async with serving(head_settings(tmp_path)) as head, Admin(head.grpc) as admin, SchedulerDouble(head.node) as node:
        await admin.deploy("demo", engine="simulated")
        await admin.status_when(lambda s: s.deployments and s.deployments[0].state is RouteState.READY)

        async def load_seen(running: int) -> None:
            await admin.status_when(lambda s: s.replicas and s.replicas[0].status.load.running == running)

        for running in (7, 3):
            waiting = asyncio.create_task(load_seen(running))
            await asyncio.sleep(0)
            # From now on nothing else changes.
            node.replicas = {k: replace(s, load=Load(running=running)) for k, s in node.replicas.items()}
            await asyncio.wait_for(waiting, 30)


async def test_logs_of_parts_are_read_or_it_is_told_where_they_are(tmp_path: Path) -> None:
    async with serving(head_settings(tmp_path)) as head, AdminClient(head.grpc, credentials()) as admin:

        async def log(part: str) -> bytes:
            return b"".join([piece async for piece in admin.read_logs(part, 2, follow=False)])

        folder = tmp_path / "head" / "proxies"
        folder.mkdir(exist_ok=True)
        (folder / "proxy-7.log").write_bytes(b"one\ntwo\nthree\n")
        (folder / "proxy-7.log.1").write_bytes(b"zero\n")
        assert await log("proxy-7") == b"two\nthree\n"
        for part in ("head", "scheduler"):
            # One of an earlier `headrace up` is not ours.
            (tmp_path / "logs").mkdir(exist_ok=True)
            (tmp_path / "logs" / f"{part}.log").write_bytes(b"old\n")
            with pytest.raises(Unavailable, match=f"The {part} writes its log to its standard error"):
                await log(part)
        for part in ("nobody", "../head/state", "/etc/passwd", "proxy-7.log", "", "*", "spare"):
            with pytest.raises(NotFound, match="there are: head, scheduler, proxy-7"):
                await log(part)
