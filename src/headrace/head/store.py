"""Where the head keeps what it wants. A commit is acknowledged when it would survive the power going off.

`Store` is what the head needs; `SqliteStore` is one file for one head. Another database needs the same methods, and a
lease in place of the file lock. Nothing is guessed: a file that is damaged, or newer than this program, is refused.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

import sqlalchemy as sa
import structlog
from sqlalchemy import exc as sa_exc

from headrace.core import state as s
from headrace.errors import Fenced, HeadraceError, Unavailable, UserError
from headrace.head import state_file
from headrace.head.seals import Seals

log = structlog.get_logger()

T = TypeVar("T")
RETRY_AFTER_S = 5.0


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
    """One SQLite file (synchronous=FULL) behind one thread, so that the event loop never waits for the disk."""

    def __init__(self, path: Path, engine: sa.Engine, thread: ThreadPoolExecutor, epoch: int) -> None:
        self._path, self._engine, self._thread, self._epoch = path, engine, thread, epoch
        self._seals: Seals | None = None  # of the file as we left it; nobody else writes it in our epoch

    @property
    def epoch(self) -> int:
        return self._epoch

    @staticmethod
    async def open(path: Path) -> SqliteStore:
        """Open or create the file and begin an epoch. UserError if it is damaged or cannot be written."""
        thread = ThreadPoolExecutor(1, thread_name_prefix="headrace-store")

        def begin() -> tuple[sa.Engine, int]:
            if not path.exists():
                state_file.create(path)
            engine = state_file.connect(path)
            try:
                return engine, state_file.begin_epoch(engine, path)
            except BaseException:
                engine.dispose()
                raise

        try:
            engine, epoch = await _in_thread(thread, lambda: explained(path, begin))
        except BaseException:
            thread.shutdown(wait=False)
            raise
        return SqliteStore(path, engine, thread, epoch)

    async def load(self) -> s.State:
        def read() -> s.State:
            with self._engine.begin() as c:
                return state_file.load(c)

        return await _in_thread(self._thread, lambda: explained(self._path, read))

    async def commit(self, changes: Sequence[s.Change]) -> None:
        await _in_thread(self._thread, lambda: self._commit(changes))

    async def close(self) -> None:
        await _in_thread(self._thread, self._engine.dispose)
        self._thread.shutdown()

    def _commit(self, changes: Sequence[s.Change]) -> None:
        try:
            with self._engine.begin() as c:
                if state_file.epoch_in(c) != self._epoch:
                    raise Fenced("A newer head has taken over this state; nothing was changed.")
                # Read again after a commit of which nobody knows what became.
                before, self._seals = self._seals or state_file.seals(c), None
                news = state_file.write(c, changes)
                if state_file.may_prune(changes):
                    news |= state_file.prune(c)
                after = before.after(news)
                state_file.seal_whole(c, after)
            self._seals = after
        except sa_exc.DBAPIError as e:
            log.error("store_write_failed", path=str(self._path), error=str(e.orig))
            raise Unavailable(
                f"The head cannot write its state ({e.orig}); nothing was changed. {_remedy(self._path, e)}, then try"
                " again.",
                retry_after_s=RETRY_AFTER_S,
            ) from e


async def _in_thread(thread: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(thread, work)


def explained(path: Path, work: Callable[[], T]) -> T:
    """`work()`, with what may go wrong at a start told in one sentence."""
    try:
        return work()
    except HeadraceError:
        raise
    except (sa_exc.DBAPIError, sqlite3.Error, OSError) as e:
        why = e.strerror if isinstance(e, OSError) else e.orig if isinstance(e, sa_exc.DBAPIError) else e
        if state_file.is_damage(e):
            raise state_file.refused(path, str(why)) from e
        raise UserError(f"Cannot use the state file {path} ({why}): {_remedy(path, e)}.") from e
    except Exception as e:  # whatever reading makes of what nobody wrote
        raise state_file.refused(path, str(e)) from e


def _remedy(path: Path, error: BaseException) -> str:
    """What to do about a file that cannot be written."""
    if state_file.is_damage(error):
        return f"Stop the head and run `headrace doctor --state-dir={path.parent.parent}`"
    return f"Free room on the disk of {path.parent}, or make it writable"
