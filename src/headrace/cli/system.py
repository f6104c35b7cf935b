"""The processes of `headrace up`, from the first start to the last end."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
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
from headrace.errors import UserError
from headrace.lock import private_folder
from headrace.process import LIFELINE_ENV, child_env, told_to_stop
from headrace.settings import UpSettings

if TYPE_CHECKING:
    from headrace.rpc.admin import AdminClient

_TERM_S = 7.0  # of the ten seconds that everything may take to end
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
            endpoint = self._endpoint = await self._head_listens()
            self._head.works = True
            # Only now: at a port that the head did not get, a scheduler would join somebody else's.
            group.create_task(self._scheduler.keep())
            async with self._admin(endpoint) as admin:
                ready = await FirstModels(admin, self.progress, self._node_is_alive).load(
                    self._models, None if self._settings.engine == "auto" else self._settings.engine
                )
            if endpoint.http and not await until_http_answers(endpoint):
                self.progress.say(f"The HTTP proxies do not answer yet; see {self._settings.state_dir}/head/proxies.")
            self.progress.close()
            welcome(endpoint, ready, self._settings)
        raise AssertionError("the head and the scheduler are kept without end")

    def _admin(self, endpoint: HeadEndpoint) -> AdminClient:
        return open_admin(callable_address(endpoint.grpc), self._settings.state_dir, self._settings.tls)

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
        """End all processes, within ten seconds."""
        self.progress.close()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._head.stop(_TERM_S))
            group.create_task(self._scheduler.stop(_TERM_S))
        await end_leftovers(self._settings.state_dir, self.progress.say)
        os.close(self._held)
        os.close(self._lifeline)
