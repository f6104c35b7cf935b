"""One task owns one replica: starts it, watches it, starts it again, ends it. All others send it messages."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import structlog

from headrace.core.causes import Cause, of_error
from headrace.core.phase import InvalidMove, Phase
from headrace.core.restart import GiveUp, after_failure
from headrace.core.types import ReplicaSpec, ReplicaStatus
from headrace.node.announcement import Announcement
from headrace.node.conditions import Conditions
from headrace.node.ending import Failure, why_ended
from headrace.node.folder import LifeRecord
from headrace.node.memory import OomCount, cause
from headrace.node.replica_client import drain, set_adapters, watch
from headrace.node.standing import Standing
from headrace.process import Child, kill_all

log = structlog.get_logger()

# There is no portable event for "a file has appeared"; this looks only while a replica starts.
_LOOK_S = 0.05
_LEAVING_S = 2.0  # for a process that has said that it is ending


@dataclass(frozen=True, slots=True)
class _Listening:
    address: str


@dataclass(frozen=True, slots=True)
class _Ended:
    code: int | None


@dataclass(frozen=True, slots=True)
class _Go:
    drain_s: float
    term_s: float


@dataclass(frozen=True, slots=True)
class _Drained:
    asked: bool  # False: the replica could not be asked


@dataclass(frozen=True, slots=True)
class _Leave:
    pass


@dataclass(frozen=True, slots=True)
class _Told:
    spec: ReplicaSpec


_Message = _Listening | _Ended | _Go | _Drained | _Leave | _Told | ReplicaStatus


@dataclass(slots=True)
class _Life:
    """One process, from its start (or adoption) to its end."""

    child: Child
    tasks: asyncio.TaskGroup
    deadline: float | None  # by time.monotonic()
    oom: OomCount  # when it was last known to live
    helpers: list[asyncio.Task[None]] = field(default_factory=list)
    failure: Failure | None = None  # what it dies of, where we know better than its exit code
    telling: asyncio.Task[None] | None = None  # it which adapters to have


class Runner:
    """The owner of one replica. `changed(urgent)` is called after each change of `status`."""

    def __init__(
        self, spec: ReplicaSpec, on: Conditions, changed: Callable[[bool], None], found: LifeRecord | None = None
    ) -> None:
        self.spec = spec
        self.told_to_go = False
        self.heard = asyncio.Event()  # from an adopted replica for the first time, or that it is gone
        self._on = on
        self._folder = on.folder(spec.replica_id)
        self._standing = Standing(spec, self._folder, changed)
        self._inbox: asyncio.Queue[_Message] = asyncio.Queue()
        self._going: _Go | None = None
        self._leaving = False
        self._child = Child.adopt(found.process) if found else None
        self._announcement: Announcement | None = None
        if found and self._child:
            self._standing.resume(found)
        self._log = log.bind(replica=spec.replica_id)

    @property
    def status(self) -> ReplicaStatus:
        return self._standing.status

    # --- messages ---

    def go(self, drain_s: float, term_s: float | None = None) -> None:
        """Drain for up to `drain_s`, then end the process and `run` with it. A shorter time may be asked for later."""
        self.told_to_go = True
        self._inbox.put_nowait(_Go(drain_s, self._on.term_s if term_s is None else term_s))

    def update(self, spec: ReplicaSpec) -> None:
        """What of the spec may change while it runs: its adapters, also after the next start, and how it stands."""
        self._inbox.put_nowait(_Told(spec))

    def leave(self) -> None:
        """End `run` and leave the process running."""
        self._inbox.put_nowait(_Leave())

    def remember_again(self) -> None:
        """Write down for the next scheduler what the disk had no room for when it was new."""
        self._standing.remember_again()

    # --- the task ---

    async def run(self) -> None:
        """Keep the replica running until it is told to go (then it is STOPPED) or to be left (then it runs on)."""
        try:
            await self._keep()
        except Exception as e:
            self._log.exception("runner_failed")
            await self._give_up(e)
        finally:
            self.heard.set()
            if self._child:
                self._child.leave()
            self._close_announcement()
        if not self._leaving:
            self._standing.say(Phase.STOPPED, reason="")

    async def _keep(self) -> None:
        again = False
        while not (self._going or self._leaving):
            failure = None
            if self._child is None:
                failure = self._start(again)
            if self._child is not None:
                failure = await self._live(self._child)
                if self._leaving:
                    return
                self._child = None
                self._close_announcement()
                self._standing.ended()
            if self._standing.phase is Phase.DRAINING or failure is None:
                return
            again = True
            if not self._going:
                await self._recover(failure)

    def _start(self, again: bool) -> Failure | None:
        """Spawn the process; what is wrong if that cannot be done."""
        try:
            self._child, self._announcement = self._on.spawn(self.spec)
        except OSError as e:
            self.heard.set()
            return Failure(f"cannot be started: {e}", of_error(e))
        self._standing.started(self._child.record, time.time(), again=again)
        return None

    def _close_announcement(self) -> None:
        if self._announcement:
            self._announcement.close()
            self._announcement = None

    async def _recover(self, failure: Failure) -> None:
        """Return when it is time to start again, or when told to go; FAILED meanwhile if it is never time."""
        verdict = after_failure(
            self._standing.failures,
            self._standing.ready_since,
            time.monotonic(),
            random.random(),
            failure.reason,
            cause=failure.cause,
            proven=self.spec.proven or (self._standing.served and not self.spec.on_trial),
            policy=self._on.restart,
        )
        if isinstance(verdict, GiveUp):
            self._log.error("replica_failed", reason=verdict.reason, cause=failure.cause.value)
            self._standing.say(Phase.FAILED, reason=verdict.reason, cause=failure.cause)
            await self._until(None)
            return
        self._standing.failures = verdict.failures
        self._standing.say(
            Phase.PENDING,
            reason=failure.reason,
            cause=failure.cause,
            failures=verdict.failures.all,
            next_try=time.time() + verdict.delay_s,
        )
        await self._until(time.monotonic() + verdict.delay_s)

    async def _until(self, deadline: float | None) -> None:
        """Wait until the deadline, or until told to go or to leave."""
        while not (self._going or self._leaving) and await self._message(deadline) is not None:
            pass

    async def _give_up(self, e: Exception) -> None:
        """What must never happen did: leave no process behind, and say so until told to go."""
        if self._child:
            await self._clear_away(self._child)
            self._child = None
        self._standing.ended()
        self._standing.note(
            phase=Phase.FAILED, reason=f"internal error of its scheduler: {e!r}", cause=Cause.CRASH, next_try=0.0
        )
        await self._until(None)

    async def _message(self, deadline: float | None) -> _Message | None:
        """The next message; None when the deadline has passed. Takes note of being told to go or to leave."""
        wait_s = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            async with asyncio.timeout(wait_s):
                message = await self._inbox.get()
        except TimeoutError:
            return None
        if isinstance(message, _Go):
            self._going = message
        if isinstance(message, _Told):
            told = message.spec
            spec = replace(self.spec, adapters=told.adapters, proven=told.proven, on_trial=told.on_trial)
            if spec != self.spec:
                self.spec = spec
                self._remember_spec()
        self._leaving = self._leaving or isinstance(message, _Leave)
        return message

    def _remember_spec(self) -> None:
        try:
            self._on.keep(self.spec)
        except OSError as e:  # the head will say it again to the next scheduler
            self._log.error("spec_unwritten", error=str(e))

    # --- one life ---

    async def _live(self, child: Child) -> Failure:
        """Attend to a process until it and all it started are gone, or until told to leave it. Why it ended."""
        steady = self._standing.phase in (Phase.READY, Phase.DRAINING)
        async with asyncio.TaskGroup() as tasks:
            deadline = None if steady else time.monotonic() + self._on.endpoint_s
            life = _Life(child, tasks, deadline, OomCount.of(child.pid))
            life.helpers.append(tasks.create_task(self._tell_end(child)))
            life.helpers.append(tasks.create_task(self._tell_status(child)))
            try:
                code = await self._attend(life)
            finally:
                for helper in filter(None, (*life.helpers, life.telling)):
                    helper.cancel()
        if self._leaving:
            return Failure("left running")
        out_of_memory = cause(life.oom)
        await self._clear_away(child)
        return why_ended(life.failure or _said(self._folder.failure()), code, self._folder, out_of_memory)

    async def _clear_away(self, child: Child) -> None:
        """KILL what is left of a process and of all it started, also what moved to a session of its own."""
        try:
            await child.kill_group()
            await kill_all(self._on.marked(self.spec.replica_id))
        except TimeoutError as e:
            self._log.error("orphans_survive", error=str(e))

    async def _tell_end(self, child: Child) -> None:
        self._inbox.put_nowait(_Ended(await child.wait()))

    async def _tell_status(self, child: Child) -> None:
        while (address := self._address(child)) is None:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_S)
        self._inbox.put_nowait(_Listening(address))
        await watch(address, self.spec.replica_id, child.pid, self._on.credentials, self._inbox.put_nowait)

    def _address(self, child: Child) -> str | None:
        """Where it listens, by its own word: from the pipe, or (adopted) from the file."""
        announced = self._announcement.address(child.record) if self._announcement else None
        return announced or self._folder.address(child.record)

    async def _attend(self, life: _Life) -> int | None:
        """Act on each message until the process has ended (its exit code), or is to be left."""
        while True:
            match await self._message(life.deadline):
                case _Ended(code):
                    return code
                case _Leave():
                    return None
                case _Listening(address):
                    self._standing.note(address=address)
                    if life.deadline and not self._going:
                        life.deadline = time.monotonic() + self._on.stalled_s
                case ReplicaStatus() as seen:
                    self._take(life, seen)
                    self._tell_adapters(life)
                    self.heard.set()
                case _Told():
                    self._tell_adapters(life)
                case _Go() as go:
                    self._begin_to_go(life, go)
                case _Drained(asked):
                    soon = time.monotonic() + (_LEAVING_S if asked else 0)
                    life.deadline = min(life.deadline or soon, soon)
                case None:
                    await self._end(life)

    def _take(self, life: _Life, seen: ReplicaStatus) -> None:
        """Make the replica's view of itself part of ours."""
        if seen.phase is not Phase.FAILED:  # which may be for want of memory
            now = OomCount.of(life.child.pid)
            if life.child.alive():  # in this order: else the kill may have been counted
                life.oom = now
        if self._standing.phase is Phase.DRAINING:
            self._standing.note(load=seen.load, model=seen.model)
        elif seen.phase is Phase.FAILED:
            life.failure = life.failure or Failure(seen.reason or "failed without a reason", seen.cause or Cause.CRASH)
            life.deadline = time.monotonic() + _LEAVING_S
        elif seen.phase in (Phase.STARTING, Phase.LOADING, Phase.READY):
            before = self.status
            if seen.phase is Phase.READY and self._standing.ready_since is None:
                self._standing.ready_since = time.monotonic()
            said = {k: getattr(seen, k) for k in ("reason", "activity", "progress", "load", "model", "adapters")}
            try:
                self._standing.say(seen.phase, **said)
            except InvalidMove as e:
                self._log.error("replica_contradicts_itself", error=str(e))
            if seen.phase is Phase.READY:
                life.deadline = None
            elif replace(before, load=seen.load) != self.status:
                life.deadline = time.monotonic() + self._on.stalled_s
        else:
            phase = seen.phase.lower()
            self._standing.note(reason=f"is {phase} although its scheduler did not ask for it", load=seen.load)

    def _tell_adapters(self, life: _Life) -> None:
        """Have a replica that serves told its adapters, if by its last word it was told others."""
        status, wanted = self.status, self.spec.adapters
        if status.phase is not Phase.READY or tuple(a.adapter for a in status.adapters) == wanted:
            return
        if life.telling is None or life.telling.done():
            told = set_adapters(status.address, self.spec.replica_id, self._on.credentials, wanted)
            life.telling = life.tasks.create_task(told)

    def _begin_to_go(self, life: _Life, go: _Go) -> None:
        now, status = time.monotonic(), self.status
        end = now
        if go.drain_s > 0 and status.address and status.phase in (Phase.READY, Phase.DRAINING):
            end = now + go.drain_s + 0.5  # the replica ends by itself when its time is over
            life.helpers.append(life.tasks.create_task(self._drain(status.address, go.drain_s)))
        if status.phase is Phase.DRAINING and life.deadline is not None:
            end = min(end, life.deadline)
        life.deadline = end
        self._standing.say(Phase.DRAINING, reason="")

    async def _drain(self, address: str, drain_s: float) -> None:
        self._inbox.put_nowait(_Drained(await drain(address, self.spec.replica_id, self._on.credentials, drain_s)))

    async def _end(self, life: _Life) -> None:
        """The time is over: for going, for leaving, or for making progress."""
        life.deadline = None
        if not self._going and life.failure is None:
            phase = self._standing.phase.lower()
            reason = f"made no progress while {phase} and was stopped; its log may say more"
            life.failure = Failure(reason, Cause.STALLED)
        try:
            await life.child.stop(self._going.term_s if self._going else self._on.term_s)
        except TimeoutError as e:  # stuck in the kernel, as with a driver that hangs
            self._log.error("replica_survives", error=str(e))
            self._standing.note(reason=str(e))
            life.deadline = time.monotonic() + 1.0


def _said(left: tuple[str, Cause] | None) -> Failure | None:
    return Failure(*left) if left else None
