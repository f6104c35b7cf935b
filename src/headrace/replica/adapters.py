"""The LoRA adapters of one replica: told which to have, it fetches and loads them, and says how each stands.

Level-triggered: `set` gives the full list, and one loop makes it so, while what is slow to fetch is fetched beside it.
An adapter that is no longer wanted takes no new streams at once, and is dropped when its last stream has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import structlog

from headrace.core.types import Adapter, AdapterStatus
from headrace.errors import HeadraceError, UserError
from headrace.replica.adapter_files import adapter_folder
from headrace.replica.engine import Engine
from headrace.replica.status import StatusBoard
from headrace.replica.streams import Streams
from headrace.replica.weights import Cache

log = structlog.get_logger()

_AGAIN_S, _AGAIN_MAX_S = 5.0, 300.0
_FETCHES = 2  # at a time: they use threads that others need too


@dataclass(frozen=True, slots=True)
class _Refused:
    """Why an adapter is not loaded. `again_at`: loop time at which fetching it is tried again; None: never."""

    reason: str
    again_at: float | None = None
    pause_s: float = _AGAIN_S


class Adapters:
    """Belongs to the event loop; what is slow runs in threads."""

    def __init__(
        self, engine: Engine, streams: Streams, board: StatusBoard, cache: Cache, wanted: Sequence[Adapter]
    ) -> None:
        self._engine, self._streams, self._board, self._cache = engine, streams, board, cache
        self._news = asyncio.Event()
        self._folders: dict[Adapter, Path] = {}
        self._refused: dict[Adapter, _Refused] = {}
        self._fetching: set[Adapter] = set()
        self._may_fetch = asyncio.Semaphore(_FETCHES)
        self._loaded: dict[str, tuple[Adapter, Path]] = {}  # what the engine has, by name
        self._clock = asyncio.get_running_loop().time
        streams.on_adapter_left = self._news.set
        self._wanted: tuple[Adapter, ...] = ()
        self.set(wanted)

    def set(self, adapters: Sequence[Adapter]) -> None:
        """Have exactly these from now on. Returns at once."""
        self._wanted = tuple(adapters)
        for known in (self._folders, self._refused):
            for a in known.keys() - set(adapters):
                del known[a]  # named again, it is looked at again
        self._say()
        self._news.set()

    async def run(self) -> None:
        """Make it so, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                try:
                    async with asyncio.timeout_at(self._next_try()):
                        await self._news.wait()
                except TimeoutError:
                    pass
                self._news.clear()
                for a in filter(self._is_due, self._wanted):
                    self._fetching.add(a)
                    tasks.create_task(self._fetch(a))
                await self._load()

    def _say(self) -> None:
        """Tell the streams what may be used, and the board how all stand."""
        has = {a for a, _ in self._loaded.values() if a in self._wanted}
        self._streams.adapters = frozenset(a.name for a in has)
        reasons = {a: r.reason for a, r in self._refused.items()}
        said = tuple(AdapterStatus(a, a in has, "" if a in has else reasons.get(a, "")) for a in self._wanted)
        if said != self._board.now.adapters:
            self._board.change(adapters=said)

    def _refuse(self, adapter: Adapter, refused: _Refused) -> None:
        log.warning("adapter_refused", adapter=adapter.name, source=adapter.source, reason=refused.reason)
        if adapter in self._wanted:
            self._refused[adapter] = refused

    def _next_try(self) -> float | None:
        """When something is to be fetched once more; what is on its way already is not."""
        times = [r.again_at for a, r in self._refused.items() if r.again_at is not None and a not in self._fetching]
        return min(times, default=None)

    def _is_due(self, a: Adapter) -> bool:
        """Whether the files of an adapter are to be fetched now, for the first time or once more."""
        refused = self._refused.get(a)
        may = refused is None or (refused.again_at is not None and self._clock() >= refused.again_at)
        return may and a not in self._folders and a not in self._fetching

    async def _fetch(self, a: Adapter) -> None:
        before = self._refused.get(a)
        try:
            async with self._may_fetch:
                folder = await asyncio.to_thread(adapter_folder, a.source, a.source_revision, self._cache, _quiet)
        except UserError as e:
            self._refuse(a, _Refused(e.message))
        except HeadraceError as e:
            pause_s = min(_AGAIN_MAX_S, before.pause_s * 2) if before else _AGAIN_S
            self._refuse(a, _Refused(f"{e.message} It is tried again.", self._clock() + pause_s, pause_s))
        except Exception as e:
            log.exception("adapter_failed", adapter=a.name)
            self._refuse(a, _Refused(f"Its files cannot be read ({type(e).__name__}: {e})."))
        else:
            if a in self._wanted:  # it may have been told otherwise meanwhile
                self._refused.pop(a, None)
                self._folders[a] = folder
        self._fetching.discard(a)
        self._say()
        self._news.set()

    async def _load(self) -> None:
        """Give the engine what was found, and take from it what nobody wants and nobody uses any more."""
        busy = self._streams.adapters_in_use()
        target = {name: (a, path) for name, (a, path) in self._loaded.items() if a in self._wanted or name in busy}
        for a in self._wanted:
            if a in self._folders and a not in self._refused and a.name not in target:
                if a.name in self._loaded:
                    self._news.set()  # to the engine a name is one adapter: the old one is dropped first
                else:
                    target[a.name] = (a, self._folders[a])
        if target == self._loaded:
            return
        # What is being dropped is not there any more, also should it be wanted again meanwhile.
        new = target.keys() - self._loaded.keys()
        self._loaded = {name: t for name, t in self._loaded.items() if name in target}
        failed = await asyncio.to_thread(self._tell_engine, {name: path for name, (_, path) in target.items()}, new)
        self._loaded = {name: t for name, t in target.items() if name not in failed}
        for name, why in failed.items():
            self._refuse(target[name][0], _Refused(why))
        log.info("adapters", loaded=sorted(self._loaded))
        self._say()

    def _tell_engine(self, folders: Mapping[str, Path], new: Set[str]) -> Mapping[str, str]:
        try:
            return self._engine.set_adapters(folders)
        except Exception as e:
            log.exception("adapters_failed")
            return dict.fromkeys(new, f"The engine failed to load it ({type(e).__name__}: {e}).")


def _quiet(activity: str, progress: float) -> None:
    """Nobody watches the progress of an adapter: they are small."""
