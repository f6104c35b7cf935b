"""Where the head keeps what it wants. A commit is acknowledged when it would survive the power going off.

`Store` is what the head needs; `SqliteStore` is one file for one head. Another database needs the same methods, and a
lease in place of the file lock. Nothing is guessed: a file that is damaged, or newer than this program, is refused.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

import sqlalchemy as sa
import structlog
from sqlalchemy import event as sa_event
from sqlalchemy import exc as sa_exc

from headrace.core import state as s
from headrace.errors import Fenced, Unavailable, UserError
from headrace.head import rows

log = structlog.get_logger()

T = TypeVar("T")
_DAMAGE = ("SQLITE_CORRUPT", "SQLITE_NOTADB")


class Store(Protocol):
    """Durable state with one writer at a time."""

    @property
    def epoch(self) -> int:
        """The number of this leadership: higher than that of any before it."""
        ...

    async def load(self) -> s.State:
        """All that was committed."""
        ...

    async def commit(self, changes: Sequence[s.Change]) -> None:
        """All of `changes` or none. Unavailable if they cannot be written, Fenced if a newer leader is at work."""
        ...

    async def close(self) -> None: ...


class SqliteStore:
    """One SQLite file (WAL, synchronous=FULL) behind one thread, so that the event loop never waits for the disk."""

    def __init__(self, path: Path, engine: sa.Engine, thread: ThreadPoolExecutor, epoch: int) -> None:
        self._path, self._engine, self._thread, self._epoch = path, engine, thread, epoch

    @property
    def epoch(self) -> int:
        return self._epoch

    @staticmethod
    async def open(path: Path) -> SqliteStore:
        """Open or create the file and begin an epoch. UserError if it is damaged or cannot be written."""
        thread = ThreadPoolExecutor(1, thread_name_prefix="headrace-store")

        def begin() -> tuple[sa.Engine, int]:
            if not path.exists():
                _create(path)
            engine = _connect(path)
            try:
                return engine, _begin_epoch(engine, path)
            except BaseException:
                engine.dispose()
                raise

        try:
            engine, epoch = await _in_thread(thread, lambda: _explained(path, begin))
        except BaseException:
            thread.shutdown(wait=False)
            raise
        return SqliteStore(path, engine, thread, epoch)

    async def load(self) -> s.State:
        return await _in_thread(self._thread, lambda: _explained(self._path, lambda: _load(self._engine)))

    async def commit(self, changes: Sequence[s.Change]) -> None:
        await _in_thread(self._thread, lambda: self._commit(changes))

    async def close(self) -> None:
        await _in_thread(self._thread, self._engine.dispose)
        self._thread.shutdown()

    def _commit(self, changes: Sequence[s.Change]) -> None:
        try:
            with self._engine.begin() as c:
                if _epoch_in(c) != self._epoch:
                    raise Fenced("A newer head has taken over this state; nothing was changed.")
                for change in changes:
                    _write(c, change)
                _prune(c)
        except sa_exc.DBAPIError as e:
            log.error("store_write_failed", path=str(self._path), error=str(e.orig))
            raise Unavailable(
                f"The head cannot write its state ({e.orig}); nothing was changed. Free the disk of {self._path.parent}"
                " or make it writable, then try again."
            ) from e
        self._checkpoint()

    def _checkpoint(self) -> None:
        """Best effort: nothing that was acknowledged is then in the -wal file alone, which nobody checks for damage."""
        connection = self._engine.raw_connection()
        try:
            connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error as e:
            log.warning("store_checkpoint_failed", error=str(e))
        finally:
            connection.close()


async def _in_thread(thread: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(thread, work)


def _connect(path: Path) -> sa.Engine:
    engine = sa.create_engine(
        "sqlite://",
        # The driver's own transactions begin late and in surprising places; ours begin with BEGIN IMMEDIATE, below.
        creator=lambda: sqlite3.connect(path, isolation_level=None, timeout=5.0),
        poolclass=sa.pool.StaticPool,
    )

    @sa_event.listens_for(engine, "connect")
    def _(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")

    @sa_event.listens_for(engine, "begin")
    def _(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _create(path: Path) -> None:
    """Make the file elsewhere and move it to its place whole: an empty file there is damage, never a beginning."""
    if path.with_name(path.name + "-wal").exists():
        raise rows.Damaged("its -wal file is there and the file itself is not")
    partial = path.with_name(path.name + ".new")
    partial.unlink(missing_ok=True)
    c = sqlite3.connect(partial)
    c.close()
    os.chmod(partial, 0o600)
    engine = sa.create_engine("sqlite://", creator=lambda: sqlite3.connect(partial), poolclass=sa.pool.StaticPool)
    try:
        with engine.begin() as connection:
            rows.metadata.create_all(connection)
            _put(connection, rows.meta, {"key": "schema", "value": str(rows.SCHEMA_VERSION)}, "key")
            # From the clock: who deletes a state directory must not bring back epochs that nodes have seen.
            _set_epoch(connection, int(time.time()))
    finally:
        engine.dispose()
    os.replace(partial, path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _begin_epoch(engine: sa.Engine, path: Path) -> int:
    with engine.begin() as c:
        verdict = c.exec_driver_sql("PRAGMA integrity_check(1)").scalar()
        if verdict != "ok":
            raise rows.Damaged(str(verdict))
        found = set(sa.inspect(c).get_table_names())
        if missing := set(rows.metadata.tables) - found:
            raise rows.Damaged(f"it has no table {min(missing)}")
        schema = c.execute(sa.select(rows.meta.c.value).where(rows.meta.c.key == "schema")).scalar()
        older = {str(n): n for n in range(1, rows.SCHEMA_VERSION)}
        if schema in older:
            _migrate(c, older[schema], path)
        elif schema != str(rows.SCHEMA_VERSION):
            raise UserError(
                f"The state file {path} has schema {schema}, this version of headrace knows"
                f" {rows.SCHEMA_VERSION}; start the version that wrote it, or choose another --state-dir."
            )
        epoch = _epoch_in(c) + 1
        _set_epoch(c, epoch)
    return epoch


def _migrate(c: sa.Connection, schema: int, path: Path) -> None:
    """Bring an older file to our schema, all of it or nothing: rows that get new columns are sealed anew."""
    for version in range(schema + 1, rows.SCHEMA_VERSION + 1):
        for name in dict.fromkeys(table for table, _, _ in rows.ADDED[version]):
            new = {column: value for table, column, value in rows.ADDED[version] if table == name}
            table = rows.metadata.tables[name]
            old = [rows.unsealed(table, dict(r)) for r in c.exec_driver_sql(f"SELECT * FROM {name}").mappings()]
            for column, value in new.items():
                c.exec_driver_sql(f"ALTER TABLE {name} ADD COLUMN {column} TEXT NOT NULL DEFAULT '{value}'")
            c.exec_driver_sql(f"DELETE FROM {name}")
            for row in old:
                values = rows.sealed(table, {**row, **new})
                marks = ", ".join(f":{k}" for k in values)
                c.execute(sa.text(f"INSERT INTO {name} ({', '.join(values)}) VALUES ({marks})"), values)
    _put(c, rows.meta, {"key": "schema", "value": str(rows.SCHEMA_VERSION)}, "key")
    log.info("state_file_migrated", path=str(path), before=schema, now=rows.SCHEMA_VERSION)


def _set_epoch(c: sa.Connection, epoch: int) -> None:
    _put(c, rows.meta, {"key": "epoch", "value": str(epoch)}, "key")


def _epoch_in(c: sa.Connection) -> int:
    row = c.execute(sa.select(rows.meta).where(rows.meta.c.key == "epoch")).mappings().first()
    if row is None:
        raise rows.Damaged("it has no epoch")
    return int(rows.unsealed(rows.meta, dict(row))["value"])


def _load(engine: sa.Engine) -> s.State:
    def read(c: sa.Connection, table: sa.Table) -> list[rows.Row]:
        return [rows.unsealed(table, dict(r)) for r in c.execute(sa.select(table)).mappings()]

    with engine.begin() as c:
        revisions = {(r.deployment, r.revision): r for r in map(rows.revision_of_row, read(c, rows.revisions))}
        deployments = [rows.deployment_of_row(r, revisions) for r in read(c, rows.deployments)]
        intents = [rows.intent_of_row(r) for r in read(c, rows.intents)]
        entries = [rows.entry_of_row(r) for r in read(c, rows.entries)]
    if lone := [i for i in intents if (i.deployment, i.revision) not in revisions]:
        raise rows.Damaged(f"replica {lone[0].replica_id} has no revision")
    return s.State(
        {d.name: d for d in deployments}, revisions, {i.replica_id: i for i in intents}, {e.name: e for e in entries}
    )


def _write(c: sa.Connection, change: s.Change) -> None:
    match change:
        case s.PutDeployment(d):
            _put(c, rows.deployments, rows.row_of_deployment(d), "name")
            _put(c, rows.revisions, rows.row_of_revision(d), "deployment", "revision")
        case s.DropDeployment(name):
            c.execute(sa.delete(rows.deployments).where(rows.deployments.c.name == name))
        case s.PutIntent(intent):
            _put(c, rows.intents, rows.row_of_intent(intent), "replica_id")
        case s.DropIntent(replica_id):
            c.execute(sa.delete(rows.intents).where(rows.intents.c.replica_id == replica_id))
        case s.PutEntry(entry):
            _put(c, rows.entries, rows.row_of_entry(entry), "name")
        case s.DropEntry(name):
            c.execute(sa.delete(rows.entries).where(rows.entries.c.name == name))


def _put(c: sa.Connection, table: sa.Table, row: rows.Row, *key: str) -> None:
    # Not an upsert: those differ between databases.
    c.execute(sa.delete(table).where(*(table.c[k] == row[k] for k in key)))
    c.execute(sa.insert(table).values(rows.sealed(table, row)))


def _prune(c: sa.Connection) -> None:
    """Drop the revisions that core.state.apply drops."""
    r, d, i = rows.revisions.c, rows.deployments.c, rows.intents.c
    newest = sa.exists().where(d.name == r.deployment, d.revision == r.revision)
    in_use = sa.exists().where(i.deployment == r.deployment, i.revision == r.revision)
    c.execute(sa.delete(rows.revisions).where(~newest, ~in_use))


def _explained(path: Path, work: Callable[[], T]) -> T:
    """`work()`, with what may go wrong at a start told in one sentence."""
    try:
        return work()
    except sa_exc.DBAPIError as e:
        if getattr(e.orig, "sqlite_errorname", "").startswith(_DAMAGE):
            raise _refused(path, str(e.orig)) from e
        raise UserError(f"Cannot use the state file {path}: {e.orig}.") from e
    except sqlite3.Error as e:
        if getattr(e, "sqlite_errorname", "").startswith(_DAMAGE):
            raise _refused(path, str(e)) from e
        raise UserError(f"Cannot use the state file {path}: {e}.") from e
    except OSError as e:
        raise UserError(f"Cannot use the state file {path}: {e.strerror}.") from e
    except (rows.Damaged, ValueError, TypeError, KeyError) as e:
        raise _refused(path, str(e)) from e


def _refused(path: Path, why: str) -> UserError:
    return UserError(
        f"The state file {path} is damaged ({why}). Headrace does not guess what it held: restore it from a backup, or"
        " move it away to begin with an empty state."
    )
