"""What the head sees: nodes with their sessions, leases and last reports. In memory only; reports bring it all back."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import structlog

from headrace.core.place import as_if_empty
from headrace.core.state import NodeView
from headrace.core.types import Load, NodeId, NodeInfo, ReplicaId, ReplicaStatus, Resources
from headrace.errors import Fenced, InvalidRequest
from headrace.head.clock import Clock
from headrace.head.node_session import NodeSession
from headrace.head.topic import Topic

log = structlog.get_logger()

_NO_LOAD = Load()
FIRST_REPORT_S = 1.0  # how long a node's first Desired waits for its first report


@dataclass(slots=True)
class _Node:
    info: NodeInfo
    heard_at: float
    session: NodeSession | None = None
    lost: bool = False
    reported_at: float = 0.0
    # Without loads, which move all the time and change no decision. What a report does not change stays the same
    # object, the mapping too.
    statuses: Mapping[ReplicaId, ReplicaStatus] = field(default_factory=dict)
    loads: dict[ReplicaId, Load] = field(default_factory=dict)


class Cluster:
    """The nodes. Every change worth a thought notifies `changed`."""

    def __init__(self, clock: Clock, lease_s: float, changed: Topic) -> None:
        self._clock, self._lease_s, self._changed = clock, lease_s, changed
        self._nodes: dict[NodeId, _Node] = {}

    def expect(self, node_ids: Iterable[NodeId]) -> None:
        """Nodes that have replicas by the store: their leases run from now."""
        for node_id in node_ids:
            self._nodes.setdefault(node_id, _Node(NodeInfo(node_id, 0, "", "", Resources()), self._clock()))

    def join(self, info: NodeInfo, held_gpus: Collection[int] = ()) -> NodeSession:
        """A scheduler says hello: it gets the node's session. Fenced if one that started later holds the node's lease.

        held_gpus: indices of the node's GPUs that our replicas hold, so that memory in use is ours.
        """
        now = self._clock()
        node = self._nodes.setdefault(info.node_id, _Node(info, now))
        # Not for ever: a machine whose clock was set back starts "earlier" schedulers.
        if info.incarnation < node.info.incarnation and not (node.lost and node.session is None):
            raise Fenced(
                f"Another scheduler with node id {info.node_id} has started later (on {node.info.hostname}); give each"
                " its own --node_id."
            )
        if node.session is not None:
            newer = info.incarnation != node.info.incarnation
            # With the same incarnation it is the same scheduler, whose old connection we have yet to miss.
            node.session.end(
                f"Another scheduler with node id {info.node_id} has started on {info.hostname}." if newer else ""
            )
        node.info = as_if_empty(info, held_gpus)
        node.session = NodeSession(node.info, now)
        # One that was lost is so until its first report: what it said before may be true no longer, and replicas that
        # made up for it must not go for the sake of some that have died meanwhile.
        node.heard_at = now
        asyncio.get_running_loop().call_later(FIRST_REPORT_S, self._changed.notify)
        log.info("node_joined", node=info.node_id, hostname=info.hostname, engines=info.engines)
        self._changed.notify()
        return node.session

    def leave(self, session: NodeSession) -> None:
        """The session has ended. The node keeps its lease: it may be back before that runs out."""
        session.end()
        node = self._nodes.get(session.info.node_id)
        if node is not None and node.session is session:
            node.session = None
            log.info("node_left", node=session.info.node_id)
            self._changed.notify()

    def report(
        self, session: NodeSession, news: Sequence[ReplicaStatus], gone: Collection[ReplicaId] | None = None
    ) -> None:
        """What runs on the node: all of it, or with `gone` what differs from the session's report before.

        Ignored from a session that is no longer the node's.
        """
        node = self._nodes.get(session.info.node_id)
        if node is None or node.session is not session:
            return
        if gone is not None and not session.reported:
            raise InvalidRequest("The first report of a node's session names all of its replicas.")
        was_lost, first = node.lost, not session.reported
        differs = bool(news or gone is None or gone) and self._take(node, news, gone)
        node.heard_at = node.reported_at = self._clock()
        node.lost, session.reported = False, True
        if was_lost:
            log.info("node_returned", node=session.info.node_id)
        if first or was_lost or differs:
            self._changed.notify()

    def _take(self, node: _Node, news: Sequence[ReplicaStatus], gone: Collection[ReplicaId] | None) -> bool:
        """Take a report over; whether it says anything new but loads."""
        before = node.statuses
        statuses = {} if gone is None else {k: s for k, s in before.items() if k not in gone}
        for s in news:
            calm, had = replace(s, load=_NO_LOAD), before.get(s.replica_id)
            statuses[s.replica_id] = had if had and had == calm else calm
        node.loads |= {s.replica_id: s.load for s in news}
        if len(statuses) == len(before) and all(before.get(k) is s for k, s in statuses.items()):
            return False
        node.statuses = statuses
        node.loads = {k: load for k, load in node.loads.items() if k in statuses}
        return True

    def load(self, node_id: NodeId, replica_id: ReplicaId) -> Load:
        """How busy a replica said it is last."""
        node = self._nodes.get(node_id)
        return node.loads.get(replica_id, _NO_LOAD) if node else _NO_LOAD

    def may_be_told(self, session: NodeSession) -> bool:
        """Whether the node has reported, or had its time to: what it runs may change what it is told to run."""
        return session.reported or self._clock() - session.joined_at >= FIRST_REPORT_S

    def sessions(self) -> list[NodeSession]:
        return [n.session for n in self._nodes.values() if n.session]

    def session(self, node_id: NodeId) -> NodeSession | None:
        node = self._nodes.get(node_id)
        return node.session if node else None

    def views(self) -> dict[NodeId, NodeView]:
        """All nodes as they are now."""
        return {
            k: NodeView(n.info, n.session is not None and not n.lost, n.lost, n.heard_at, n.reported_at, n.statuses)
            for k, n in sorted(self._nodes.items())
        }

    def forget(self, keep: Collection[NodeId], after_s: float) -> None:
        """Drop nodes that have been silent for `after_s` and have no replica, which is to say are not in `keep`."""
        now = self._clock()
        gone = [
            k
            for k, n in self._nodes.items()
            if n.lost and not n.session and k not in keep and now - n.heard_at > after_s
        ]
        for k in gone:
            del self._nodes[k]

    async def run_leases(self, tick_s: float = 1.0) -> None:
        """Declare nodes lost whose lease runs out, until cancelled.

        Wakes at least every `tick_s` to notice when this process itself stood still: then it was we who did not listen,
        and the leases get that time back.
        """
        while True:
            due = min((n.heard_at + self._lease_s for n in self._nodes.values() if not n.lost), default=None)
            before = self._clock()
            wait = tick_s if due is None else min(tick_s, max(0.0, due - before))
            await asyncio.sleep(wait)
            late = self._clock() - before - wait
            if late > tick_s:
                log.warning("head_stood_still", seconds=round(late, 1))
                for node in self._nodes.values():
                    node.heard_at += late
            self._expire()

    def _expire(self) -> None:
        now = self._clock()
        for node_id, node in self._nodes.items():
            if not node.lost and now >= node.heard_at + self._lease_s:
                node.lost = True
                log.warning("node_lost", node=node_id, silent_s=round(now - node.heard_at, 1))
                self._changed.notify()
