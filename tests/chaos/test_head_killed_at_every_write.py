"""The head is killed -9 before and after each commit: what it acknowledged is there, the rest wholly or not at all."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
from parts import Cluster, Load, cluster, loaded

from headrace.core.types import ClusterStatus, DeployRequest
from headrace.errors import HeadraceError
from headrace.rpc.admin import AdminClient

pytestmark = pytest.mark.long

DYING = str(Path(__file__).with_name("head_that_dies.py"))


@dataclass(frozen=True)
class Want:
    """A deployment as the client knows it."""

    low: int
    high: int
    context: int


def seen(status: ClusterStatus) -> dict[str, Want]:
    found = (s.deployment for s in status.deployments)
    return {d.name: Want(d.min_replicas, d.max_replicas, d.model.context_tokens) for d in found if d.name != "sim"}


Op = tuple[Callable[[AdminClient], Awaitable[object]], Callable[[Mapping[str, Want]], dict[str, Want]]]


def deploy(name: str, low: int, context: int) -> Op:
    request = DeployRequest("other", name, min_replicas=low, max_replicas=low, context_tokens=context)
    return lambda a: a.deploy(request), lambda w: {**w, name: Want(low, low, context)}


def scale(name: str, n: int) -> Op:
    return lambda a: a.scale(name, 0, n), lambda w: {**w, name: Want(0, n, w[name].context)}


def rollback(name: str, context: int) -> Op:
    return lambda a: a.rollback(name), lambda w: {**w, name: Want(w[name].low, w[name].high, context)}


def delete(name: str) -> Op:
    return lambda a: a.delete(name), lambda w: {k: v for k, v in w.items() if k != name}


SCRIPT: list[Op] = [
    deploy("a", 1, 111),
    deploy("b", 0, 111),
    scale("b", 1),
    deploy("b", 0, 222),
    rollback("b", 111),
    delete("a"),
    delete("b"),
]


class Lives:
    """One head after another. Each first shows what it found, then dies at a point of its work."""

    def __init__(self, c: Cluster) -> None:
        self._c = c
        self._armed = c.state_dir / "armed"
        self._acknowledged: dict[str, Want] = {}
        self._maybe: dict[str, Want] = {}

    async def live(self, point: int) -> bool:
        """True if the head did not come to die in all its work; then it is killed after it."""
        program = (sys.executable, DYING, str(point), str(self._armed), "head")
        self._armed.unlink(missing_ok=True)
        async with self._c.head(program) as head, self._c.client() as client:
            async with self._c.admin() as patient:  # gRPC pauses before it tries the port of a dead head again
                await patient.status()
            await self._check(client)
            self._armed.touch()
            await self._work(client)
            if await settles(client):
                await head.kill()
                return True
            await asyncio.wait_for(head.child.wait(), 30)
        return False

    async def die_at_once(self, point: int) -> None:
        """A head that dies in its start."""
        self._armed.touch()
        program = (sys.executable, DYING, str(point), str(self._armed), "head")
        with pytest.raises(AssertionError):  # it never listens
            async with self._c.head(program):
                pass

    async def _check(self, client: AdminClient) -> None:
        found = seen(await client.status())
        assert found in (self._acknowledged, self._maybe)
        for name in found:
            await client.delete(name)
        assert await settles(client)
        assert seen(await client.status()) == {}
        self._acknowledged = self._maybe = {}

    async def _work(self, client: AdminClient) -> None:
        """The script, until the head is gone."""
        for ask, effect in SCRIPT:
            self._maybe = effect(self._acknowledged)
            try:
                await ask(client)
            except HeadraceError:
                return
            self._acknowledged = self._maybe


async def settles(client: AdminClient) -> bool:
    """Wait until one replica is all there is, which the head has recorded; False if the head dies meanwhile."""
    with suppress(HeadraceError):
        async with asyncio.timeout(60):
            async for status in client.watch_status():
                if len(status.replicas) == 1 and status.replicas[0].status.address:
                    return True
    return False


@pytest.mark.timeout(400)
async def test_every_acknowledged_write_is_there_and_no_request_notices(tmp_path: Path) -> None:
    async with cluster(tmp_path) as c:
        async with c.head() as head, c.client() as client:
            await client.deploy(DeployRequest("sim"))
            async with c.admin() as admin:
                await admin.table_when(lambda t: t.routes["sim"].endpoints)
            await c.answers()
            await head.kill()
        lives = Lives(c)
        async with loaded(Load(c.url, "sim", clients=2)) as load:
            await load.more(4)
            for point in (1, 2):
                await lives.die_at_once(point)
            point = 1
            while not await lives.live(point):
                point += 1
            assert point > 2 * len(SCRIPT), "at least one commit for each request, with a point on either side"
            await load.more(4)
        assert load.errors == []
