"""The loop that makes what is wanted so: plan, record, tell the nodes. It acts on what is, not on what events say."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress

import structlog

from headrace.core.plan import FORGET_S, plan
from headrace.core.state import Change, DropIntent, Goal, PutIntent, State, desired_on
from headrace.core.types import ReplicaId
from headrace.errors import HeadraceError
from headrace.head.clock import Clock
from headrace.head.cluster import Cluster
from headrace.head.ledger import Ledger
from headrace.head.overview import Overview
from headrace.head.topic import Topic

log = structlog.get_logger()

RETRY_S = 1.0


def new_replica_id(deployment: str, revision: int) -> ReplicaId:
    return ReplicaId(f"{deployment}-{revision}-{secrets.token_hex(3)}")


class Reconciler:
    def __init__(
        self, ledger: Ledger, cluster: Cluster, overview: Overview, clock: Clock, changed: Topic, drain_s: float
    ) -> None:
        self._ledger, self._cluster, self._overview = ledger, cluster, overview
        self._clock, self._changed, self._drain_s = clock, changed, drain_s
        self._again_in_s: float | None = None

    async def run(self) -> None:
        """One round per wake-up, until cancelled. A round that failed is made again RETRY_S later."""
        loop = asyncio.get_running_loop()
        with self._changed.listen() as news:
            while True:
                with suppress(TimeoutError):
                    await asyncio.wait_for(news.wait(), self._again_in_s)
                news.clear()
                try:
                    await self._round()
                except HeadraceError as e:
                    log.warning("reconcile_failed", error=e.message)
                    loop.call_later(RETRY_S, news.set)
                except Exception:
                    log.exception("reconcile_failed")
                    loop.call_later(RETRY_S, news.set)

    async def _round(self) -> None:
        made: list[Change] = []
        before = self._ledger.state
        try:
            await self._ledger.transact(lambda state: self._decide(state, made))
            for change in made:
                _log_change(change, before)
        finally:
            # Nodes are told what is recorded, also when nothing more can be recorded.
            self._tell_nodes(self._ledger.state)

    def _decide(self, state: State, into: list[Change]) -> tuple[Change, ...]:
        made = plan(state, self._cluster.views(), self._clock(), new_replica_id)
        if made.reasons != self._overview.reasons:
            self._overview.reasons = made.reasons
            self._changed.notify()
        self._again_in_s = made.again_in_s
        into.extend(made.changes)
        return made.changes

    def _tell_nodes(self, state: State) -> None:
        for session in self._cluster.sessions():
            if self._cluster.may_be_told(session):
                session.offer(desired_on(state, session.info.node_id, self._drain_s))
        self._cluster.forget({i.node_id for i in state.intents.values()}, FORGET_S)


def _log_change(change: Change, state: State) -> None:
    match change:
        case PutIntent(i) if i.replica_id not in state.intents:
            log.info("replica_placed", replica=i.replica_id, node=i.node_id, gpus=i.gpu_indices)
        case PutIntent(i) if i.goal is Goal.STOP and state.intents[i.replica_id].goal is Goal.RUN:
            log.info("replica_to_stop", replica=i.replica_id, node=i.node_id)
        case DropIntent(replica_id):
            log.info("replica_forgotten", replica=replica_id)
        case _:
            pass
