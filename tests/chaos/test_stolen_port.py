"""A port that changes hands after its replica died: whoever has it now gets no request."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from authority_fixtures import credentials
from cluster_fixtures import Cluster, Traffic, cluster, ready

from headrace.core.phase import Phase
from headrace.core.types import ReplicaId, ReplicaStatus
from headrace.replica.service import ReplicaServicer
from headrace.replica.status import StatusBoard
from headrace.rpc.channel import bind, new_server
from headrace.rpc.roles import Role
from headrace.rpc.v1 import replica_pb2_grpc

pytestmark = pytest.mark.long


class Foreign(ReplicaServicer):
    """A replica of another cluster, ready to take what comes. Its own code decides whom it lets in."""

    def __init__(self, replica_id: str) -> None:
        super().__init__(StatusBoard(ReplicaStatus(ReplicaId(replica_id), "sim", 1, Phase.READY, pid=os.getpid())))
        self.opened: list[str] = []
        self.streams: Any = self

    def open(self, proxy_id: str) -> Any:  # in place of Streams
        self.opened.append(proxy_id)
        raise AssertionError("a proxy was let in")


Thief = Callable[[int], Awaitable[Callable[[], Awaitable[list[str]]]]]


async def foreign_replica(port: int) -> Callable[[], Awaitable[list[str]]]:
    servicer, server = Foreign("sim-1-aaaaaa"), new_server()
    replica_pb2_grpc.add_ReplicaServiceServicer_to_server(servicer, server)
    assert bind(server, "127.0.0.1", port, credentials(Role.NODE), "") == port
    await server.start()

    async def end() -> list[str]:
        await server.stop(0)
        return servicer.opened

    return end


async def foreign_program(port: int) -> Callable[[], Awaitable[list[str]]]:
    """Takes every connection, reads it, and talks of something else."""
    heard: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            writer.write(b"220 mail.example.org ESMTP\r\n")
            while data := await reader.read(65536):
                heard.append(data)
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", port, reuse_address=True)

    async def end() -> list[str]:
        server.close()
        return [d.decode(errors="replace") for d in heard if b"question" in d]

    return end


@asynccontextmanager
async def two_replicas(folder: Path) -> AsyncIterator[Cluster]:
    async with cluster(folder) as c:
        await c.head()
        scheduler = c.scheduler("1")
        async with c.admin() as admin:
            await admin.deploy("sim", min_replicas=2)
        await c.until(ready(2))
        os.kill(scheduler.pid, signal.SIGKILL)  # nobody starts the dead again, nor says that it is dead
        await scheduler.wait()
        yield c


@pytest.mark.parametrize("thief", [foreign_replica, foreign_program])
async def test_no_request_goes_to_who_has_taken_the_port(tmp_path: Path, thief: Thief) -> None:
    async with two_replicas(tmp_path) as c:
        victim = (await c.until(ready(2))).replicas[0].status
        async with Traffic(c.url) as traffic:
            os.kill(victim.pid, signal.SIGKILL)
            port = int(victim.address.rpartition(":")[2])
            await until_free(port)
            misrouted = await thief(port)
            await traffic.more(6 * 6)
            words = (c.state / "head/proxies/proxy-1.log").read_text()
        assert await misrouted() == []
        assert traffic.wrong == [], "what ran at the dead went on at the other"
        assert "replica_gone" in words


async def test_the_scheduler_drains_nobody_else(tmp_path: Path) -> None:
    """A drain that is under way when the port changes hands."""
    from integration.replica_fixtures import a_spec, running

    from headrace.node.replica_client import drain

    async with running(a_spec(options={"step_s": 0.0}), tmp_path / "r") as replica:
        await replica.ready()
        assert not await drain(replica.address, ReplicaId("sim-1-bbbbbb"), None, 1.0)
        now = await replica.status_when(lambda s: True)
        assert now.phase is Phase.READY


async def until_free(port: int) -> None:
    async with asyncio.timeout(30):
        while True:
            with suppress(OSError), socket.create_server(("127.0.0.1", port)):
                return
            await asyncio.sleep(0.01)
