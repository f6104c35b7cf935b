"""What `headrace doctor` does with a state file: look at it as a head would, and save what can be read of it."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from headrace.core.intents import Intents
from headrace.core.state import State
from headrace.errors import UserError
from headrace.head import rows, state_file
from headrace.head.carve import carved
from headrace.head.store import explained

_BESIDE = ("", "-journal", "-wal")


@dataclass(frozen=True, slots=True)
class Salvaged:
    """What a repair did. `rows` of `of` were saved (None: the file does not say how many it had)."""

    copies: tuple[Path, ...]
    state: State
    rows: int
    of: int | None


def examine(path: Path, live: bool) -> State:
    """What a head would load from the file; UserError with the sentence with which it would refuse. Changes nothing.

    live: a head is at work with it.
    """

    def read() -> State:
        with _copy(path, live) as copy, _disposed(state_file.connect(copy)) as engine:
            state_file.begin_epoch(engine, path)
            with engine.begin() as c:
                return state_file.load(c)

    return explained(path, read)


@contextmanager
def _disposed(engine: sa.Engine) -> Iterator[sa.Engine]:
    try:
        yield engine
    finally:
        engine.dispose()


def repair(path: Path) -> Salvaged:
    """Make a new file of every row that can be read, after a copy of the old one. The caller holds the head's lock.

    UserError if nothing can be read, and then nothing is changed.
    """
    saved: dict[str, dict[tuple[object, ...], rows.Row]] = {name: {} for name in rows.metadata.tables}
    unclear: set[tuple[str, tuple[object, ...]]] = set()  # of two that differ, nobody knows which is the newer
    with _copy(path, live=False) as copy:
        # Takes back a commit that was not finished, if SQLite can still do that.
        with suppress(sqlite3.Error), closing(sqlite3.connect(copy)) as c:
            c.execute("SELECT count(*) FROM sqlite_master").fetchall()
        for table, row in carved(copy.read_bytes()):
            key = tuple(row[c.name] for c in table.primary_key.columns)
            if saved[table.name].setdefault(key, row) != row:
                unclear.add((table.name, key))
    for name, key in unclear:
        del saved[name][key]
    count = sum(len(found) for name, found in saved.items() if name != "meta")
    if not count:
        raise UserError(f"Nothing can be read of {path}: restore it from a backup, or move it away to begin with none.")
    meta = {str(row["key"]): str(row["value"]) for row in saved["meta"].values()}
    if int(meta.get("schema", 0)) > rows.SCHEMA_VERSION:
        raise UserError(f"{path} is of a newer version of headrace; repair it with that one.")
    had = int(meta["whole"].split()[0]) - 2 if "whole" in meta else None  # schema and epoch count as well
    copies = _keep(path)
    for name in ("-journal", "-wal"):
        path.with_name(path.name + name).unlink(missing_ok=True)
    state = _state(saved)
    state_file.create(path, state, int(meta.get("epoch", 0)))
    return Salvaged(copies, state, count, had)


def _state(saved: dict[str, dict[tuple[object, ...], rows.Row]]) -> State:
    """Of the rows, those that need no other which is not there."""
    revisions = {(r.deployment, r.revision): r for r in map(rows.revision_of_row, saved["revisions"].values())}
    deployments, intents = {}, {}
    for row in saved["deployments"].values():
        with suppress(rows.Damaged):
            d = rows.deployment_of_row(row, revisions)
            deployments[d.name] = d
    for i in map(rows.intent_of_row, saved["intents"].values()):
        if (i.deployment, i.revision) in revisions:
            intents[i.replica_id] = i
    entries = {e.name: e for e in map(rows.entry_of_row, saved["entries"].values())}
    return State(deployments, revisions, Intents(intents.values()), entries)


def _keep(path: Path) -> tuple[Path, ...]:
    """Copies of the file and of what belongs to it, on disk when this returns."""
    mark = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    copies: list[Path] = []
    for name in _BESIDE:
        old = path.with_name(path.name + name)
        if not old.exists():
            continue
        new = path.with_name(f"{path.name}.damaged-{mark}{name}")
        with old.open("rb") as source, new.open("xb") as target:
            os.chmod(new, 0o600)
            shutil.copyfileobj(source, target)
            target.flush()
            os.fsync(target.fileno())
        copies.append(new)
    return tuple(copies)


@contextmanager
def _copy(path: Path, live: bool) -> Iterator[Path]:
    """A copy to look into, so that looking changes nothing."""
    with tempfile.TemporaryDirectory(prefix="headrace-doctor-") as folder:
        copy = Path(folder) / path.name
        if live:
            # While we read nobody can commit, and what is not committed is not in the file.
            with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5.0)) as c:
                c.execute("BEGIN")
                c.execute("SELECT count(*) FROM sqlite_master").fetchall()
                shutil.copyfile(path, copy)
        else:
            for name in _BESIDE:
                with suppress(FileNotFoundError):
                    shutil.copyfile(path.with_name(path.name + name), copy.with_name(copy.name + name))
        yield copy
