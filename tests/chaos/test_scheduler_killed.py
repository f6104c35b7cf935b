"""A scheduler that is killed: its replicas go on, and the next one finds the same processes."""

from __future__ import annotations

from pathlib import Path

from cluster_fixtures import Traffic, cluster, kill, ready


async def test_the_same_replicas_serve_without_an_error_and_are_adopted(tmp_path: Path) -> None:
    async with cluster(tmp_path) as c:
        await c.head("--lease_s=3")
        first = c.scheduler("1")
        async with c.admin() as admin:
            await admin.deploy("sim", min_replicas=2)
            before = await c.until(ready(2))
            processes = c.replicas()
            assert len(processes) == 2
            async with Traffic(c.url) as traffic:
                kill(first)
                await first.wait()
                await c.until(lambda s: not s.nodes[0].alive)  # also after its lease has run out
                await traffic.more()
                c.scheduler("1")
                now = await c.until(lambda s: s.nodes[0].alive and ready(2)(s))  # it has reported
                await traffic.more()
            assert traffic.wrong == []
            assert c.replicas() == processes  # pids and start times
            assert {(r.status.replica_id, r.status.pid, r.status.restarts) for r in now.replicas} == {
                (r.status.replica_id, r.status.pid, 0) for r in before.replicas
            }
