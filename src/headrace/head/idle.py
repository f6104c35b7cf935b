"""Takes away what a request has started and nobody uses any more."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import structlog

from headrace.core.on_demand import Mark, Use, idle, mark_of, started, uses
from headrace.core.phase import Phase
from headrace.core.state import phase_of
from headrace.errors import HeadraceError
from headrace.head.clock import Clock
from headrace.head.cluster import Cluster
from headrace.head.commands import Commands
from headrace.head.ledger import Ledger

log = structlog.get_logger()

_LOOK_S = 5.0


class Idle:
    """Judges by the load that nodes report: between two looks a replica that was used has taken a step."""

    def __init__(self, ledger: Ledger, cluster: Cluster, commands: Commands, clock: Clock, idle_s: float) -> None:
        self._ledger, self._cluster, self._commands, self._clock = ledger, cluster, commands, clock
        self._idle_s = idle_s
        self._uses: Mapping[str, Use] = {}

    async def run(self) -> None:
        """Look every few seconds, until cancelled. 0 s: never take anything away."""
        while self._idle_s:
            await asyncio.sleep(min(_LOOK_S, self._idle_s / 4))
            await self._look()

    async def _look(self) -> None:
        now = self._clock()
        names = [d.name for d in started(self._ledger.state.deployments.values())]
        self._uses = uses(self._uses, {name: self._mark(name) for name in names}, now)
        for name in idle(self._uses, now, self._idle_s):
            try:
                if await self._commands.unload(name):
                    log.info("idle_model_unloaded", deployment=name, idle_s=self._idle_s)
            except HeadraceError as e:
                log.warning("idle_model_not_unloaded", deployment=name, error=e.message)

    def _mark(self, name: str) -> Mark | None:
        """None while a replica works, or while none is READY."""
        nodes = self._cluster.views()
        mine = self._ledger.state.intents.of(name)
        ready = [i for i in mine if phase_of(i, nodes) is Phase.READY]
        loads = [self._cluster.load(i.node_id, i.replica_id) for i in ready]
        if not loads or any(x.running or x.waiting for x in loads):
            return None
        return (tuple(i.replica_id for i in ready), *mark_of(loads))
