"""A state file that is not what the head wrote: the head has every acknowledged row, or refuses. Never fewer."""

from __future__ import annotations

import os
import random
import sqlite3
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from head_fixtures import Admin, head_process, head_settings

from headrace.core.state import Goal, Intent, PutDeployment, PutEntry, PutIntent, State
from headrace.core.types import Adapter, CatalogEntry, Deployment, ModelSpec, NodeId, ReplicaId, Resources
from headrace.errors import UserError
from headrace.head.controller import serving
from headrace.head.store import SqliteStore
from headrace.process import Child, child_env

SEED = int(os.environ.get("SEED", "4"))
TIMES = 150  # of each kind


def deployment(n: int) -> Deployment:
    model = ModelSpec(f"hf://org/model-{n}", "main", "openvino", 4096, "{{ messages }} " * 40 * (n % 3), "int8")
    adapters = (Adapter(f"a{n}", f"/adapters/{n}"),)
    return Deployment(f"model-{n}", 1, model, Resources(1.5, 2**33), 1, 2, 1, 1_800_000_000 + n, adapters)


async def filled(path: Path) -> State:
    """A file that has seen work: rows came, changed and went. What it holds now."""
    store = await SqliteStore.open(path)
    for n in range(12):
        d = deployment(n)
        intent = Intent(
            ReplicaId(f"{d.name}-1-abcdef"), d.name, 1, NodeId("1"), d.resources, (n,), Goal.RUN, 1.0, 2.0, "h:1", 9
        )
        entry = CatalogEntry(f"mine-{n}", d.model, d.resources, "words", "added")
        await store.commit([PutDeployment(d), PutIntent(intent), PutEntry(entry)])
    for n in range(0, 12, 3):
        await store.commit([PutDeployment(replace(deployment(n), revision=2, replicas=2))])
    state = await store.load()
    await store.close()
    return state


async def told(path: Path) -> State | str:
    """What a head finds in the file, or the sentence with which it refuses it."""
    try:
        store = await SqliteStore.open(path)
    except UserError as e:
        return e.message
    try:
        return await store.load()
    except UserError as e:
        return e.message
    finally:
        await store.close()


def one_bit(data: bytearray, chance: random.Random) -> None:
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def some_bytes(data: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(data))
    data[at : at + 16] = chance.randbytes(len(data[at : at + 16]))


def a_page_of_zeros(data: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(data) // 4096) * 4096
    data[at : at + 4096] = bytes(4096)


def two_pages_swapped(data: bytearray, chance: random.Random) -> None:
    a, b = (4096 * n for n in chance.sample(range(len(data) // 4096), 2))
    data[a : a + 4096], data[b : b + 4096] = data[b : b + 4096], data[a : a + 4096]


def cut(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(len(data)) :]


def cut_at_a_page(data: bytearray, chance: random.Random) -> None:
    del data[4096 * chance.randrange(len(data) // 4096) :]


KINDS: list[Callable[[bytearray, random.Random], None]] = [
    one_bit, some_bytes, a_page_of_zeros, two_pages_swapped, cut, cut_at_a_page,
]  # fmt: skip


@pytest.mark.parametrize("damage", KINDS, ids=lambda f: f.__name__)
async def test_all_rows_or_a_refusal(tmp_path: Path, damage: Callable[[bytearray, random.Random], None]) -> None:
    path = tmp_path / "head" / "state.db"
    path.parent.mkdir()
    good = await filled(path)
    whole = path.read_bytes()
    assert len(whole) >= 8 * 4096, "it must have inner pages to damage"
    chance = random.Random(f"{SEED} {damage.__name__}")
    refused = 0
    for time in range(TIMES):
        data = bytearray(whole)
        damage(data, chance)
        path.write_bytes(data)
        path.with_name("state.db-journal").unlink(missing_ok=True)
        found = await told(path)
        if isinstance(found, str):
            refused += 1
            assert "`headrace doctor" in found, (time, found)
        else:
            assert found == good, f"seed {SEED}, {damage.__name__} number {time}"
    assert refused >= TIMES * (0.3 if damage in (one_bit, some_bytes) else 0.8)


async def test_a_row_taken_out_behind_the_heads_back_is_missed(tmp_path: Path) -> None:
    """SQLite itself has no objection to such a file."""
    for table in ("deployments", "intents", "entries"):
        path = tmp_path / table / "head" / "state.db"
        path.parent.mkdir(parents=True)
        await filled(path)
        c = sqlite3.connect(path)
        c.execute(f"DELETE FROM {table} WHERE rowid = (SELECT max(rowid) FROM {table})")
        c.commit()
        c.close()
        found = await told(path)
        assert isinstance(found, str)
        assert "rows and has" in found


@pytest.mark.parametrize(
    ("contents", "why"),
    [(b"", "is damaged"), (b"not a database " * 999, "is damaged"), (b"SQLite format 3\0" + bytes(4080), "is damaged")],
    ids=["empty", "not a database", "header alone"],
)
async def test_what_is_no_database_is_refused(tmp_path: Path, contents: bytes, why: str) -> None:
    path = tmp_path / "head" / "state.db"
    path.parent.mkdir()
    path.write_bytes(contents)
    found = await told(path)
    assert isinstance(found, str)
    assert why in found
    assert f"`headrace doctor --state-dir={tmp_path}`" in found
    assert path.read_bytes() == contents, "left as it was"


async def test_a_real_head_refuses_in_one_sentence_and_starts_again_once_the_file_is_back(tmp_path: Path) -> None:
    async with serving(head_settings(tmp_path)) as head, Admin(head.grpc) as admin:
        await admin.deploy("demo", min_replicas=0, max_replicas=1)
    path = tmp_path / "head" / "state.db"
    backup = path.read_bytes()
    path.write_bytes(backup[: len(backup) // 2])
    output = tmp_path / "head.log"
    argv = ["headrace", "head", f"--state_dir={tmp_path}", "--num_proxies=0", "--node_port=0", "--grpc_port=0"]

    child = Child.spawn([sys.executable, "-m", *argv], env=child_env(), output=output)
    assert await child.wait() == 1
    said = [line for line in output.read_text().splitlines() if line.startswith("Error: ")]
    assert len(said) == 1
    assert f"`headrace doctor --state-dir={tmp_path}`" in said[0]
    assert "Traceback" not in output.read_text()
    path.write_bytes(backup)
    async with head_process(tmp_path) as again, Admin(again.endpoint.grpc) as admin:
        assert [d.deployment.name for d in (await admin.status()).deployments] == ["demo"]
