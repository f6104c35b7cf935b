"""The loop that makes what is wanted so: plan, record, tell the nodes. It acts on what is, not on what events say."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import suppress
from weakref import WeakSet

import structlog

from headrace.core import touched
from headrace.core.plan import FORGET_S, Plan, plan
from headrace.core.state import Change, DropIntent, Goal, PutIntent, State, desired_on
from headrace.core.types import ReplicaId
from headrace.errors import HeadraceError, Unavailable
from headrace.head.clock import Clock
from headrace.head.cluster import Cluster
from headrace.head.ledger import Ledger
from headrace.head.node_session import NodeSession
from headrace.head.overview import Overview
from headrace.head.topic import Topic

log = structlog.get_logger()

RETRY_S = 1.0
COALESCE_S = 0.02


def new_replica_id(deployment: str, revision: int) -> ReplicaId:
    """One that nobody had. It is also a folder's name, which a model's may not be."""
    return ReplicaId(f"{deployment.replace('/', '--')}-{revision}-{secrets.token_hex(3)}")


class Reconciler:
    def __init__(
        self, ledger: Ledger, cluster: Cluster, overview: Overview, clock: Clock, changed: Topic, drain_s: float
    ) -> None:
        self._ledger, self._cluster, self._overview = ledger, cluster, overview
        self._clock, self._changed, self._drain_s = clock, changed, drain_s
        self._last: Plan | None = None
        self._told: WeakSet[NodeSession] = WeakSet()  # those that know what `_told_of` wants of them
        self._told_of = State()

    async def run(self) -> None:
        """One round per wake-up, until cancelled. A round that failed is made again RETRY_S later."""
        loop = asyncio.get_running_loop()
        with self._changed.listen() as news:
            while True:
                with suppress(TimeoutError):
                    await asyncio.wait_for(news.wait(), self._last.again_in_s if self._last else None)
                news.clear()
                begun = loop.time()
                try:
                    await self._round()
                except HeadraceError as e:
                    log.warning("reconcile_failed", error=e.message)
                    loop.call_later(RETRY_S, news.set)
                except Exception:
                    log.exception("reconcile_failed")
                    loop.call_later(RETRY_S, news.set)
                # What comes meanwhile is for one round; and rounds leave half of the time for everything else.
                await asyncio.sleep(max(COALESCE_S, loop.time() - begun))

    async def _round(self) -> None:
        made: list[Change] = []
        before = self._ledger.state
        try:
            try:
                await self._ledger.transact(lambda state: self._decide(state, made))
            except Unavailable:
                # On a full disk there may be room for what ends replicas where there is none for what is new.
                await self._ledger.transact(lambda state: [c for c in made if _ends(c, state)])
                raise
            for change in made:
                _log_change(change, before)
        finally:
            # Nodes are told what is recorded, also when nothing more can be recorded.
            self._tell_nodes(self._ledger.state)

    def _decide(self, state: State, into: list[Change]) -> tuple[Change, ...]:
        made = self._last = plan(state, self._cluster.views(), self._clock(), new_replica_id, last=self._last)
        if made.reasons != self._overview.reasons:
            self._overview.reasons = made.reasons
            self._changed.notify()
        into.extend(made.changes)
        return made.changes

    def _tell_nodes(self, state: State) -> None:
        news = touched.nodes_to_tell(self._told_of, state)
        for session in self._cluster.sessions():
            node_id = session.info.node_id
            if session in self._told and node_id not in news:
                continue
            self._told.discard(session)
            if self._cluster.may_be_told(session):
                session.offer(desired_on(state, node_id, self._drain_s))
                self._told.add(session)
        self._told_of = state
        self._cluster.forget(state.intents.nodes, FORGET_S)


def _ends(change: Change, state: State) -> bool:
    match change:
        case PutIntent(i):
            return i.goal is Goal.STOP and i.replica_id in state.intents
        case DropIntent(replica_id):
            return replica_id in state.intents
        case _:
            return False


def _log_change(change: Change, state: State) -> None:
    match change:
        case PutIntent(i) if i.replica_id not in state.intents:
            log.info("replica_placed", replica=i.replica_id, node=i.node_id, gpus=i.gpu_indices)
        case PutIntent(i) if i.goal is Goal.STOP and state.intents[i.replica_id].goal is Goal.RUN:
            log.info("replica_to_stop", replica=i.replica_id, node=i.node_id)
        case PutIntent(i) if i.goal is Goal.GIVEN_UP:
            log.warning("replica_given_up", replica=i.replica_id, node=i.node_id, reason=i.reason)
        case DropIntent(replica_id):
            log.info("replica_forgotten", replica=replica_id)
        case _:
            pass
