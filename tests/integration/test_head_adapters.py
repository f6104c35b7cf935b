"""Adapters as the head has them: part of a deployment, routes of their own, told to nodes without a new replica."""

from __future__ import annotations

from pathlib import Path

import pytest
from head_fixtures import Admin, SchedulerDouble, head_settings, until

from headrace.core.types import Adapter, CatalogEntry, ModelSpec, Resources, RouteState
from headrace.errors import Conflict, InvalidRequest, NotFound, UserError
from headrace.head.controller import serving
from headrace.rpc import convert_head

A, B = Adapter("a", "/lora/a"), Adapter("b", "hf://o/b", "v1")


async def test_adapters_come_and_go_with_the_same_replica_and_survive_a_restart(tmp_path: Path) -> None:
    async with serving(head_settings(tmp_path)) as head, Admin(head.grpc) as admin, SchedulerDouble(head.node) as node:
        await admin.deploy("demo", adapters=(A,))
        table = await admin.table_when(lambda t: "demo:a" in t.routes and t.routes["demo:a"].endpoints)
        first = table.routes["demo"].endpoints
        assert table.routes["demo:a"].endpoints == first
        assert node.desired is not None
        assert node.desired[0].adapters == (A,)

        node.refuses = lambda adapter: "The adapter is for another model." if adapter.name == "b" else ""
        made = await admin.add_adapter("demo", B)
        assert (made.deployment.revision, made.deployment.adapters) == (1, (A, B))
        table = await admin.table_when(lambda t: t.routes.get("demo:b") and t.routes["demo:b"].state != "starting")
        assert (table.routes["demo:b"].state, table.routes["demo:b"].endpoints) == (RouteState.FAILED, ())
        assert table.routes["demo:b"].reason == "the adapter b cannot be loaded"
        assert table.routes["demo"].endpoints == table.routes["demo:a"].endpoints == first

        assert (await admin.deploy("demo", cpus=2.0)).deployment.adapters == (A, B), "kept where nothing is said"
        with pytest.raises(NotFound, match="demo has no adapter 'c'; it has: a, b"):
            await admin.remove_adapter("demo", "c")
        with pytest.raises(NotFound, match="No deployment 'gpt2'; deployed are: demo"):
            await admin.add_adapter("gpt2", A)
        with pytest.raises(InvalidRequest, match="not an adapter's name"):
            await admin.add_adapter("demo", Adapter("x:y", "/x"))

    async with serving(head_settings(tmp_path)) as head, Admin(head.grpc) as admin, SchedulerDouble(head.node) as node:
        assert (await admin.status()).deployments[0].deployment.adapters == (A, B)
        await admin.remove_adapter("demo", "a")
        await until(lambda: node.desired and node.desired[0].adapters == (B,))
        table = await admin.table_when(lambda t: "demo:a" not in t.routes)
        assert "demo:b" in table.routes


async def test_a_request_for_a_catalogued_adapter_deploys_its_model(tmp_path: Path) -> None:
    file = tmp_path / "catalog.yaml"
    file.write_text("models:\n  mine:\n    source: /models/mine\n    adapters: {a: /lora/a}\n")
    settings = head_settings(tmp_path, catalog=file)
    async with serving(settings) as head, Admin(head.grpc) as admin, SchedulerDouble(head.node) as node:
        table = await admin.table_when(lambda t: True)
        assert table.routes["mine:a"].state is RouteState.AVAILABLE
        await admin.ensure("mine:a")
        await admin.table_when(lambda t: t.routes["mine:a"].state is RouteState.READY)
        assert node.desired is not None
        assert [(s.deployment, s.adapters) for s in node.desired] == [("mine", (A,))]
        await admin.ensure("mine:a")
        assert len((await admin.status()).deployments) == 1
        with pytest.raises(NotFound, match="No model 'mine:z'"):
            await admin.ensure("mine:z")


async def test_one_name_is_never_two_things(tmp_path: Path) -> None:
    async with serving(head_settings(tmp_path)) as head, Admin(head.grpc) as admin:
        await admin.deploy("demo", adapters=(A,))
        with pytest.raises(Conflict, match="demo:a is the adapter a of demo already; choose another name"):
            await admin.deploy("/models/x", name="demo:a")
        entry = CatalogEntry("demo:a", ModelSpec("/models/x"), Resources(1.0))
        with pytest.raises(Conflict, match="demo:a is the adapter a of demo already"):
            await admin._ask(admin.stub.AddModel(convert_head.catalog_entry_to_pb(entry)))
        await admin.deploy("/models/x", name="demo:b")
        with pytest.raises(Conflict, match="The adapter b of demo would be called as the model demo:b is"):
            await admin.add_adapter("demo", B)
        with pytest.raises(Conflict, match="The adapter b of demo would be called as the model demo:b is"):
            await admin.deploy("demo", adapters=(A, B))
        assert [d.deployment.adapters for d in (await admin.status()).deployments] == [(A,), ()]


async def test_a_catalog_file_with_one_name_for_two_things_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "catalog.yaml"
    file.write_text("models:\n  m: {source: /m, adapters: {a: /a}}\n  'm:a': {source: /n}\n")
    with pytest.raises(UserError, match=r"catalog.yaml: .*m:a"):
        await serving(head_settings(tmp_path, catalog=file)).__aenter__()
