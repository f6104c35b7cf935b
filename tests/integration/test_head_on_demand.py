"""What clients may start by calling it: which models, how many, and for how long nobody may use them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from head_fixtures import Admin, SchedulerDouble, head_settings, until

from headrace.core.phase import Phase
from headrace.core.types import Load, RouteState, RouteTable
from headrace.errors import NotFound, Overloaded
from headrace.head.controller import serving

CATALOG = """
models:
  one: {source: /one, on_demand: true, resources: {cpus: 1}}
  two: {source: /two, resources: {cpus: 1}}
  three: {source: /three, resources: {cpus: 1}}
"""


@asynccontextmanager
async def head(tmp_path: Path, **more: Any) -> AsyncIterator[tuple[Admin, SchedulerDouble]]:
    (tmp_path / "catalog.yaml").write_text(CATALOG)
    settings = head_settings(tmp_path, catalog=tmp_path / "catalog.yaml", **more)
    async with serving(settings) as endpoint, Admin(endpoint.grpc) as admin, SchedulerDouble(endpoint.node) as node:
        yield admin, node


async def names(admin: Admin) -> set[str]:
    return {d.deployment.name for d in (await admin.status()).deployments}


def state_in(table: RouteTable, name: str) -> RouteState | None:
    """How a route stands; None while the table lacks it."""
    route = table.routes.get(name)
    return route.state if route else None


@pytest.mark.parametrize(
    ("more", "startable"),
    [
        ({}, {"one", "two", "three"}),
        ({"http_host": "0.0.0.0", "allow_insecure": True}, {"one"}),
        ({"api_keys_file": Path("/keys")}, {"one"}),
        ({"api_keys_file": Path("/keys"), "on_demand": "all"}, {"one", "two", "three"}),
        ({"on_demand": "listed"}, {"one"}),
        ({"on_demand": "off"}, set[str]()),
    ],
)
async def test_only_what_may_be_started_is_offered_and_started(
    tmp_path: Path, more: dict[str, Any], startable: set[str]
) -> None:
    async with head(tmp_path, **more) as (admin, _):
        table = await admin.table_when(lambda t: True)
        assert table.routes.keys() & {"one", "two", "three"} == startable
        for name in ("one", "two", "three"):
            if name in startable:
                await admin.ensure(name)
            else:
                with pytest.raises(NotFound, match=f"deploy it with: headrace deploy {name}"):
                    await admin.ensure(name)
        assert await names(admin) == startable
        await admin.deploy("three")
        await admin.table_when(lambda t: state_in(t, "three") is RouteState.READY)
        await admin.ensure("three")  # what a person has deployed is there for all


async def test_no_more_than_so_many_run_at_once_and_those_that_failed_do_not_count(tmp_path: Path) -> None:
    async with head(tmp_path, on_demand_max=1) as (admin, node):
        node.becomes = lambda spec: Phase.FAILED if spec.deployment == "one" else Phase.READY
        await admin.ensure("one")
        await admin.table_when(lambda t: state_in(t, "one") is RouteState.FAILED)
        await admin.ensure("two")
        with pytest.raises(Overloaded, match="--on_demand_max"):
            await admin.ensure("three")
        await admin.ensure("two")
        await admin.deploy("three")
        assert await names(admin) == {"one", "two", "three"}
        await admin.scale("two", 1, 1)  # now a person wants it, so another may be started by a request
        await admin.delete("three")
        await admin.ensure("three")


async def test_what_nobody_uses_goes_and_what_a_person_deployed_stays(tmp_path: Path) -> None:
    async with head(tmp_path, on_demand_idle_s=4.0) as (admin, node):
        await admin.ensure("one")
        await admin.ensure("two")
        await admin.deploy("three")
        await until(lambda: len(node.replicas) == 3)
        used = next(k for k, s in node.replicas.items() if s.deployment == "two")
        step = 0
        async with asyncio.timeout(60):
            while "one" in await names(admin):
                step += 1
                node.replicas[used] = replace(node.replicas[used], load=Load(step=step))
                await node.report()
                await asyncio.sleep(0.05)
        assert await names(admin) == {"two", "three"}
        assert (await admin.table_when(lambda t: True)).routes["one"].state is RouteState.AVAILABLE
        await admin.scale("two", 1, 1)
        await admin.ensure("one")
        await admin.status_when(lambda s: "one" not in {d.deployment.name for d in s.deployments})
        assert await names(admin) == {"two", "three"}


async def test_that_a_request_made_it_survives_the_head(tmp_path: Path) -> None:
    async with head(tmp_path) as (admin, _):
        await admin.ensure("one")
        await admin.deploy("two")
    async with head(tmp_path, on_demand_idle_s=1.0) as (admin, _):
        await admin.status_when(lambda s: [d.deployment.name for d in s.deployments] == ["two"])
