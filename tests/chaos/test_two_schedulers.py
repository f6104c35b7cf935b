"""Two schedulers with one node id: the newer has the node, the older is told so and ends, and harms nobody."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

from cluster_fixtures import cluster, ready

from headrace.cli.leftovers import marked
from headrace.lock import private_folder
from headrace.process import ProcessRecord


def sentence(log: Path) -> str:
    return log.read_text().splitlines()[-1]


async def test_with_one_state_directory_the_second_is_refused(tmp_path: Path) -> None:
    async with cluster(tmp_path) as c:
        await c.head(num_proxies=0)
        first = c.scheduler("1")
        async with c.admin() as admin:
            await admin.deploy("sim")
        await c.until(ready(1))
        before = c.replicas()
        second = c.spawn("second", "scheduler", "--node_id=1", f"--state_dir={c.state}")
        assert await second.wait() == 1
        said = sentence(tmp_path / "second.log")
        assert said.startswith("Error: A scheduler with node id 1 is running already")
        assert str(first.pid) in said
        assert first.alive()
        assert c.replicas() == before


async def test_with_two_the_newer_wins_and_what_the_older_left_ends_by_itself(tmp_path: Path) -> None:
    other = tmp_path / "other"
    async with cluster(tmp_path) as c:
        await c.head(num_proxies=1)
        older = c.scheduler("1", "--alone_s=2")
        async with c.admin() as admin:
            await admin.deploy("sim")
        await c.until(ready(1))
        before = c.replicas()
        private_folder(other)
        shutil.copytree(c.state / "authority", other / "authority")  # a machine of the same cluster
        newer = c.spawn(
            "newer", "scheduler", "--node_id=1", f"--state_dir={other}", "--num_cpus=2",
            f"--cache_dir={tmp_path}/cache", f"--port={c.endpoint.node.rpartition(':')[2] if c.endpoint else 0}",
        )  # fmt: skip
        async with asyncio.timeout(60):
            assert await older.wait() == 1
        said = sentence(tmp_path / "scheduler-1.log")
        assert said.startswith(
            "Error: Scheduler 1 ends and leaves its replicas alone: Another scheduler with node id 1"
        )
        theirs = {r.pid for r in marked(other)}
        # The head's replica now lives at the newer; the older's process serves whom it has, then ends by itself.
        await c.until(lambda s: ready(1)(s) and s.replicas[0].status.pid not in {r.pid for r in before})
        await gone(before)
        now = {r for r in marked(other) if r.alive()}
        assert theirs <= {r.pid for r in now} or not theirs, "the older has not killed what is the newer's"
        assert len(now) == 1
        assert newer.alive()
        # One that was fenced and is started again is newer in turn; the head is not confused by it.
        c.scheduler("1")
        async with asyncio.timeout(60):
            assert await newer.wait() == 1
        await c.until(lambda s: ready(1)(s) and s.nodes[0].alive)


async def gone(records: set[ProcessRecord]) -> None:
    async with asyncio.timeout(30):
        while any(r.alive() for r in records):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
