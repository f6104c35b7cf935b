"""The file of the store: made whole, checked whole, read whole. Nothing in it is guessed.

SQLite checks the shape of its pages and not what is in them, so every row has a seal and the file has one over all
rows, made anew by each commit: a row that was altered is noticed, and so is one that is gone. A rollback journal and no
WAL: a WAL that is damaged ends where the damage begins, without a word, and takes commits along that were acknowledged.
The journal stays (PERSIST), so that a change of what is there needs no room on a disk that is full.
"""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path

import sqlalchemy as sa
import structlog
from sqlalchemy import event as sa_event
from sqlalchemy import exc as sa_exc

from headrace.core import state as s
from headrace.core.intents import Intents
from headrace.errors import UserError
from headrace.head import rows

log = structlog.get_logger()

_BUSY_S = 5.0
_JOURNAL_BYTES = 2**20  # what is kept of it between commits
_JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")
_ENVIRONMENT = ("BUSY", "LOCKED", "FULL", "IOERR", "CANTOPEN", "READONLY", "PERM", "AUTH", "NOMEM", "NOLFS", "PROTOCOL")


def connect(path: Path) -> sa.Engine:
    """An engine with one connection, whose transactions have the write lock from their beginning."""
    engine = sa.create_engine(
        "sqlite://",
        # The driver's own transactions begin late and in surprising places; ours begin with BEGIN IMMEDIATE, below.
        creator=lambda: sqlite3.connect(path, isolation_level=None, timeout=_BUSY_S),
        poolclass=sa.pool.StaticPool,
    )

    @sa_event.listens_for(engine, "connect")
    def _(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute("PRAGMA trusted_schema=OFF")
        connection.execute("PRAGMA cell_size_check=ON")
        connection.execute("PRAGMA secure_delete=ON")  # so that what doctor finds in a damaged file is not of yesterday
        connection.execute("PRAGMA journal_mode=PERSIST")
        connection.execute(f"PRAGMA journal_size_limit={_JOURNAL_BYTES}")
        connection.execute("PRAGMA synchronous=FULL")

    @sa_event.listens_for(engine, "begin")
    def _(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def create(path: Path, state: s.State | None = None, epoch: int = 0) -> None:
    """Make the file elsewhere and move it to its place whole: an empty file there is damage, never a beginning.

    Its epoch is from the clock, or `epoch` if that is more: who deletes a state directory must not bring back epochs
    that nodes have seen.
    """
    journal, partial = path.with_name(path.name + "-journal"), path.with_name(path.name + ".new")
    if path.with_name(path.name + "-wal").exists() or is_hot(journal):
        raise rows.Damaged("what was left of an unfinished commit is there and the file itself is not")
    for left in (journal, partial, partial.with_name(partial.name + "-journal")):
        left.unlink(missing_ok=True)
    c = sqlite3.connect(partial)
    c.close()
    os.chmod(partial, 0o600)
    engine = connect(partial)
    try:
        with engine.begin() as connection:
            rows.metadata.create_all(connection)
            put(connection, rows.meta, {"key": "schema", "value": str(rows.SCHEMA_VERSION)}, "key")
            _set_epoch(connection, max(epoch, int(time.time())))
            for change in () if state is None else _all_of(state):
                write(connection, change)
            seal_whole(connection)
    finally:
        engine.dispose()
    partial.with_name(partial.name + "-journal").unlink(missing_ok=True)
    os.replace(partial, path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def is_hot(journal: Path) -> bool:
    """Whether a journal holds a commit that was not finished, which opening its file takes back."""
    try:
        with journal.open("rb") as f:
            return f.read(8) == _JOURNAL_MAGIC
    except FileNotFoundError:
        return False


def check(c: sa.Connection, path: Path) -> int:
    """The schema of a file that is ours and whole. Damaged if it is not whole, UserError if it is newer than we are."""
    verdict = c.exec_driver_sql("PRAGMA integrity_check(1)").scalar()
    if verdict != "ok":
        raise rows.Damaged(" ".join(str(verdict).removeprefix("*** in database main ***").split()))
    found = set(sa.inspect(c).get_table_names())
    if missing := set(rows.metadata.tables) - found:
        raise rows.Damaged(f"it has no table {min(missing)}")
    schema = meta(c, "schema")
    if not schema.isdecimal():
        raise rows.Damaged(f"its schema is {schema!r}")
    if int(schema) > rows.SCHEMA_VERSION:
        raise UserError(
            f"The state file {path} has schema {schema}, this version of headrace knows up to {rows.SCHEMA_VERSION};"
            " start the version that wrote it, or choose another --state-dir. `headrace doctor` tells more."
        )
    if int(schema) >= 3 and meta(c, "whole") != (now := rows.whole(_seals(c))):
        raise rows.Damaged(f"it had {meta(c, 'whole').split()[0]} rows and has {now.split()[0]}, or others")
    return int(schema)


def begin_epoch(engine: sa.Engine, path: Path) -> int:
    """Check the file, bring an older one to our schema, and begin the next epoch in it."""
    with engine.begin() as c:
        schema = check(c, path)
        if schema < rows.SCHEMA_VERSION:
            _migrate(c, schema, path)
        epoch = epoch_in(c) + 1
        _set_epoch(c, epoch)
        seal_whole(c)
    return epoch


def load(c: sa.Connection) -> s.State:
    """All that the file holds. Damaged if a row is not what was written, or needs one that is not there."""

    def read(table: sa.Table) -> list[rows.Row]:
        return [rows.unsealed(table, dict(r)) for r in c.execute(sa.select(table)).mappings()]

    revisions = {(r.deployment, r.revision): r for r in map(rows.revision_of_row, read(rows.revisions))}
    deployments = [rows.deployment_of_row(r, revisions) for r in read(rows.deployments)]
    intents = [rows.intent_of_row(r) for r in read(rows.intents)]
    entries = [rows.entry_of_row(r) for r in read(rows.entries)]
    if lone := [i for i in intents if (i.deployment, i.revision) not in revisions]:
        raise rows.Damaged(f"replica {lone[0].replica_id} has no revision")
    return s.State({d.name: d for d in deployments}, revisions, Intents(intents), {e.name: e for e in entries})


def write(c: sa.Connection, change: s.Change | s.Revision) -> None:
    """One change; a revision alone where there is no deployment to bring it."""
    match change:
        case s.PutDeployment(d):
            put(c, rows.deployments, rows.row_of_deployment(d), "name")
            write(c, s.revision_of(d))
        case s.Revision():
            put(c, rows.revisions, rows.row_of_revision(change), "deployment", "revision")
        case s.DropDeployment(name):
            c.execute(sa.delete(rows.deployments).where(rows.deployments.c.name == name))
        case s.PutIntent(intent):
            put(c, rows.intents, rows.row_of_intent(intent), "replica_id")
        case s.DropIntent(replica_id):
            c.execute(sa.delete(rows.intents).where(rows.intents.c.replica_id == replica_id))
        case s.PutEntry(entry):
            put(c, rows.entries, rows.row_of_entry(entry), "name")
        case s.DropEntry(name):
            c.execute(sa.delete(rows.entries).where(rows.entries.c.name == name))


def prune(c: sa.Connection) -> None:
    """Drop the revisions that core.state.apply drops."""
    r, d, i = rows.revisions.c, rows.deployments.c, rows.intents.c
    there = {(row[0], row[1]) for row in c.execute(sa.select(r.deployment, r.revision))}
    newest = {row[0]: row[1] for row in c.execute(sa.select(d.name, d.revision))}
    used = {(row[0], row[1]) for row in c.execute(sa.select(i.deployment, i.revision).distinct())}
    for name, number in there - s.kept(there, newest, used):
        c.execute(sa.delete(rows.revisions).where(r.deployment == name, r.revision == number))


def put(c: sa.Connection, table: sa.Table, row: rows.Row, *key: str) -> None:
    # Not an upsert: those differ between databases.
    c.execute(sa.delete(table).where(*(table.c[k] == row[k] for k in key)))
    c.execute(sa.insert(table).values(rows.sealed(table, row)))


def seal_whole(c: sa.Connection) -> None:
    """The last thing that a transaction writes."""
    put(c, rows.meta, {"key": "whole", "value": rows.whole(_seals(c))}, "key")


def epoch_in(c: sa.Connection) -> int:
    return int(meta(c, "epoch"))


def meta(c: sa.Connection, key: str) -> str:
    row = c.execute(sa.select(rows.meta).where(rows.meta.c.key == key)).mappings().first()
    if row is None:
        raise rows.Damaged(f"it does not say its {key}")
    return str(rows.unsealed(rows.meta, dict(row))["value"])


def is_damage(error: BaseException) -> bool:
    """Whether the file is at fault, and not the disk, its permissions or another process."""
    if isinstance(error, sa_exc.DBAPIError):
        error = error.orig or error
    if isinstance(error, sqlite3.Error):
        name = getattr(error, "sqlite_errorname", None) or ""
        return not name.removeprefix("SQLITE_").startswith(_ENVIRONMENT)
    return not isinstance(error, OSError)


def refused(path: Path, why: str) -> UserError:
    return UserError(
        f"The state file {path} is damaged ({why}). Headrace does not guess what it held: `headrace doctor"
        f" --state-dir={path.parent.parent}` tells what can be repaired, else restore it from a backup."
    )


def _seals(c: sa.Connection) -> list[str]:
    found: list[str] = []
    for table in rows.metadata.tables.values():
        wanted = sa.select(table.c.seal)
        found += c.execute(wanted.where(rows.meta.c.key != "whole") if table is rows.meta else wanted).scalars()
    return found


def _set_epoch(c: sa.Connection, epoch: int) -> None:
    put(c, rows.meta, {"key": "epoch", "value": str(epoch)}, "key")


def _all_of(state: s.State) -> list[s.Change | s.Revision]:
    return [
        *state.revisions.values(),
        *map(s.PutDeployment, state.deployments.values()),
        *map(s.PutIntent, state.intents.values()),
        *map(s.PutEntry, state.entries.values()),
    ]


def _migrate(c: sa.Connection, schema: int, path: Path) -> None:
    """Bring an older file to our schema, all of it or nothing: rows that get new columns are sealed anew."""
    for version in range(schema + 1, rows.SCHEMA_VERSION + 1):
        for name in dict.fromkeys(table for table, _, _ in rows.ADDED[version]):
            new = {column: value for table, column, value in rows.ADDED[version] if table == name}
            table = rows.metadata.tables[name]
            old = [rows.unsealed(table, dict(r)) for r in c.exec_driver_sql(f"SELECT * FROM {name}").mappings()]
            for column, value in new.items():
                kind = table.c[column].type.compile()
                c.exec_driver_sql(f"ALTER TABLE {name} ADD COLUMN {column} {kind} NOT NULL DEFAULT '{value}'")
            c.exec_driver_sql(f"DELETE FROM {name}")
            for row in old:
                values = rows.sealed(table, {**row, **new})
                marks = ", ".join(f":{k}" for k in values)
                c.execute(sa.text(f"INSERT INTO {name} ({', '.join(values)}) VALUES ({marks})"), values)
    put(c, rows.meta, {"key": "schema", "value": str(rows.SCHEMA_VERSION)}, "key")
    log.info("state_file_migrated", path=str(path), before=schema, now=rows.SCHEMA_VERSION)
