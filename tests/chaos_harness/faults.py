"""What is done to the system, and when. Every fault is written down with its victim and the time that it lasted."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from chaos_harness.history import Recorder
from chaos_harness.impostor import impostor
from chaos_harness.processes import Row
from chaos_harness.system import System
from headrace.core.phase import Phase
from headrace.core.types import ClusterStatus, PlacedReplica
from headrace.errors import HeadraceError

_STEADY_S = 62.0  # a replica that was READY for a minute has no failures behind it
_HANG_S = 15.0
_KINDS: dict[str, int] = {
    "replica_kill": 16,
    "model_kill": 1,
    "replica_stop": 2,
    "engine_dies": 2,
    "engine_hangs": 1,
    "engine_slow": 1,
    "scheduler_kill": 2,
    "scheduler_and_replica_kill": 2,
    "head_kill": 2,
    "stale_head": 1,
    "proxy_kill": 2,
    "proxy_stopped": 1,
    "rolling_update": 1,
    "scale": 1,
}
HITS_STREAMS = {
    "replica_kill": "killed", "engine_dies": "killed", "scheduler_and_replica_kill": "killed",
    "replica_stop": "hung", "engine_hangs": "hung",
    "model_kill": "none left",  # streams wait until one is back
}  # fmt: skip
"""What a replica looks like to its streams after each kind of fault that they must notice."""
KINDS = tuple(_KINDS)


@dataclass
class Faults:
    """Does faults one after another, at random times `every_s` apart; those that last overlap with the next."""

    system: System
    recorder: Recorder
    seed: int
    every_s: float
    kinds: tuple[str, ...] = KINDS
    control: asyncio.Lock = field(default_factory=asyncio.Lock)  # one fault of head or schedulers at a time
    deaths: dict[str, int] = field(default_factory=dict)  # in a row, by replica
    busy: set[str] = field(default_factory=set)  # replicas in a fault that lasts

    def __post_init__(self) -> None:
        self.rng = random.Random(f"faults {self.seed}")
        self.number = 0

    async def run(self, until: float) -> None:
        """Each kind once, in random order; then by weight. Returns when what was begun is over."""
        first = list(self.kinds)
        self.rng.shuffle(first)
        async with asyncio.TaskGroup() as tasks:
            while self.recorder.now() < until:
                await asyncio.sleep(self.rng.uniform(0.4, 1.6) * self.every_s)
                weights = [_KINDS[k] for k in self.kinds]
                if self.kinds:
                    kind = first.pop() if first else self.rng.choices(self.kinds, weights)[0]
                    tasks.create_task(self.one(kind))

    async def one(self, kind: str) -> None:
        self.number += 1
        number = self.number
        what: Callable[[Callable[..., None]], Awaitable[bool]] = getattr(self, f"_{kind}")

        def note(**more: Any) -> None:
            self.recorder.write("faults", "begin", number=number, kind=kind, **more)

        try:
            done = await what(note)
        except (HeadraceError, TimeoutError) as e:
            self.recorder.write("faults", "failed", number=number, kind=kind, why=str(e)[:300])
            return
        self.recorder.write("faults", "end" if done else "skipped", number=number, kind=kind)

    # --- victims ---

    async def _victim(self) -> tuple[PlacedReplica, Row] | None:
        """A READY replica, one that its scheduler will start again, of a model that keeps at least one more."""
        status = await self.system.status()
        if status is None:
            return None
        rows = {r.pid: r for r in await asyncio.to_thread(self.system.processes) if r.role == "replica"}
        ready = [p for p in status.replicas if p.status.phase is Phase.READY and p.status.replica_id not in self.busy]
        fit: list[PlacedReplica] = []
        for p in ready:
            others = [q for q in ready if q.status.deployment == p.status.deployment and q is not p]
            if p.status.pid in rows and others and self._may_die(p):
                fit.append(p)
        if not fit:
            return None
        # Often the busiest: a fault that no stream notices shows nothing.
        drawn = self.rng.sample(fit, min(2, len(fit)))
        chosen = max(drawn, key=lambda p: p.status.load.running)
        return chosen, rows[chosen.status.pid]

    def _may_die(self, p: PlacedReplica) -> bool:
        steady = time.time() - p.status.started_at > _STEADY_S
        return steady or self.deaths.get(p.status.replica_id, 0) < 2

    def _count_death(self, p: PlacedReplica) -> None:
        steady = time.time() - p.status.started_at > _STEADY_S
        self.deaths[p.status.replica_id] = 1 if steady else self.deaths.get(p.status.replica_id, 0) + 1

    # --- replicas ---

    async def _replica_kill(self, note: Callable[..., None]) -> bool:
        if not (found := await self._victim()):
            return False
        placed, row = found
        self._count_death(placed)
        note(replica=row.replica, pid=row.pid, node=row.node)
        self.system.kill(row)
        return True

    async def _model_kill(self, note: Callable[..., None]) -> bool:
        """All replicas of one model at once: its requests wait until one is back."""
        status = await self.system.status()
        model = self.rng.choice(self.system.models)
        there = [p for p in status.replicas if p.status.deployment == model] if status else []
        ready = [p for p in there if p.status.phase is Phase.READY and p.status.replica_id not in self.busy]
        rows = {r.pid: r for r in await asyncio.to_thread(self.system.processes)}
        if not ready or len(ready) < len(there) or not all(self._may_die(p) for p in ready):
            return False
        note(model=model, replicas=[p.status.replica_id for p in ready])
        for p in ready:
            self._count_death(p)
            if row := rows.get(p.status.pid):
                self.system.kill(row)
        return True

    async def _replica_stop(self, note: Callable[..., None]) -> bool:
        """It hangs, and later goes on as if nothing had been; or was ended meanwhile by who noticed."""
        if not (found := await self._victim()):
            return False
        placed, row = found
        self._count_death(placed)
        self.busy.add(row.replica)
        note(replica=row.replica, pid=row.pid, node=row.node)
        self.system.kill(row, signal.SIGSTOP)
        await asyncio.sleep(_HANG_S)
        self.system.kill(row, signal.SIGCONT)
        self.busy.discard(row.replica)
        return True

    async def _ordered(self, note: Callable[..., None], order: str, lasts_s: float = 0.0) -> bool:
        if not (found := await self._victim()):
            return False
        placed, row = found
        self._count_death(placed)
        path = self.system.orders / str(row.pid)
        note(replica=row.replica, pid=row.pid, node=row.node)
        path.write_text(order)
        if lasts_s:
            self.busy.add(row.replica)
            await asyncio.sleep(lasts_s)
            path.unlink(missing_ok=True)
            self.busy.discard(row.replica)
        return True

    async def _engine_dies(self, note: Callable[..., None]) -> bool:
        if self.system.size.engine == "simulated":
            return await self._ordered(note, "die")
        return await self._engine_process_dies(note)

    async def _engine_process_dies(self, note: Callable[..., None]) -> bool:
        """A real engine computes in the youngest child of its replica."""
        if not (found := await self._victim()):
            return False
        placed, row = found
        children = [r for r in await asyncio.to_thread(self.system.processes) if r.leader == row.pid]
        if not children:
            return False
        self._count_death(placed)
        note(replica=row.replica, pid=row.pid, node=row.node)
        self.system.kill(max(children, key=lambda r: r.started))
        return True

    async def _engine_hangs(self, note: Callable[..., None]) -> bool:
        """The process lives and talks; its engine never steps again. If nobody ends it, we do after a while."""
        victim: dict[str, Any] = {}

        def seen(**more: Any) -> None:
            victim.update(more)
            note(**more)

        if not await self._ordered(seen, "hang", _HANG_S):
            return False
        for row in await asyncio.to_thread(self.system.processes):
            if (row.pid, row.replica) == (victim["pid"], victim["replica"]):
                self.system.kill(row)
        return True

    async def _engine_slow(self, note: Callable[..., None]) -> bool:
        return await self._ordered(note, f"slow {8 * self.system.size.step_s}", _HANG_S)

    # --- head, schedulers, proxies ---

    async def _scheduler_kill(self, note: Callable[..., None]) -> bool:
        async with self.control:
            node = self.rng.choice(sorted(self.system.schedulers))
            before = {(r.replica, r.pid) for r in self.system.processes() if r.role == "replica" and r.node == node}
            note(node=node, adopts=sorted(before))
            self.system.kill_scheduler(node)
            await asyncio.sleep(self.rng.uniform(0.0, 3.0))
            self.system.start_scheduler(node)
            await self._well_again()
            return True

    async def _scheduler_and_replica_kill(self, note: Callable[..., None]) -> bool:
        async with self.control:
            if not (found := await self._victim()):
                return False
            placed, row = found
            self._count_death(placed)
            note(replica=row.replica, pid=row.pid, node=row.node)
            parts = [lambda: self.system.kill_scheduler(row.node), lambda: self.system.kill(row)]
            self.rng.shuffle(parts)
            for kill in parts:
                kill()
            await asyncio.sleep(self.rng.uniform(0.0, 2.0))
            self.system.start_scheduler(row.node)
            await self._well_again()
            return True

    async def _head_kill(self, note: Callable[..., None]) -> bool:
        async with self.control:
            note()
            self.system.kill_head()
            await asyncio.sleep(self.rng.uniform(0.0, 3.0))
            self.system.start_head()
            await self._well_again()
            return True

    async def _stale_head(self, note: Callable[..., None]) -> bool:
        """While the head is away, an older one speaks at its address and wants all replicas gone."""
        async with self.control:
            status = await self.system.status()
            if status is None or not await self._proxies_have(status.epoch):
                return False
            note(epoch=status.epoch - 1)
            self.system.kill_head()
            with suppress(TimeoutError):
                await impostor(self.system, self.recorder, status.epoch, seconds=5.0)
            self.system.start_head()
            await self._well_again()
            return True

    async def _proxies_have(self, epoch: int, patience_s: float = 10.0) -> bool:
        """Whether all proxies have had routes of this head: one that has not cannot know that another is older."""
        give_up = self.recorder.now() + patience_s
        while self.recorder.now() < give_up:
            status = await self.system.status()
            running = {p.pid for p in status.proxies if p.state == "running"} if status else {0}
            if running <= await asyncio.to_thread(self.system.proxies_with, epoch):
                return True
            await asyncio.sleep(0.2)
        return False

    async def _proxy_kill(self, note: Callable[..., None]) -> bool:
        return await self._proxy_hit(note, "proxy_kill", signal.SIGKILL)

    async def _proxy_stopped(self, note: Callable[..., None]) -> bool:
        """It stands still, and keeps its connections until the head ends it."""
        return await self._proxy_hit(note, "proxy_stopped", signal.SIGSTOP)

    async def _proxy_hit(self, note: Callable[..., None], kind: str, blow: signal.Signals) -> bool:
        status = await self.system.status()
        ids = {p.pid: p.proxy_id for p in status.proxies if p.state == "running"} if status else {}
        rows = [r for r in self.system.processes() if r.pid in ids]
        if len(rows) < 2:
            return False
        row = self.rng.choice(rows)
        name = ids[row.pid]
        note(proxy=name, pid=row.pid)
        self.system.kill(row, blow)
        began = self.recorder.now()

        def replaced(s: ClusterStatus) -> bool:
            return any((p.proxy_id, p.state) == (name, "running") and p.pid != row.pid for p in s.proxies)

        with suppress(TimeoutError):  # while there is no head nobody puts another in its place
            await self.system.until(replaced, 30)
            self.recorder.write("faults", "replaced", kind=kind, after_s=self.recorder.now() - began)
        return True

    # --- changes that are asked for ---

    async def _rolling_update(self, note: Callable[..., None]) -> bool:
        async with self.control:
            model = self.rng.choice(self.system.models)
            note(model=model)
            self.system.revision_of_args += 1
            made = await self.system.admin.deploy(self.system.deploy_request(model))
            self.recorder.write("faults", "updating", model=model, revision=made.deployment.revision)
            await self._well_again()
            return True

    async def _scale(self, note: Callable[..., None]) -> bool:
        async with self.control:
            model, n = self.rng.choice(self.system.models), self.system.size.replicas
            note(model=model)
            for count in (n + 1, n):
                await self.system.admin.scale(model, count, count)
                await asyncio.sleep(self.rng.uniform(2.0, 5.0))
            return True

    async def _well_again(self) -> None:
        """One fault of the control plane at a time: until the head answers and every node is with it."""
        await self.system.until(lambda s: len([n for n in s.nodes if n.alive]) == self.system.size.nodes, 60)
