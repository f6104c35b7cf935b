"""The head and its schedulers, over real gRPC: placement, reports, leases, fencing, logs."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from head_fixtures import Admin, SchedulerDouble, head_settings, until

from headrace.core.phase import Phase
from headrace.core.types import Gpu, Load, RouteState
from headrace.errors import InvalidRequest, NotFound, Unavailable
from headrace.head.controller import serving
from headrace.rpc.v1 import head_pb2


async def test_a_model_is_deployed_placed_served_and_deleted(tmp_path: Path) -> None:
    async with serving(head_settings(tmp_path)) as head, Admin(head.grpc) as admin:
        table = await admin.table_when(lambda t: True)
        assert {r.state for r in table.routes.values()} == {RouteState.AVAILABLE}
        assert set(table.routes) == {"demo", "gpt2", "phi2", "tinyllama"}

        await admin.deploy("demo", cpus=100.0)
        status = await admin.status_when(lambda s: s.deployments[0].reason.startswith("no scheduler"))
        assert status.deployments[0].state is RouteState.STARTING

        async with SchedulerDouble(head.node, "1") as one, SchedulerDouble(head.node, "2") as two:
            await admin.status_when(lambda s: len(s.nodes) == 2)
            d = (await admin.deploy("gpt2", min_replicas=2)).deployment
            assert (d.name, d.revision, d.replicas) == ("gpt2", 1, 2)
            table = await admin.table_when(lambda t: len(t.routes["gpt2"].endpoints) == 2)
            assert table.routes["gpt2"].state is RouteState.READY
            assert table.routes["gpt2"].context_tokens == 512
            assert len(one.replicas) == len(two.replicas) == 1, "spread over the nodes"
            assert one.welcome is not None
            assert one.welcome.lease_s == 5.0
            assert one.desired is not None
            assert one.desired[0].model.source == "hf://openai-community/gpt2"
            status = await admin.status()
            assert [(n.info.node_id, n.alive, n.free.cpus) for n in status.nodes] == [
                ("1", True, 7.0),
                ("2", True, 7.0),
            ]
            assert [(d.ready, d.reason) for d in status.deployments] == [
                (
                    0,
                    "needs 100 CPUs; node 1 has 7 free of 8 (held by gpt2: 1 CPU),"
                    " node 2 has 7 free of 8 (held by gpt2: 1 CPU)",
                ),
                (2, ""),
            ]

            await admin.delete("gpt2")
            table = await admin.table_when(lambda t: t.routes["gpt2"].state is RouteState.AVAILABLE)
            await until(lambda: not one.replicas and not two.replicas)
            await admin.status_when(lambda s: not s.replicas)


async def test_reports_of_what_changed_add_up_to_those_of_all(tmp_path: Path) -> None:
    async with serving(head_settings(tmp_path)) as head, Admin(head.grpc) as admin:
        node = SchedulerDouble(head.node)
        async with node:
            await admin.deploy("demo", min_replicas=3)
            await admin.table_when(lambda t: len(t.routes["demo"].endpoints) == 3)
            node.mute = True
            a, b, c = sorted(node.replicas)
            await node.report_changes(replace(node.replicas[a], phase=Phase.PENDING, reason="it broke"))
            await admin.status_when(lambda s: [r.status.phase for r in s.replicas].count(Phase.READY) == 2)
            await node.report_changes(replace(node.replicas[b], load=Load(running=7)), gone=[c])
            status = await admin.status_when(lambda s: [r.status.phase for r in s.replicas].count(Phase.READY) == 1)
            said = {r.status.replica_id: r.status for r in status.replicas}
            assert (said[a].phase, said[a].reason) == (Phase.PENDING, "it broke"), "as in the report before"
            assert (said[b].phase, said[b].load.running) == (Phase.READY, 7)
            assert said[c].phase is Phase.PENDING, "its node does not know it any more"
            node.mute = False
            await node.report()
            await admin.status_when(lambda s: all(r.status.phase is Phase.READY for r in s.replicas))

        node.mute = True
        async with node:
            await node.report_changes()
            assert await node._call.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_the_reason_of_a_failure_reaches_status_and_routes_and_a_deploy_tries_again(tmp_path: Path) -> None:
    async with serving(head_settings(tmp_path)) as head, Admin(head.grpc) as admin:
        node = SchedulerDouble(head.node)
        node.becomes = lambda spec: Phase.FAILED if spec.revision == 1 else Phase.READY
        async with node:
            await admin.deploy("demo")
            table = await admin.table_when(lambda t: t.routes["demo"].state is RouteState.FAILED)
            assert table.routes["demo"].reason == "it cannot be started"
            await admin.ensure("demo")
            assert (await admin.status()).deployments[0].deployment.revision == 1, "not so soon"
            again = await admin.deploy("demo")
            assert again.deployment.revision == 2
            await admin.table_when(lambda t: t.routes["demo"].state is RouteState.READY)
            await admin.status_when(lambda s: len(s.replicas) == 1)
            same = await admin.deploy("demo", max_replicas=3)
            assert (same.deployment.revision, same.deployment.max_replicas) == (2, 3)


async def test_the_old_revision_serves_while_the_new_one_fails(tmp_path: Path) -> None:
    async with serving(head_settings(tmp_path)) as head, Admin(head.grpc) as admin:
        node = SchedulerDouble(head.node)
        node.becomes = lambda spec: Phase.READY if spec.revision == 1 else Phase.FAILED
        async with node:
            await admin.deploy("demo")
            first = await admin.table_when(lambda t: t.routes["demo"].endpoints)
            await admin.deploy("demo", context_tokens=128)
            status = await admin.status_when(lambda s: "revision 2 failed" in s.deployments[0].reason)
            assert status.deployments[0].reason == "revision 2 failed: it is broken; revision 1 goes on serving"
            assert status.deployments[0].state is RouteState.READY
            now = await admin.table_when(lambda t: True)
            assert now.routes["demo"].endpoints == first.routes["demo"].endpoints


async def test_gpus_are_given_out_by_index(tmp_path: Path) -> None:
    gpus = [Gpu(i, "H", 80, 80) for i in range(3)]
    async with (
        serving(head_settings(tmp_path)) as head,
        Admin(head.grpc) as admin,
        SchedulerDouble(head.node, gpus=gpus) as node,
    ):
        await admin.deploy("demo", name="a", gpus=2)
        await admin.deploy("demo", name="b", gpus=1)
        await until(lambda: len(node.replicas) == 2)
        assert sorted(s.gpu_indices for s in node.replicas.values()) == [(0, 1), (2,)]
        await admin.deploy("demo", name="c", gpus=1)
        missing = "needs 1 GPU; node 1 has 0 free of 3 (held by a: 2 GPUs, b: 1 GPU)"
        await admin.status_when(lambda s: s.deployments[-1].reason == missing)


async def test_a_lost_node_keeps_its_endpoints_until_others_are_ready(tmp_path: Path) -> None:
    async with serving(head_settings(tmp_path, lease_s=1.0)) as head, Admin(head.grpc) as admin:
        one, two = SchedulerDouble(head.node, "1"), SchedulerDouble(head.node, "2")
        async with one:
            await admin.deploy("demo")
            first = (await admin.table_when(lambda t: t.routes["demo"].endpoints)).routes["demo"].endpoints[0]
            one.mute = True
            table = await admin.table_when(lambda t: any(e.lost for e in t.routes["demo"].endpoints))
            assert [e.replica_id for e in table.routes["demo"].endpoints] == [first.replica_id]
            assert table.routes["demo"].state is RouteState.READY
            status = await admin.status_when(lambda s: not s.nodes[0].alive)
            assert status.replicas[0].status.phase is Phase.LOST
            assert status.deployments[0].reason == "node 1 does not answer; start its scheduler again"
            async with two:
                table = await admin.table_when(
                    lambda t: (
                        [e.replica_id for e in t.routes["demo"].endpoints] not in ([], [first.replica_id])
                        and not any(e.lost for e in t.routes["demo"].endpoints)
                    )
                )
                one.mute = False
                await until(lambda: two.desired == (), "the original stays, the replacement goes")
                await admin.table_when(
                    lambda t: [e.replica_id for e in t.routes["demo"].endpoints] == [first.replica_id]
                )


async def test_a_lost_node_is_not_believed_before_it_has_reported_again(tmp_path: Path) -> None:
    """Its replicas may have died meanwhile: those that made up for them must not go at its mere hello."""
    async with serving(head_settings(tmp_path, lease_s=1.0)) as head, Admin(head.grpc) as admin:
        async with SchedulerDouble(head.node, "1") as one:
            await admin.deploy("demo")
            await until(lambda: one.replicas)
        async with SchedulerDouble(head.node, "2") as two:
            await until(lambda: two.replicas)
            await admin.status_when(lambda s: any(r.status.phase is Phase.READY for r in s.replicas))
            copy = set(two.replicas)
            back = SchedulerDouble(head.node, "1", incarnation=2)
            back.mute = True
            async with back:
                await until(lambda: back.welcome)
                await admin.deploy("gpt2")  # so that we see the head think
                await until(lambda: len(two.replicas) == 2)
                assert copy < set(two.replicas)
                assert not (await admin.status()).nodes[0].alive
                back.mute = False
                await admin.status_when(lambda s: s.nodes[0].alive)


async def test_of_two_schedulers_with_one_id_the_newer_wins(tmp_path: Path) -> None:
    async with (
        serving(head_settings(tmp_path)) as head,
        Admin(head.grpc) as admin,
        SchedulerDouble(head.node, "1", incarnation=10) as old,
    ):
        await until(lambda: old.desired is not None)
        async with SchedulerDouble(head.node, "1", incarnation=11) as new:
            await until(lambda: old.fenced)
            assert old.fenced == "Another scheduler with node id 1 has started on host-1."
            async with SchedulerDouble(head.node, "1", incarnation=10) as again:
                await until(lambda: again.fenced)
                assert again.fenced is not None
                assert "give each its own --node_id" in again.fenced
            await admin.deploy("demo")
            await until(lambda: new.replicas)
            assert not old.replicas


async def test_the_same_scheduler_may_come_back_before_its_old_connection_is_missed(tmp_path: Path) -> None:
    async with (
        serving(head_settings(tmp_path)) as head,
        SchedulerDouble(head.node, "1", incarnation=10) as before,
        SchedulerDouble(head.node, "1", incarnation=10) as after,
    ):
        await until(lambda: after.desired is not None)
        assert before.fenced is None


async def test_logs_come_from_the_node_by_a_prefix_of_the_replicas_id(tmp_path: Path) -> None:
    async with (
        serving(head_settings(tmp_path)) as head,
        Admin(head.grpc) as admin,
        SchedulerDouble(head.node) as node,
    ):
        await admin.deploy("demo", min_replicas=2)
        await until(lambda: len(node.replicas) == 2)
        replica_id = min(node.replicas)

        async def read(asked: str, follow: bool = False) -> bytes:
            request = head_pb2.ReadLogsRequest(replica_id=asked, tail_lines=5, follow=follow)
            return b"".join([m.data async for m in admin.stub.ReadLogs(request)])

        reading = asyncio.ensure_future(
            read(replica_id[:-1] if replica_id[:-1] not in max(node.replicas) else replica_id)
        )
        request = (await until(lambda: node.log_requests))[0]
        assert (request.replica_id, request.tail_lines) == (replica_id, 5)
        await node.log(request.request, b"one\n")
        await node.log(request.request, b"two\n", end=True)
        assert await reading == b"one\ntwo\n"

        for asked, error, said in [
            ("demo-1-", InvalidRequest, "Several replicas begin with 'demo-1-'"),
            ("x", NotFound, "No replica or part 'x'; there are: demo-1-"),
        ]:
            with pytest.raises(error, match=said):
                await admin._ask(anext(aiter(admin.stub.ReadLogs(head_pb2.ReadLogsRequest(replica_id=asked)))))

        failing = asyncio.ensure_future(
            admin._ask(anext(aiter(admin.stub.ReadLogs(head_pb2.ReadLogsRequest(replica_id=replica_id)))))
        )
        request = (await until(lambda: node.log_requests[1:]))[0]
        await node.log(request.request, error="it has written nothing", end=True)
        with pytest.raises(NotFound, match="it has written nothing"):
            await failing

        following = asyncio.ensure_future(read(replica_id, follow=True))
        request = (await until(lambda: node.log_requests[2:]))[0]
        following.cancel()
        await until(lambda: node.stopped_logs == [request.request])
        await node.leave()
        with pytest.raises(Unavailable, match="Node 1 is not connected"):
            await admin._ask(anext(aiter(admin.stub.ReadLogs(head_pb2.ReadLogsRequest(replica_id=replica_id)))))


async def test_a_wall_clock_that_jumps_costs_no_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(head_settings(tmp_path, lease_s=2.0)) as head, Admin(head.grpc) as admin:
        real = time.time
        async with SchedulerDouble(head.node, "1") as one:
            await admin.deploy("demo")
            await until(lambda: one.replicas)
            first = set(one.replicas)
            for jump_s in (+86400.0, -86400.0):
                monkeypatch.setattr(time, "time", lambda jump_s=jump_s: real() + jump_s)
                await admin.deploy("gpt2" if jump_s > 0 else "phi2")
                await until(lambda: not first >= set(one.replicas))
                end = time.monotonic() + 3.0  # longer than the lease
                while time.monotonic() < end:
                    assert (await admin.status()).nodes[0].alive
                    await asyncio.sleep(0.1)
            assert first < set(one.replicas)
            one.mute = True  # and a lease runs out when it should
            await admin.status_when(lambda s: not s.nodes[0].alive)
