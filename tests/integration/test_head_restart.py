"""A head that is killed loses nothing that it acknowledged, and the next one goes on where it was."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from pathlib import Path

import grpc
import pytest
from head_fixtures import Admin, SchedulerDouble, head_process, head_settings, until

from headrace.core.phase import Phase
from headrace.core.types import CatalogEntry, ModelSpec, Resources, RouteState
from headrace.errors import UserError
from headrace.head.controller import serving
from headrace.process import explain_exit
from headrace.rpc import convert_head
from headrace.rpc.v1 import head_pb2


async def test_kill_and_restart_gives_the_same_deployments_intents_and_desired(tmp_path: Path) -> None:
    entry = CatalogEntry("mine", ModelSpec("/models/mine"), Resources(1.0))
    async with head_process(tmp_path) as first, Admin(first.endpoint.grpc) as admin:
        await admin.stub.AddModel(convert_head.catalog_entry_to_pb(entry))
        await admin.deploy("demo", min_replicas=2)
        await admin.deploy("mine")
        async with SchedulerDouble(first.endpoint.node) as node:
            await admin.table_when(lambda t: len(t.routes["demo"].endpoints) == 2 and t.routes["mine"].endpoints)
            await until(lambda: all(s.proven for s in node.desired or ()))
            before, table, told = await admin.status(), await admin.table_when(lambda t: True), node.desired
            await first.kill()

    async with head_process(tmp_path) as second, Admin(second.endpoint.grpc) as admin:
        assert second.endpoint.grpc == first.endpoint.grpc, "port 0 finds the port that others know"
        assert second.endpoint.node == first.endpoint.node
        back = SchedulerDouble(second.endpoint.node)
        back.replicas, back.epoch = node.replicas, node.epoch
        async with back:
            await until(lambda: back.desired is not None)
            assert back.desired == told
            again = await admin.table_when(lambda t: True)
            assert again.routes == table.routes, "the first table has every endpoint"
            after = await admin.status()
            assert after.epoch == before.epoch + 1 == again.epoch == back.epoch
            assert [d.deployment for d in after.deployments] == [d.deployment for d in before.deployments]
            assert [(r.node_id, r.status) for r in after.replicas] == [(r.node_id, r.status) for r in before.replicas]


async def test_no_routes_before_the_nodes_have_reported_or_had_their_time(tmp_path: Path) -> None:
    settings = head_settings(tmp_path, lease_s=2.0)
    async with serving(settings) as head, Admin(head.grpc) as admin, SchedulerDouble(head.node) as node:
        await admin.deploy("demo")
        await admin.table_when(lambda t: t.routes["demo"].endpoints)
        replicas = node.replicas
    async with serving(settings) as head, Admin(head.grpc) as admin:
        first = asyncio.ensure_future(admin.table_when(lambda t: True))
        await admin.deploy("gpt2")  # changes happen, and still no table goes out
        status = await admin.status_when(lambda s: s.deployments[1].reason)
        assert status.replicas[0].status.reason == "waits to hear from node 1"
        assert not first.done()
        back = SchedulerDouble(head.node)
        back.replicas = replicas  # before it says hello: its first report counts
        async with back:
            assert (await first).routes["demo"].endpoints
    async with serving(settings) as head, Admin(head.grpc) as admin:
        table = await admin.table_when(lambda t: True)
        assert [e.lost for e in table.routes["demo"].endpoints] == [True], "its last known address"


async def test_every_acknowledged_write_survives_a_kill_right_after_the_answer(tmp_path: Path) -> None:
    """Deploys, one after another, until a kill: what was answered is there, and at most one more."""
    for n in range(3):
        async with head_process(tmp_path) as head, Admin(head.endpoint.grpc) as admin:
            acknowledged: list[str] = []

            async def write(admin: Admin = admin, acknowledged: list[str] = acknowledged, n: int = n) -> None:
                for i in range(1000):
                    await admin.deploy("demo", name=f"d{n}-{i}", min_replicas=0, max_replicas=1)
                    acknowledged.append(f"d{n}-{i}")

            writing = asyncio.ensure_future(write())
            await until(lambda acknowledged=acknowledged, n=n: len(acknowledged) > 3 * n)
            os.kill(head.child.pid, signal.SIGKILL)
            await head.child.wait()
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
        async with serving(head_settings(tmp_path)) as now, Admin(now.grpc) as admin:
            found = {d.deployment.name for d in (await admin.status()).deployments}
            mine = {name for name in found if name.startswith(f"d{n}-")}
            assert set(acknowledged) <= mine
            assert len(mine) <= len(acknowledged) + 1


async def test_a_second_head_with_the_same_state_is_refused(tmp_path: Path) -> None:
    async with serving(head_settings(tmp_path)) as head:
        with pytest.raises(UserError) as caught:
            await serving(head_settings(tmp_path)).__aenter__()
        assert caught.value.message == (
            f"Another headrace head (pid {head.pid}) runs with this state directory ({tmp_path}); stop it or choose"
            " another with --state-dir."
        )


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_ends_in_order_when_told_to(tmp_path: Path, signum: signal.Signals) -> None:
    async with head_process(tmp_path) as head:
        os.kill(head.child.pid, signum)
        assert explain_exit(await head.child.wait()) == "exited with code 0", head.output.read_text()
        assert not (tmp_path / "head" / "endpoint.json").exists()
        assert "Traceback" not in head.output.read_text()


async def test_a_damaged_state_is_refused_in_a_sentence(tmp_path: Path) -> None:
    async with serving(head_settings(tmp_path)):
        pass
    (tmp_path / "head" / "state.db").write_bytes(b"")
    with pytest.raises(UserError, match="Headrace does not guess"):
        await serving(head_settings(tmp_path)).__aenter__()


async def test_a_full_disk_refuses_writes_and_answers_reads(tmp_path: Path) -> None:
    async with serving(head_settings(tmp_path)) as head, Admin(head.grpc) as admin:
        await admin.deploy("demo", min_replicas=0, max_replicas=1)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limits[1]))
        try:
            with pytest.raises(grpc.RpcError) as caught:
                await admin.stub.Delete(head_pb2.DeleteRequest(name="demo"))
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]
            assert "nothing was changed" in caught.value.details()  # type: ignore[attr-defined]
            assert [d.deployment.name for d in (await admin.status()).deployments] == ["demo"]
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        await admin.delete("demo")
        assert (await admin.status()).deployments == ()


async def test_a_herd_at_a_model_that_is_not_deployed_makes_one_deployment(tmp_path: Path) -> None:
    async with (
        serving(head_settings(tmp_path)) as head,
        Admin(head.grpc) as admin,
        SchedulerDouble(head.node) as node,
    ):
        await asyncio.gather(*(admin.ensure("demo") for _ in range(500)))
        table = await admin.table_when(lambda t: t.routes["demo"].state is RouteState.READY)
        assert len(table.routes["demo"].endpoints) == 1
        status = await admin.status()
        assert [(d.deployment.name, d.deployment.revision) for d in status.deployments] == [("demo", 1)]
        assert len(node.replicas) == 1
        await admin.scale("demo", 0, 1)
        await until(lambda: not node.replicas)
        await admin.ensure("demo")
        await until(lambda: [s.phase for s in node.replicas.values()] == [Phase.READY])
