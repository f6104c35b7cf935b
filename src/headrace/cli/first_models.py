"""The models that `headrace up` begins with: deployed, and waited for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TypeVar

from headrace.cli.client import is_unreachable
from headrace.cli.loading import BarProgress, PlainProgress
from headrace.cli.waiting import Outcome, Standing, standing
from headrace.core.catalog import resolve
from headrace.core.types import ClusterStatus, DeployRequest, RouteState
from headrace.engines_here import how_to_install, installed, pick
from headrace.errors import HeadraceError, RequestTimeout, Unavailable, UserError
from headrace.rpc.admin import AdminClient

_AGAIN_S = 0.3
_T = TypeVar("_T")


async def watch(admin: AdminClient) -> AsyncIterator[ClusterStatus]:
    """The cluster's status, now and after every change, through restarts of the head."""
    while True:
        try:
            async for status in admin.watch_status():
                yield status
        except (Unavailable, RequestTimeout) as e:
            if isinstance(e, Unavailable) and not is_unreachable(e):
                raise
        await asyncio.sleep(_AGAIN_S)


async def insist(call: Callable[[], Awaitable[_T]]) -> _T:
    """The answer to an idempotent call; a head that is just being started again is waited for."""
    while True:
        try:
            return await call()
        except Unavailable as e:
            if not is_unreachable(e):
                raise
        await asyncio.sleep(_AGAIN_S)


class FirstModels:
    """Deploys models and shows how they load. `node_is_alive` is called when a node was seen to be."""

    def __init__(
        self, admin: AdminClient, progress: PlainProgress | BarProgress, node_is_alive: Callable[[], None]
    ) -> None:
        self._admin = admin
        self._progress = progress
        self._node_is_alive = node_is_alive

    async def load(self, models: Sequence[str], engine: str | None) -> list[str]:
        """Names of the models that are ready. UserError if none is: then what was new is deleted again.

        NotFound or UserError, and nothing deployed, if one of them is in no catalog or its engine is not installed.
        """
        before = {d.deployment.name for d in (await insist(self._admin.status)).deployments}
        await self._check(models, engine)
        await self._node()
        wanted: dict[str, int] = {}
        for model in models:
            request = DeployRequest(model=model, engine=engine)
            made = (await insist(lambda r=request: self._admin.deploy(r))).deployment
            wanted[made.name] = made.revision
        standings, others_serve = await self._wait(wanted)
        failed = [s for s in standings if s.outcome is not Outcome.READY]
        sentences = [f"{s.name} cannot be served: {s.text.rstrip('.')}." for s in failed]
        if len(failed) == len(standings) and not others_serve:
            for name in set(wanted) - before:
                with suppress(HeadraceError):
                    await self._admin.delete(name)
            raise UserError(" ".join(sentences))
        for sentence in sentences:
            self._progress.say(sentence)
        return [s.name for s in standings if s.outcome is Outcome.READY]

    async def _check(self, models: Sequence[str], engine: str | None) -> None:
        # All of them before any is deployed: a wrong word must not leave half of what was asked for. What is missing
        # here could come with another node, so the head would wait for one.
        catalog = {m.name: m for m in await insist(self._admin.models)}
        here = installed()
        for model in models:
            wanted = resolve(DeployRequest(model=model, engine=engine), catalog)
            needed, _ = pick(wanted.model.engine, here, wanted.resources.gpus)
            if needed not in here:
                raise UserError(how_to_install(needed))

    async def _node(self) -> None:
        """Wait for a node: without one the head would have a person start a scheduler, and ours is on its way."""
        async for status in watch(self._admin):
            if any(n.alive for n in status.nodes):
                self._node_is_alive()
                return

    async def _wait(self, wanted: dict[str, int]) -> tuple[list[Standing], bool]:
        async for status in watch(self._admin):
            standings = [standing(status, name, revision) for name, revision in wanted.items()]
            self._progress.show(standings)
            if all(s.outcome is not Outcome.WAITING for s in standings):
                others = any(d.state is RouteState.READY for d in status.deployments)
                return standings, others
        raise AssertionError("a watch has no end")
