"""What can be read of a damaged state file is saved, after a copy; and nothing else is."""

from __future__ import annotations

import os
import random
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from test_store import DEPLOYMENT, ENTRY, INTENT, a_file_of_the_first_schema, filled

from headrace.core.state import DropDeployment, PutDeployment, PutEntry, State
from headrace.core.types import ModelSpec
from headrace.errors import UserError
from headrace.head.carve import carved
from headrace.head.salvage import examine, repair
from headrace.head.store import SqliteStore


async def big(path: Path) -> State:
    """Many pages, some rows longer than a page, some deleted again."""
    store = await filled(path)
    for n in range(40):
        model = ModelSpec(f"/m{n}", chat_template="x" * (n % 4) * 3000)
        deployment = PutDeployment(replace(DEPLOYMENT, name=f"d{n}", model=model))
        await store.commit([deployment, PutEntry(replace(ENTRY, name=f"m{n}"))])
    for n in range(0, 40, 5):
        await store.commit([DropDeployment(f"d{n}")])
    state = await store.load()
    await store.close()
    return state


async def loaded(path: Path) -> tuple[State, int]:
    store = await SqliteStore.open(path)
    try:
        return await store.load(), store.epoch
    finally:
        await store.close()


async def test_a_whole_file_is_examined_without_a_change_and_carved_completely(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    state = await big(path)
    before = path.read_bytes()
    assert examine(path, live=False) == state
    assert path.read_bytes() == before
    rows = [table.name for table, _ in carved(before)]
    assert rows.count("deployments") == len(state.deployments) == 33
    assert rows.count("revisions") == len(state.revisions)
    assert rows.count("entries") == len(state.entries)
    assert rows.count("intents") == 1


async def test_examined_beside_a_head_that_is_at_work(tmp_path: Path) -> None:
    store = await filled(tmp_path / "state.db")
    assert examine(tmp_path / "state.db", live=True) == await store.load()
    await store.commit([DropDeployment("d")])
    await store.close()


async def test_only_the_tail_is_lost_of_a_file_that_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    state = await big(path)
    _, epoch = await loaded(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(UserError, match="is damaged"):
        examine(path, live=False)
    done = repair(path)
    found, after = await loaded(path)
    assert found == done.state
    assert done.copies[0].read_bytes() == data[: len(data) * 2 // 3]
    assert after > epoch
    assert 10 < done.rows < (done.of or 10**9)
    for mine, whole in ((found.deployments, state.deployments), (found.entries, state.entries)):
        assert all(whole[k] == v for k, v in mine.items()), "what is there is as it was"


async def test_whatever_was_damaged_what_is_saved_is_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    state = await big(path)
    data = path.read_bytes()
    chance = random.Random(7)
    saved = 0
    for _ in range(40):
        damaged = bytearray(data)
        for _ in range(3):
            at = chance.randrange(len(damaged))
            damaged[at : at + 64] = chance.randbytes(len(damaged[at : at + 64]))
        path.write_bytes(damaged)
        for copy in repair(path).copies:
            copy.unlink()
        found, _ = await loaded(path)
        for mine, whole in (
            (found.deployments, state.deployments), (found.entries, state.entries), (found.intents, state.intents),
        ):  # fmt: skip
            assert all(whole[k] == v for k, v in mine.items())
            saved += len(mine)
    assert saved > 40 * 50, "most rows are saved"


async def test_a_file_of_the_first_schema_is_repaired_as_well(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    a_file_of_the_first_schema(path)
    good = examine(path, live=False)
    with path.open("r+b") as f:
        f.seek(28)
        f.write(bytes(4))  # the number of pages
        f.seek(100)
        f.write(b"\x02")  # the kind of the first page
    assert repair(path).state == good
    assert (await loaded(path))[0] == good


@pytest.mark.parametrize("contents", [b"", b"not a database" * 1000])
async def test_where_nothing_can_be_read_nothing_is_changed(tmp_path: Path, contents: bytes) -> None:
    path = tmp_path / "state.db"
    path.write_bytes(contents)
    with pytest.raises(UserError, match="Nothing can be read of"):
        repair(path)
    assert os.listdir(tmp_path) == ["state.db"]
    assert path.read_bytes() == contents


async def test_a_deployment_without_its_revision_is_not_made_up(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    await (await filled(path)).close()
    c = sqlite3.connect(path)
    c.execute("DELETE FROM revisions")
    c.commit()
    c.close()
    done = repair(path)
    assert (done.rows, done.of) == (3, 4)
    assert (done.state.deployments, done.state.intents) == ({}, {})
    assert done.state.entries == {"m": ENTRY}
    assert INTENT.replica_id not in done.state.intents
