"""A new revision takes over under load: new replicas first where they fit, one out and one in where they do not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from parts import CATALOG, Cluster, Load, answer, cluster, loaded

from headrace.core.phase import Phase
from headrace.core.types import ClusterStatus, DeployRequest
from headrace.rpc.admin import AdminClient

pytestmark = pytest.mark.long


def of(status: ClusterStatus, revision: int) -> list[Phase]:
    return [r.status.phase for r in status.replicas if r.status.revision == revision]


class Watch:
    """What the status went through: how many were READY, how many there were, and what was said."""

    def __init__(self, client: AdminClient) -> None:
        self._client = client
        self.fewest_ready = 10**9
        self.most = 0
        self.said: set[str] = set()

    async def until_updated(self, revision: int, replicas: int) -> None:
        """Until all replicas are of `revision` and the old ones have gone."""
        async with asyncio.timeout(60):
            async for status in self._client.watch_status():
                running = [r for r in status.replicas if r.status.phase is not Phase.DRAINING]
                self.fewest_ready = min(self.fewest_ready, sum(r.status.phase is Phase.READY for r in running))
                self.most = max(self.most, len(running))
                self.said |= {d.reason for d in status.deployments}
                if of(status, revision) == [Phase.READY] * replicas and len(status.replicas) == replicas:
                    return


@asynccontextmanager
async def two_replicas(tmp_path: Path, cpus: float) -> AsyncIterator[tuple[Cluster, AdminClient]]:
    async with cluster(tmp_path, cpus=cpus) as c, c.head(drain_s="30"), c.client() as client:
        await client.deploy(DeployRequest("sim", min_replicas=2, max_replicas=2))
        await Watch(client).until_updated(1, 2)
        await c.answers()
        yield c, client


@pytest.mark.parametrize(("cpus", "surges"), [(3, True), (2, False)], ids=["room for one more", "no room"])
async def test_an_update_and_a_rollback_under_load_cost_no_request(tmp_path: Path, cpus: float, surges: bool) -> None:
    async with two_replicas(tmp_path, cpus) as (c, client), loaded(Load(c.url, "sim")) as load:
        await load.more(8)
        for revision, change in ((2, client.deploy(DeployRequest("sim", context_tokens=999))), (3, None)):
            watch = Watch(client)
            await (change or client.rollback("sim"))
            await watch.until_updated(revision, 2)
            assert watch.fewest_ready >= (2 if surges else 1)
            assert watch.most <= (3 if surges else 2)
            assert surges != any("one old replica goes for each new one" in said for said in watch.said), watch.said
        await load.more(8)
        assert load.errors == []
        now = (await client.status()).deployments[0].deployment
        assert (now.repeats, now.model.context_tokens) == (1, 0)


async def test_a_long_stream_on_an_old_replica_goes_on_to_its_end(tmp_path: Path) -> None:
    """A stream of about ten seconds began before the update; the drain limit is longer."""
    slow = CATALOG.replace("step_s: 0.01, answer_tokens: 40", "step_s: 0.02, answer_tokens: 400")
    async with cluster(tmp_path, cpus=2, catalog=slow) as c, c.head(drain_s="60"), c.client() as client:
        await client.deploy(DeployRequest("sim"))
        await Watch(client).until_updated(1, 1)
        await c.answers()
        long = Load(c.url, "sim", clients=2, tokens=400)
        asking = [asyncio.ensure_future(long._streamed(f"long {n}")) for n in range(4)]
        async with asyncio.timeout(30):  # a watch does not tell of the load
            while (await client.status()).replicas[0].status.load.running < 4:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await client.deploy(DeployRequest("sim", context_tokens=999))
        seen_draining = False
        async with asyncio.timeout(60):
            async for status in client.watch_status():
                seen_draining |= Phase.DRAINING in of(status, 1) and Phase.READY in of(status, 2)
                if not of(status, 1):
                    break
        assert seen_draining
        assert all(t.done() for t in asking), "the old replica left when its streams had ended"
        assert await asyncio.gather(*asking) == [answer(f"long {n}", 400) for n in range(4)]
