"""A new revision that does not work: it stops after three failures with the reason, and the old one goes on serving."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from cli_fixtures import Result, run_cli
from parts import CATALOG, Cluster, Load, cluster, loaded

from headrace.core.phase import Phase
from headrace.core.types import ClusterStatus, DeployRequest
from headrace.rpc.admin import AdminClient

pytestmark = pytest.mark.long

ARGS = {"step_s": 0.01, "answer_tokens": 40}
BROKEN = {
    "never loads": ({"fail_load": "The weights are a picture of a cat."}, "The weights are a picture of a cat."),
    "crashes at work": ({"crash_at_token": 3}, "was killed by SIGKILL"),
    "never ready": ({"hang_load": True}, "made no progress while"),
}


def failed(status: ClusterStatus, revision: int) -> list[str]:
    found = [r.status for r in status.replicas if r.status.revision == revision and r.status.phase is Phase.FAILED]
    return [s.reason for s in found]


async def cli(c: Cluster, *args: str) -> Result:
    return await run_cli(*args, f"--state_dir={c.state_dir}")


async def serving_two(client: AdminClient, c: Cluster) -> None:
    await client.deploy(DeployRequest("sim", min_replicas=2, max_replicas=2))
    async with asyncio.timeout(60):
        async for status in client.watch_status():
            if status.deployments[0].ready == 2:
                break
    await c.answers()


@pytest.mark.parametrize("how", ["never loads", "never ready"])
async def test_the_old_revision_serves_and_everybody_is_told_why(tmp_path: Path, how: str) -> None:
    broken, why = BROKEN[how]
    async with cluster(tmp_path, start_limit="2") as c, c.head() as head, c.client() as client:
        await serving_two(client, c)
        before = {r.status.pid for r in (await client.status()).replicas}
        async with loaded(Load(c.url, "sim")) as load:
            told = await cli(
                c, "deploy", "sim", *(f"--engine_arg={k}={json.dumps(v)}" for k, v in (ARGS | broken).items())
            )
            assert told.code == 1
            assert "gave up after 3 failures in a row" in told.err
            assert why.rstrip(".") in told.err
            assert "revision 1 goes on serving" in told.err
            shown = " ".join((await cli(c, "status")).out.split())
            assert "revision 2 failed: gave up after 3 failures in a row" in shown
            assert "revision 1 goes on serving" in shown
            listed = " ".join((await cli(c, "revisions", "sim")).out.split())
            assert "failed: gave up" in listed
            status = await client.status()
            assert len(failed(status, 2)) == 1, "one at a time, and no other node is tried"
            assert before <= {r.status.pid for r in status.replicas}, "the old replicas are those from before"
            await load.more(8)
            # It stays so, also with a new head.
            await head.kill()
            async with c.head():
                async with c.admin() as admin:
                    await admin.status_when(lambda s: failed(s, 2) and s.deployments[0].ready == 2)
                await load.more(8)
                back = await cli(c, "rollback", "sim")
                assert back.out.splitlines()[0] == "sim goes back to revision 1, as revision 3.", back
                assert back.code == 0
                await load.more(8)
                assert "reason" in json.loads((await cli(c, "status", "--json")).out)["deployments"][0]
        assert load.errors == []


async def test_a_first_deployment_that_fails_says_why_to_those_who_ask(tmp_path: Path) -> None:
    async with cluster(tmp_path) as c, c.head(), c.client() as client:
        broken, why = BROKEN["never loads"]
        told = await cli(c, "deploy", "sim", *(f"--engine_arg={k}={json.dumps(v)}" for k, v in (ARGS | broken).items()))
        assert told.code == 1
        assert why.rstrip(".") in told.err
        assert "goes on serving" not in told.err
        assert why in (await client.status()).deployments[0].reason


async def test_a_revision_that_crashes_at_work_does_not_use_up_the_old_one(tmp_path: Path) -> None:
    """Each of its replicas is READY until its first request: those requests may fail, and no more replicas go."""
    broken, why = BROKEN["crashes at work"]
    async with cluster(tmp_path, catalog=CATALOG) as c, c.head(drain_s="1"), c.client() as client:
        await serving_two(client, c)
        async with loaded(Load(c.url, "sim")) as load:
            args = json.dumps(ARGS | broken)
            await client.deploy(DeployRequest("sim", min_replicas=2, max_replicas=2, engine_args_json=args))
            async with asyncio.timeout(90):
                async for status in client.watch_status():
                    old = [r for r in status.replicas if r.status.revision == 1 and r.status.phase is Phase.READY]
                    assert old
                    if len(failed(status, 2)) == 2:
                        break
            assert all(why in reason for reason in failed(status, 2))
            calm = len(load.errors)
            await load.more(12)
            assert len(load.errors) <= calm + 4, "the old replica answers; at most what was under way then"
