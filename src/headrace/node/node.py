"""The replicas of this node: adopted at the start, then made to be what the head wants."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from headrace.core.types import REPLICA_ID_PATTERN, ReplicaId, ReplicaSpec, ReplicaStatus
from headrace.log_files import CARE_S, rotate
from headrace.node.conditions import Conditions
from headrace.node.runner import Runner
from headrace.process import ProcessRecord, kill_all

log = structlog.get_logger()

_HEAR_S = 2.0
_KEPT_FOLDERS = 20  # of replicas that are gone, for their logs


class Node:
    """Runs one Runner per replica in `tasks`. `changed` is called when there is something to report."""

    def __init__(self, on: Conditions, tasks: asyncio.TaskGroup, changed: Callable[[], None]) -> None:
        self._on, self._tasks, self._changed = on, tasks, changed
        self._runners: dict[ReplicaId, Runner] = {}
        # Last words on replicas without a runner (STOPPED, left running, never startable), until the head speaks again.
        self._gone: dict[ReplicaId, ReplicaStatus] = {}
        self._wanted: dict[ReplicaId, ReplicaSpec] | None = None  # None: the head has not spoken yet
        self._owners: set[asyncio.Task[None]] = set()
        self._ending = False
        self._empty = asyncio.Event()
        self._empty.set()

    @property
    def running(self) -> int:
        return len(self._runners)

    def statuses(self) -> list[ReplicaStatus]:
        return [*(r.status for r in self._runners.values()), *self._gone.values()]

    def log_of(self, replica_id: str) -> Path | None:
        """The log of a replica that is, or was not long ago, on this node."""
        path = self._on.folder(replica_id).log
        return path if REPLICA_ID_PATTERN.fullmatch(replica_id) and path.exists() else None

    # --- the start ---

    async def adopt(self) -> None:
        """Take over what still runs from the last scheduler; end what it left of dead replicas."""
        orphans: list[ProcessRecord] = []
        for path in self._folders():
            folder = self._on.folder(path.name)
            spec, life = folder.spec(), folder.life()
            if spec and life and spec.replica_id == path.name and life.process.alive():
                log.info("replica_adopted", replica=spec.replica_id, process=life.process.pid)
                self._own(Runner(spec, self._on, self._on_change, life))
            else:
                if life:
                    orphans += self._on.survivors(path.name, life)
                folder.end_life()
        orphans += self._on.marked(but=self._runners)
        if orphans:
            log.warning("orphans_ended", processes=[r.pid for r in orphans])
            try:
                await kill_all(orphans)
            except TimeoutError as e:
                log.error("orphans_survive", error=str(e))
        self._forget_old_folders()
        # So that the first report does not say less of a replica than the head knew.
        try:
            async with asyncio.timeout(_HEAR_S), asyncio.TaskGroup() as hearing:
                for runner in self._runners.values():
                    hearing.create_task(runner.heard.wait())
        except TimeoutError:
            silent = [r.spec.replica_id for r in self._runners.values() if not r.heard.is_set()]
            log.warning("adopted_but_silent", replicas=silent)

    # --- what the head says ---

    def desired(self, specs: Sequence[ReplicaSpec]) -> None:
        """Everything that is to run here. What it does not name is drained and stopped."""
        if self._ending:
            return  # the last report must still name what was left running
        self._wanted = {spec.replica_id: spec for spec in specs}
        self._gone.clear()
        self._converge()

    def _converge(self) -> None:
        if self._wanted is None or self._ending:
            return
        for replica_id, runner in self._runners.items():
            if replica_id not in self._wanted and not runner.told_to_go:
                runner.go(runner.spec.drain_s)
        for replica_id, spec in self._wanted.items():
            if runner := self._runners.get(replica_id):
                runner.update(spec)
                continue
            if not REPLICA_ID_PATTERN.fullmatch(replica_id):
                # No head of ours asks for it, and none would take a report of it.
                log.error("replica_refused", replica=replica_id, reason="its id cannot be the name of a folder")
                continue
            self._gone.pop(replica_id, None)
            self._own(Runner(spec, self._on, self._on_change))

    def _own(self, runner: Runner) -> None:
        self._runners[runner.spec.replica_id] = runner
        self._empty.clear()
        self._owners.add(self._tasks.create_task(self._run(runner), name=f"replica {runner.spec.replica_id}"))

    async def _run(self, runner: Runner) -> None:
        await runner.run()
        replica_id = runner.spec.replica_id
        del self._runners[replica_id]
        self._gone[replica_id] = runner.status
        self._forget_old_folders()
        self._changed()
        self._converge()  # it may be wanted again by now
        if not self._runners:
            self._empty.set()
        if owner := asyncio.current_task():
            self._owners.discard(owner)

    def _on_change(self, urgent: bool) -> None:
        if urgent:
            self._changed()

    # --- the end ---

    async def end(self, drain_s: float, term_s: float) -> None:
        """Drain and stop all replicas, at the same time: each for as long as it was to, and at most `drain_s`."""
        self._ending = True
        for runner in self._runners.values():
            runner.go(min(drain_s, runner.spec.drain_s), term_s)
        await self._empty.wait()

    def hurry(self, term_s: float) -> None:
        """Have those that still drain end now."""
        for runner in self._runners.values():
            runner.go(0.0, term_s)

    async def leave(self) -> None:
        """Give up all replicas and let them run, for another scheduler to adopt."""
        self._ending = True
        for runner in self._runners.values():
            runner.leave()
        await self._empty.wait()

    def abandon(self) -> None:
        """Give up at once, whatever the runners are doing."""
        for owner in self._owners:
            owner.cancel()

    # --- folders ---

    async def care_for_folders(self) -> None:
        """Rotate logs that have grown too large, and write what there was no room for; for ever."""
        while True:
            for replica_id, runner in list(self._runners.items()):
                runner.remember_again()
                try:
                    rotate(self._on.folder(replica_id).log)
                except OSError as e:
                    log.error("log_not_rotated", replica=replica_id, error=str(e))
            await asyncio.sleep(CARE_S)

    def _folders(self) -> list[Path]:
        replicas = self._on.node_dir / "replicas"
        return sorted(p for p in replicas.iterdir() if p.is_dir()) if replicas.is_dir() else []

    def _forget_old_folders(self) -> None:
        idle = [p for p in self._folders() if p.name not in self._runners]
        for path in sorted(idle, key=lambda p: p.stat().st_mtime)[:-_KEPT_FOLDERS]:
            shutil.rmtree(path, ignore_errors=True)
