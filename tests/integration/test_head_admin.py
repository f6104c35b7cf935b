"""What people ask of the head: models, deployments, and sentences when they err."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from authority_fixtures import credentials
from head_fixtures import Admin, head_settings, until

from headrace.core.types import CatalogEntry, ModelSpec, Resources, RouteState
from headrace.errors import Forbidden, HeadraceError, InvalidRequest, NotFound, Unavailable, UserError
from headrace.head.controller import serving
from headrace.rpc import convert_head
from headrace.rpc.admin import AdminClient
from headrace.rpc.v1 import head_pb2


async def models(admin: Admin) -> dict[str, CatalogEntry]:
    answer = await admin.stub.ListModels(head_pb2.ListModelsRequest())
    return {m.name: convert_head.catalog_entry_from_pb(m) for m in answer.models}


async def add(admin: Admin, name: str, source: str) -> CatalogEntry:
    entry = CatalogEntry(name, ModelSpec(source), Resources(1.0))
    return convert_head.catalog_entry_from_pb(
        await admin._ask(admin.stub.AddModel(convert_head.catalog_entry_to_pb(entry)))
    )


async def remove(admin: Admin, name: str) -> None:
    await admin._ask(admin.stub.RemoveModel(head_pb2.RemoveModelRequest(name=name)))


async def test_models_are_built_in_from_a_file_or_added(tmp_path: Path) -> None:
    file = tmp_path / "catalog.yaml"
    file.write_text("models:\n  gpt2: {source: /models/gpt2}\n  mine: {source: /models/mine}\n")
    settings = head_settings(tmp_path, catalog=file)
    async with serving(settings) as head, Admin(head.grpc) as admin:
        found = await models(admin)
        origins = {"demo": "built-in", "gpt2": "file", "mine": "file", "phi2": "built-in", "tinyllama": "built-in"}
        assert {n: e.origin for n, e in found.items()} == origins
        assert (await add(admin, "gpt2", "hf://a/b")).origin == "added"
        await add(admin, "other", "/o")
        assert (await models(admin))["gpt2"].model.source == "hf://a/b"
        table = await admin.table_when(lambda t: "other" in t.routes)
        assert table.routes["other"].state is RouteState.AVAILABLE
    async with serving(settings) as head, Admin(head.grpc) as admin:
        assert (await models(admin))["other"].origin == "added", "kept"
        await remove(admin, "gpt2")
        assert (await models(admin))["gpt2"].origin == "file", "what it hid is back"
        with pytest.raises(InvalidRequest, match="comes from the catalog file"):
            await remove(admin, "gpt2")
        with pytest.raises(InvalidRequest, match="phi2 is built in"):
            await remove(admin, "phi2")
        with pytest.raises(NotFound, match="No model 'zzz' was added; added are: other"):
            await remove(admin, "zzz")
        with pytest.raises(InvalidRequest) as caught:
            await add(admin, "x", "relative/folder")
        assert caught.value.param == "source"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("models: {m: {sorce: /x}}", "catalog.yaml: m: unknown key 'sorce'; did you mean source?"),
        ("models: [", "catalog.yaml is not YAML"),
        (None, "Cannot read the catalog"),
    ],
)
async def test_a_bad_catalog_file_is_told(tmp_path: Path, text: str | None, said: str) -> None:
    file = tmp_path / "catalog.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError) as caught:
        await serving(head_settings(tmp_path, catalog=file)).__aenter__()
    assert said in caught.value.message


async def test_errors_name_what_there_is(tmp_path: Path) -> None:
    async with serving(head_settings(tmp_path)) as head, Admin(head.grpc) as admin:
        cases: list[tuple[object, type[HeadraceError], str]] = [
            (admin.deploy("tinylama"), NotFound, "Did you mean tinyllama?"),
            (admin.ensure("tinylama"), NotFound, "there are demo, gpt2, phi2, tinyllama"),
            (admin.ensure("/etc"), NotFound, "No model '/etc'"),
            (admin.delete("x"), NotFound, "No deployment 'x'; deployed are: none."),
            (admin.scale("x", 1, 1), NotFound, "No deployment 'x'; deployed are: none."),
            (admin.scale("x", 2, 1), InvalidRequest, "replica range 2 to 1"),
            (admin.deploy("demo", name="a b"), InvalidRequest, "is not a model name"),
        ]
        for call, error, said in cases:
            with pytest.raises(error) as caught:
                await call  # type: ignore[misc]
            assert said in caught.value.message


async def test_a_redeploy_makes_a_revision_only_if_something_changed(tmp_path: Path) -> None:
    async with serving(head_settings(tmp_path)) as head, Admin(head.grpc) as admin:
        revisions = [
            (await admin.deploy("demo", **more)).deployment.revision
            for more in [
                {},
                {"min_replicas": 2},
                {"engine_args_json": "{ }"},
                {"cpus": 2.0},
                {"cpus": 2.0},
                {"context_tokens": 99},
            ]
        ]
        assert revisions == [1, 1, 1, 2, 2, 3]
        kept = (await admin.status()).deployments[0].deployment
        assert (kept.min_replicas, kept.max_replicas) == (2, 2)


async def test_scaled_to_nothing_stays_so_until_it_is_scaled_again(tmp_path: Path) -> None:
    async with serving(head_settings(tmp_path)) as head, Admin(head.grpc) as admin:
        await admin.deploy("demo", min_replicas=0, max_replicas=0)
        with pytest.raises(Unavailable, match="headrace scale demo 1"):
            await admin.ensure("demo")
        await admin.scale("demo", 0, 3)
        await admin.ensure("demo")
        assert (await admin.status()).deployments[0].deployment.replicas == 1


async def test_a_slow_watcher_gets_the_newest_table_and_versions_only_grow(tmp_path: Path) -> None:
    async with serving(head_settings(tmp_path)) as head, Admin(head.grpc) as admin:
        seen: list[int] = []
        names: set[str] = set()

        async def watch() -> None:
            async for table in admin.tables():
                seen.append(table.version)
                names.update(table.routes)

        watching = asyncio.ensure_future(watch())
        await until(lambda: seen)
        for n in range(40):
            await add(admin, f"m{n}", "/m")
        await until(lambda: {f"m{n}" for n in range(40)} <= names)
        watching.cancel()
        assert seen == sorted(set(seen))


async def test_remote_code_can_be_forbidden(tmp_path: Path) -> None:
    file = tmp_path / "catalog.yaml"
    file.write_text("models:\n  coded: {source: /models/coded, trust_remote_code: true}\n")
    entry = convert_head.catalog_entry_to_pb(CatalogEntry("x", ModelSpec("/x", trust_remote_code=True), Resources(1.0)))
    async with serving(head_settings(tmp_path, catalog=file)) as head, Admin(head.grpc) as admin:
        await admin.deploy("/models/old", trust_remote_code=True, min_replicas=0, max_replicas=1)
    settings = head_settings(tmp_path, catalog=file, forbid_remote_code=True)
    async with serving(settings) as head, Admin(head.grpc) as admin:
        for refused in (
            admin.deploy("/models/x", trust_remote_code=True),
            admin.deploy("coded"),
            admin.ensure("coded"),
            admin.scale("old", 1, 1),
            admin._ask(admin.stub.AddModel(entry)),
        ):
            with pytest.raises(Forbidden, match="--forbid_remote_code") as caught:
                await refused
            assert caught.value.param == "trust_remote_code"
        await admin.deploy("/models/x")
        await admin.deploy("coded", trust_remote_code=False)


async def test_rollback_makes_a_new_revision_of_an_old_one_which_outlives_the_head(tmp_path: Path) -> None:
    settings = head_settings(tmp_path)
    async with serving(settings) as head, Admin(head.grpc) as admin, AdminClient(head.grpc, credentials()) as client:
        await admin.deploy("demo", context_tokens=11)
        await admin.deploy("demo", context_tokens=22, min_replicas=2)
        back = (await client.rollback("demo")).deployment
        assert (back.revision, back.repeats, back.model.context_tokens, back.min_replicas) == (3, 1, 11, 2)
        assert back.revised_unix_s >= back.created_unix_s
        # A redeploy of what runs is none, and does not forget where it came from.
        assert (await admin.deploy("demo", context_tokens=11)).deployment == back
    async with serving(settings) as head, AdminClient(head.grpc, credentials()) as client:
        assert (await client.status()).deployments[0].deployment == back
        found = await client.revisions("demo")
        assert [(r.revision, r.model.context_tokens, r.repeats) for r in found] == [(3, 11, 1), (2, 22, 0), (1, 11, 0)]
        forth = (await client.rollback("demo", 2)).deployment
        assert (forth.revision, forth.repeats, forth.model.context_tokens) == (4, 2, 22)
        for call, said in (
            (client.rollback("demo", 9), "demo has no revision 9 to go back to; kept are: 4, 3, 2, 1."),
            (client.rollback("gpt2"), "No deployment 'gpt2'; deployed are: demo."),
            (client.revisions("gpt2"), "No deployment 'gpt2'; deployed are: demo."),
        ):
            with pytest.raises(NotFound) as caught:
                await call
            assert caught.value.message == said


async def test_rollback_to_remote_code_can_be_forbidden(tmp_path: Path) -> None:
    async with serving(head_settings(tmp_path)) as head, Admin(head.grpc) as admin:
        await admin.deploy("demo", trust_remote_code=True)
        await admin.deploy("demo", trust_remote_code=False)
    async with (
        serving(head_settings(tmp_path, forbid_remote_code=True)) as head,
        AdminClient(head.grpc, credentials()) as client,
    ):
        with pytest.raises(Forbidden, match="remote"):
            await client.rollback("demo")
