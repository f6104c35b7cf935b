"""The processes of `headrace up`, from the first start to the last end."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NoReturn

from headrace.cli.client import open_admin
from headrace.cli.endpoint import HeadEndpoint, callable_address, port_of, read_endpoint
from headrace.cli.first_models import FirstModels
from headrace.cli.leftovers import end_leftovers
from headrace.cli.loading import new_progress
from headrace.cli.part import Part
from headrace.cli.sources import resolve
from headrace.cli.state_lock import locked
from headrace.cli.welcome import until_http_answers, welcome
from headrace.errors import HeadraceError, UserError
from headrace.lock import private_folder
from headrace.log_files import CARE_S, rotate
from headrace.process import LIFELINE_ENV, child_env, signal_group, told_to_stop
from headrace.settings import UpSettings

if TYPE_CHECKING:
    from headrace.rpc.admin import AdminClient

_TERM_S = 7.0  # for a part that has nothing to wait for
_AGAIN_S = 0.3  # between being told to end and being told again
_ASK_S = 1.0
_TRIES = 3  # of each proxy, before we give up
_HTTP_S = 30.0
_LOOK_S = 0.05
_PRIVATE = ("HEADRACE_API_KEY", LIFELINE_ENV)


async def run(settings: UpSettings, head_flags: Sequence[str], scheduler_flags: Sequence[str]) -> str:
    """Serve until told to stop, and say by what. When it returns or raises, nothing that it started is left."""
    models = [resolve(model, must_exist=True) for model in settings.model]
    with locked(settings.state_dir) as lock:
        system = _System(settings, models, lock, head_flags, scheduler_flags)
        try:
            async with asyncio.TaskGroup() as group:
                work = group.create_task(system.serve())
                # Its handlers are in place before the task above takes its first step.
                reason = await told_to_stop()
                system.progress.close()
                system.progress.say("Ending everything…")
                work.cancel()
        finally:
            await system.end()
        return reason


class _System:
    def __init__(
        self,
        settings: UpSettings,
        models: Sequence[str],
        lock: int,
        head_flags: Sequence[str],
        scheduler_flags: Sequence[str],
    ) -> None:
        self._settings = settings
        self._models = models
        self.progress = new_progress()
        self._endpoint: HeadEndpoint | None = None
        self._head_flags, self._scheduler_flags = head_flags, scheduler_flags
        ours = {k: v for k, v in os.environ.items() if k.startswith("HEADRACE_") and k not in _PRIVATE}
        self._env = child_env(ours, sources=True)  # the scheduler's replicas fetch weights
        # Nothing is ever written to it: its end tells the children that this process is gone.
        self._lifeline, self._held = os.pipe()
        self._inherited = (self._lifeline, lock)
        self._head = self._part("head", self._head_arguments)
        self._scheduler = self._part("scheduler", self._scheduler_arguments)

    def _part(self, command: str, arguments: Callable[[], Sequence[str]]) -> Part:
        log_file = self._settings.state_dir / "logs" / f"{command}.log"
        try:
            private_folder(log_file.parent)
            with suppress(FileNotFoundError):
                os.replace(log_file, log_file.with_suffix(".log.1"))
        except OSError as e:
            raise UserError(f"Cannot write to the state directory {self._settings.state_dir}: {e.strerror}.") from e
        env = {**self._env, LIFELINE_ENV: str(self._lifeline)}
        return Part(command, arguments, env=env, inherited=self._inherited, log_file=log_file, say=self.progress.say)

    def _head_arguments(self) -> Sequence[str]:
        if self._endpoint is None:
            return self._head_flags
        # Started again, it must be where everybody looks for it, also if port 0 was asked for.
        e = self._endpoint
        ports = (("http_port", e.http), ("node_port", e.node), ("grpc_port", e.grpc))
        return [*self._head_flags, *(f"--{name}={port_of(address)}" for name, address in ports if address)]

    def _scheduler_arguments(self) -> Sequence[str]:
        assert self._endpoint is not None
        host, _, port = callable_address(self._endpoint.node).rpartition(":")
        return [*self._scheduler_flags, f"--head_address={host}", f"--port={port}"]

    async def serve(self) -> NoReturn:
        """Start everything, load the models, say so, and keep it running. UserError if that cannot be."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._head.keep())
            group.create_task(self._care_for_logs())
            endpoint = self._endpoint = await self._head_listens()
            self._head.works = True
            # Only now: at a port that the head did not get, a scheduler would join somebody else's.
            group.create_task(self._scheduler.keep())
            async with self._admin(endpoint) as admin:
                http = group.create_task(self._http_answers(endpoint, admin))
                ready = await FirstModels(admin, self.progress, self._node_is_alive).load(
                    self._models, None if self._settings.engine == "auto" else self._settings.engine
                )
                await asyncio.wait({http}, timeout=_HTTP_S)
                if not http.done():
                    http.cancel()
                    where = self._settings.state_dir / "head" / "proxies"
                    self.progress.say(f"The HTTP proxies do not answer yet; see {where}.")
            self.progress.close()
            welcome(endpoint, ready, self._settings)
        raise AssertionError("the head and the scheduler are kept without end")

    def _admin(self, endpoint: HeadEndpoint) -> AdminClient:
        return open_admin(callable_address(endpoint.grpc), self._settings.state_dir, self._settings.tls)

    async def _http_answers(self, endpoint: HeadEndpoint, admin: AdminClient) -> None:
        """Return when a proxy answers. UserError if none can start, with what they say."""
        while endpoint.http and not await until_http_answers(endpoint, _ASK_S):
            try:
                proxies = (await admin.status()).proxies
            except HeadraceError:
                continue  # the head may just be starting again
            ours = [p for p in proxies if p.state != "watching"]
            if ours and all(p.restarts >= _TRIES and p.reason for p in ours):
                raise UserError(f"The HTTP proxies do not start: the last {ours[0].reason}")

    async def _care_for_logs(self) -> NoReturn:
        while True:
            for part in (self._head, self._scheduler):
                with suppress(OSError):
                    rotate(part.log_file)
            await asyncio.sleep(CARE_S)

    def _node_is_alive(self) -> None:
        self._scheduler.works = True

    async def _head_listens(self) -> HeadEndpoint:
        while True:
            endpoint = read_endpoint(self._settings.state_dir)
            child = self._head.child
            if endpoint is not None and child is not None and endpoint.pid == child.pid:
                return endpoint
            await asyncio.sleep(_LOOK_S)

    async def end(self) -> None:
        """End all processes: the head first, whose proxies finish what runs, then the scheduler with its replicas.

        Told to end once more, they wait for nothing.
        """
        self.progress.close()
        again = asyncio.create_task(told_to_stop())
        try:
            await self._end_part(self._head, again, self._requests)
            await self._end_part(self._scheduler, again, _nothing)
        finally:
            again.cancel()
        await end_leftovers(self._settings.state_dir, self.progress.say)
        os.close(self._held)
        os.close(self._lifeline)

    async def _end_part(self, part: Part, again: asyncio.Task[str], requests: Callable[[], Awaitable[int]]) -> None:
        """Tell it to end, and wait as long as it has requests; then it has a few seconds more."""
        if part.child is None:
            return
        clock = asyncio.get_running_loop().time
        signal_group(part.child.pid, signal.SIGTERM)
        ended = asyncio.create_task(part.child.wait())
        busy_at, said = clock(), False
        while not ended.done() and not again.done() and clock() - busy_at < _TERM_S:
            await asyncio.wait({ended, again}, timeout=_ASK_S, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done() and not again.done() and (count := await requests()):
                busy_at = clock()
                if not said:
                    what = "1 request" if count == 1 else f"{count} requests"
                    self.progress.say(f"Waiting for {what} to end; Ctrl-C again ends everything now.")
                said = True
        if not ended.done():
            await asyncio.wait({ended}, timeout=_AGAIN_S)
        ended.cancel()
        await part.stop(_TERM_S)  # tells it once more, if it still lives

    async def _requests(self) -> int:
        """How many the proxies are answering; 0 if nobody says so."""
        if self._endpoint is None:
            return 0
        with suppress(HeadraceError, TimeoutError):
            async with (
                asyncio.timeout(_ASK_S),
                self._admin(self._endpoint) as admin,
            ):
                return sum(p.requests for p in (await admin.status()).proxies)
        return 0


async def _nothing() -> int:
    return 0
