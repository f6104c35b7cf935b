"""One of three proxies that is killed: the port stays open, its own streams break, and another takes its place."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from cluster_fixtures import Traffic, cluster, kill, ready
from test_kills import clients_of

RESTARTED_S = 1.0  # the promise


async def test_only_its_own_streams_break_and_it_is_replaced_in_time(tmp_path: Path) -> None:
    async with cluster(tmp_path) as c:
        await c.head(num_proxies=3)
        c.scheduler("1")
        async with c.admin() as admin:
            await admin.deploy("sim")
            await c.until(ready(1))
            before = await c.until(lambda s: [p.state for p in s.proxies] == ["running"] * 3)
            await spare(tmp_path / "state/head/proxies/spare.log")
            async with Traffic(c.url, clients=9) as traffic:
                victim = before.proxies[0]
                kills_at = clients_of(victim.pid)
                kill(next(p for p in c.proxies() if p.pid == victim.pid))
                began = time.monotonic()
                after = await c.until(
                    lambda s: s.proxies[0].pid not in (0, victim.pid) and s.proxies[0].state == "running"
                )
                took_s = time.monotonic() - began
                await traffic.more()
                await traffic.more()
            assert len(traffic.wrong) <= kills_at + 1, traffic.wrong  # one may have come or gone as we looked
            assert [p.pid for p in after.proxies[1:]] == [p.pid for p in before.proxies[1:]]
            assert took_s <= RESTARTED_S


async def spare(log: Path) -> None:
    """Wait until a proxy stands by, and has had the time to be of use."""
    async with asyncio.timeout(60):
        while not log.exists():  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(0.05)
    await asyncio.sleep(3)
