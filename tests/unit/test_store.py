"""The store gives back what it was given, all of it or none, and refuses what it cannot vouch for."""

from __future__ import annotations

import resource
import sqlite3
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.core.state import (
    HISTORY,
    Change,
    DropDeployment,
    DropEntry,
    DropIntent,
    Goal,
    Intent,
    PutDeployment,
    PutEntry,
    PutIntent,
    State,
    apply,
)
from headrace.core.types import Adapter, CatalogEntry, Deployment, ModelSpec, NodeId, ReplicaId, Resources
from headrace.errors import Fenced, Unavailable, UserError
from headrace.head.store import SqliteStore

JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")  # https://www.sqlite.org/fileformat.html

MODEL = ModelSpec("hf://a/b", "rev", "openvino", 128, "{{ 'ü' }}", "int8", '{"a":1}')
DEPLOYMENT = Deployment(
    "d", 1, MODEL, Resources(0.1, 2**40, 2, 2**33), 1, 3, 2, 1_800_000_000, (Adapter("x", "/x", "main"),)
)
GIVEN_UP = Intent(
    ReplicaId("d-1-fed"), "d", 1, NodeId("n"), Resources(), (), Goal.GIVEN_UP, 1.1, 2.2, reason="No.", incarnation=2**62
)  # fmt: skip
INTENT = Intent(
    ReplicaId("d-1-abc"), "d", 1, NodeId("n"), DEPLOYMENT.resources, (0, 3), Goal.RUN, 1.1, 2.2, "h:1", 99
)  # fmt: skip
ENTRY = CatalogEntry("m", MODEL, Resources(1.0), "words", "added", (Adapter("y", "hf://o/y"),))


def deployment(name: str, revision: int) -> PutDeployment:
    return PutDeployment(replace(DEPLOYMENT, name=name, revision=revision))


def intent(name: str, revision: int, goal: Goal) -> tuple[Change, ...]:
    put = PutIntent(replace(INTENT, replica_id=ReplicaId(f"{name}-{revision}-0"), deployment=name, revision=revision,
                            goal=goal))  # fmt: skip
    return (deployment(name, revision), put)


names, numbers = st.sampled_from("ab"), st.integers(1, 3)
batches = st.lists(
    st.one_of(
        st.builds(deployment, names, numbers).map(lambda c: (c,)),
        st.builds(DropDeployment, names).map(lambda c: (c,)),
        st.builds(intent, names, numbers, st.sampled_from(Goal)),
        st.builds(lambda n, r: (DropIntent(ReplicaId(f"{n}-{r}-0")),), names, numbers),
        st.builds(lambda n: (PutEntry(replace(ENTRY, name=n)),), names),
        st.builds(DropEntry, names).map(lambda c: (c,)),
    ),
    max_size=12,
)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches)
async def test_holds_exactly_what_the_changes_come_to(
    tmp_path_factory: pytest.TempPathFactory, changes: Sequence[Sequence[Change]]
) -> None:
    path = tmp_path_factory.mktemp("store") / "state.db"
    store, state = await SqliteStore.open(path), State()
    for batch in changes:
        await store.commit(batch)
        state = apply(state, batch)
    assert await store.load() == state
    await store.close()
    again = await SqliteStore.open(path)
    assert await again.load() == state
    assert again.epoch == store.epoch + 1
    await again.close()


async def filled(path: Path) -> SqliteStore:
    store = await SqliteStore.open(path)
    await store.commit([PutDeployment(DEPLOYMENT), PutIntent(INTENT), PutEntry(ENTRY)])
    return store


async def test_every_field_survives(tmp_path: Path) -> None:
    store = await filled(tmp_path / "state.db")
    state = await store.load()
    assert state.deployments == {"d": DEPLOYMENT}
    assert state.intents == {INTENT.replica_id: INTENT}
    assert state.entries == {"m": ENTRY}
    given = replace(DEPLOYMENT, proven=True, on_demand=True), replace(ENTRY, on_demand=True)
    await store.commit([PutDeployment(given[0]), PutIntent(GIVEN_UP), PutEntry(given[1])])
    state = await store.load()
    assert (state.deployments["d"], state.entries["m"]) == given
    assert state.revisions["d", 1].proven
    assert state.intents[GIVEN_UP.replica_id] == GIVEN_UP
    await store.close()


async def test_the_newest_revisions_are_kept_and_those_that_replicas_exist_of(tmp_path: Path) -> None:
    store = await filled(tmp_path / "state.db")
    for number in range(2, HISTORY + 3):
        await store.commit([PutDeployment(replace(DEPLOYMENT, revision=number))])
    newest = {("d", n) for n in range(3, HISTORY + 3)}
    assert set((await store.load()).revisions) == {("d", 1), *newest}
    await store.commit([DropIntent(INTENT.replica_id)])
    assert set((await store.load()).revisions) == newest
    await store.commit([DropDeployment("d")])
    assert set((await store.load()).revisions) == set()
    await store.close()


async def test_an_older_leader_is_fenced(tmp_path: Path) -> None:
    old = await filled(tmp_path / "state.db")
    new = await SqliteStore.open(tmp_path / "state.db")
    with pytest.raises(Fenced):
        await old.commit([DropDeployment("d")])
    assert set((await new.load()).deployments) == {"d"}
    await old.close()
    await new.close()


async def test_a_deleted_state_does_not_bring_back_old_epochs(tmp_path: Path) -> None:
    first = await SqliteStore.open(tmp_path / "state.db")
    await first.close()
    (tmp_path / "state.db").unlink()
    second = await SqliteStore.open(tmp_path / "state.db")
    await second.close()
    assert second.epoch >= first.epoch


async def test_the_loops_thread_never_touches_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: set[str] = set()
    connect = sqlite3.connect

    def noted(*args: object, **more: object) -> sqlite3.Connection:
        threads.add(threading.current_thread().name)
        return connect(*args, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(sqlite3, "connect", noted)
    await (await filled(tmp_path / "state.db")).close()
    assert len(threads) == 1
    assert threads.pop().startswith("headrace-store")


async def test_writes_that_do_not_fit_are_refused_and_change_nothing(tmp_path: Path) -> None:
    store = await filled(tmp_path / "state.db")
    before = await store.load()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16 * 1024, limits[1]))
    try:
        much = [PutDeployment(replace(DEPLOYMENT, name=f"n{n}", model=ModelSpec("/x" * 2000))) for n in range(20)]
        with pytest.raises(Unavailable, match=r"The head cannot write its state .*nothing was changed"):
            await store.commit(much)
        assert await store.load() == before
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    await store.commit([DropDeployment("d")])
    assert "d" not in (await store.load()).deployments
    await store.close()


async def opened_and_loaded(path: Path) -> State:
    store = await SqliteStore.open(path)
    try:
        return await store.load()
    finally:
        await store.close()


async def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        await opened_and_loaded(path)
    return caught.value.message


@pytest.mark.parametrize("size", [0, 1, 512, 4096, 5000])
async def test_a_truncated_file_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "state.db"
    await (await filled(path)).close()
    assert path.stat().st_size > size
    with path.open("r+b") as f:
        f.truncate(size)
    told = await refused(path)
    assert "is damaged" in told
    assert f"`headrace doctor --state-dir={path.parent.parent}`" in told


async def test_a_file_without_its_beginning_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    path.write_bytes(b"nonsense" * 1000)
    assert "is damaged (file is not a database)" in await refused(path)


@pytest.mark.parametrize(("name", "left"), [("state.db-wal", b"x"), ("state.db-journal", JOURNAL_MAGIC)])
async def test_half_a_commit_without_its_file_is_refused(tmp_path: Path, name: str, left: bytes) -> None:
    (tmp_path / name).write_bytes(left)
    assert "what was left of an unfinished commit" in await refused(tmp_path / "state.db")


async def test_a_file_that_was_moved_away_leaves_a_journal_that_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    await (await filled(path)).close()
    assert path.with_name("state.db-journal").exists()
    path.unlink()
    assert await opened_and_loaded(path) == State()


async def test_every_altered_bit_of_what_is_stored_is_noticed(tmp_path: Path) -> None:
    """Bits in unused space may change; whatever loads must be what was stored."""
    path = tmp_path / "state.db"
    store = await filled(path)
    good = await store.load()
    await store.close()
    whole = path.read_bytes()
    stored = [whole.index(word) + 1 for word in (b"hf://a/b", b"d-1-abc", b"h:1", b"words", b"schema")]
    noticed = 0
    for position in [*stored, *range(0, len(whole), 2777)]:
        damaged = bytearray(whole)
        damaged[position] ^= 0x11
        path.write_bytes(bytes(damaged))
        try:
            assert await opened_and_loaded(path) == good, position
        except UserError:
            noticed += 1
    assert noticed >= len(stored)


async def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    await (await filled(path)).close()
    from headrace.head import rows

    c = sqlite3.connect(path)
    seal = rows.sealed(rows.meta, {"key": "schema", "value": "99"})["seal"]
    c.execute("UPDATE meta SET value = '99', seal = ? WHERE key = 'schema'", (seal,))
    c.commit()
    c.close()
    assert "has schema 99" in await refused(path)


def a_file_of_the_first_schema(path: Path) -> None:
    """As headrace wrote it when deployments had no adapters."""
    c = sqlite3.connect(path)
    c.executescript(Path(__file__).with_name("state_v1.sql").read_text())
    c.close()


async def test_a_file_of_the_first_schema_opens_and_is_ours_from_then_on(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    a_file_of_the_first_schema(path)
    state = await opened_and_loaded(path)
    assert state.deployments == {"d": replace(DEPLOYMENT, adapters=())}
    assert state.intents == {INTENT.replica_id: INTENT}
    assert state.entries == {"m": replace(ENTRY, adapters=())}
    store = await SqliteStore.open(path)
    await store.commit([PutDeployment(DEPLOYMENT), PutEntry(ENTRY)])
    await store.close()
    again = await opened_and_loaded(path)
    assert again.deployments == {"d": DEPLOYMENT}
    assert again.entries == {"m": ENTRY}


async def test_a_damaged_file_of_the_first_schema_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    a_file_of_the_first_schema(path)
    c = sqlite3.connect(path)
    c.execute("UPDATE entries SET description = 'other words'")
    c.commit()
    c.close()
    for _ in range(2):
        assert "a row of entries was altered" in await refused(path)
    c = sqlite3.connect(path)
    assert c.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone() == ("1",)
    assert [row[1] for row in c.execute("PRAGMA table_info(deployments)")][-1] == "seal"
    c.close()


async def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    assert "Cannot use the state file" in await refused(tmp_path / "missing" / "state.db")
