"""A deployment that was given up holds nothing, stays so with another head, and is tried again when it is told to."""

from __future__ import annotations

from pathlib import Path

from head_fixtures import Admin, SchedulerDouble, head_settings, until

from headrace.core.phase import Phase
from headrace.core.types import RouteState, RouteTable
from headrace.head.controller import serving


def state_in(table: RouteTable, name: str) -> RouteState | None:
    """How a route stands; None while the table lacks it."""
    route = table.routes.get(name)
    return route.state if route else None


async def test_its_room_is_others_and_it_is_tried_again_on_demand(tmp_path: Path) -> None:
    async with (
        serving(head_settings(tmp_path)) as head,
        Admin(head.grpc) as admin,
        SchedulerDouble(head.node, cpus=1) as node,
    ):
        node.becomes = lambda spec: Phase.FAILED if spec.deployment == "bad" else Phase.READY
        await admin.deploy("demo", name="bad", cpus=1.0)
        await admin.table_when(lambda t: state_in(t, "bad") is RouteState.FAILED)
        await until(lambda: node.desired == ())
        await admin.deploy("demo", name="good", cpus=1.0)
        await admin.table_when(lambda t: state_in(t, "good") is RouteState.READY)
        status = await admin.status()
        assert {r.status.deployment: (r.status.phase, r.status.reason) for r in status.replicas} == {
            "bad": (Phase.FAILED, "it is broken"),
            "good": (Phase.READY, ""),
        }
        # The same again is a try, with scale as with deploy; now there is no room for it.
        await admin.scale("bad", 1, 1)
        status = await admin.status_when(lambda s: "held by good: 1 CPU" in s.deployments[0].reason)
        assert status.deployments[0].deployment.revision == 2
        node.becomes = lambda spec: Phase.READY
        await admin.delete("good")
        await admin.table_when(lambda t: state_in(t, "bad") is RouteState.READY)


async def test_another_head_knows_and_another_scheduler_tries(tmp_path: Path) -> None:
    async with (
        serving(head_settings(tmp_path)) as head,
        Admin(head.grpc) as admin,
        SchedulerDouble(head.node) as node,
    ):
        node.becomes = lambda spec: Phase.FAILED
        await admin.deploy("demo")
        await admin.table_when(lambda t: state_in(t, "demo") is RouteState.FAILED)
        await until(lambda: node.desired == ())
    async with serving(head_settings(tmp_path)) as head, Admin(head.grpc) as admin:
        status = await admin.status_when(lambda s: s.deployments)
        assert (status.deployments[0].state, status.deployments[0].reason) == (RouteState.FAILED, "it is broken")
        async with SchedulerDouble(head.node) as node:
            await until(lambda: node.desired == ())
        async with SchedulerDouble(head.node, incarnation=2):
            await admin.table_when(lambda t: state_in(t, "demo") is RouteState.READY)
