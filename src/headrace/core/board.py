"""The replicas and the nodes' room as they will be, while one plan is made: it costs what is looked at and changed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace

from headrace.core.intents import Goal, Intent
from headrace.core.phase import Phase
from headrace.core.place import Candidate, Held, NoPlace, choose, fits
from headrace.core.state import Change, DropIntent, Nodes, NodeView, PutIntent, State
from headrace.core.types import Deployment, NodeId, ReplicaId, Resources

_Need = tuple[Resources, str]  # with the engine: all that matters to whether there is room


def candidate(node: NodeView, there: Iterable[Intent], knows: Callable[[ReplicaId], object]) -> Candidate:
    """A node with what the replicas `there` hold of it. `knows`: whether any replica is remembered."""
    held = [Held(i.deployment, i.resources, i.gpu_indices, i.goal is Goal.RUN) for i in there]
    # What we have forgotten and the node still reports keeps its GPUs until it has gone.
    for s in node.statuses.values():
        if s.phase not in (Phase.STOPPED, Phase.FAILED) and not knows(s.replica_id):
            held.append(Held(s.deployment, Resources(), s.gpu_indices, counts=False))
    return Candidate(node.info, tuple(held))


class Board:
    """`state`'s intents with changes on top. A change is seen at once in all that is asked afterwards."""

    def __init__(self, state: State, nodes: Nodes) -> None:
        self._intents, self._nodes = state.intents, nodes
        self._news: dict[ReplicaId, Intent | None] = {}
        self._stopping = dict(state.intents.stopping)
        self._of: dict[str, dict[ReplicaId, Intent]] = {}
        self._on: dict[NodeId, dict[ReplicaId, Intent]] = {}
        self._rooms: dict[NodeId, Candidate] | None = None
        # Answers that hold until the next change.
        self._fit_now: dict[_Need, bool] = {}
        self._fit_later: dict[_Need, bool] = {}
        self._missing: dict[_Need, str] = {}

    def knows(self, replica_id: ReplicaId) -> bool:
        return self._news[replica_id] is not None if replica_id in self._news else replica_id in self._intents

    def running(self, deployment: str) -> list[Intent]:
        """Those that are to run, also those that were given up, in the order of their ids."""
        mine = self._mine(deployment)
        return [mine[k] for k in sorted(mine) if mine[k].goal is not Goal.STOP]

    def revisions(self, deployment: str) -> set[int]:
        """Those of which there are replicas, also some on their way out."""
        return {i.revision for i in self._mine(deployment).values()}

    def stopping(self) -> list[Intent]:
        """Those on their way out that will free their place: their node is not lost."""
        return [i for i in self._stopping.values() if not ((n := self._nodes.get(i.node_id)) and n.lost)]

    def told_to_stop(self) -> list[Intent]:
        return list(self._stopping.values())

    def put(self, intent: Intent) -> None:
        key = intent.replica_id
        self._mine(intent.deployment)[key] = self._there(intent.node_id)[key] = intent
        self._news[key] = intent
        if intent.goal is Goal.STOP:
            self._stopping[key] = intent
        self._moved(intent.node_id)

    def drop(self, intent: Intent) -> None:
        key = intent.replica_id
        self._mine(intent.deployment).pop(key, None)
        self._there(intent.node_id).pop(key, None)
        self._news[key] = None
        self._stopping.pop(key, None)
        self._moved(intent.node_id)

    def remember(self, intent: Intent, address: str, context_tokens: int) -> None:
        """Where a replica listens: that makes no difference to any node's room."""
        intent = replace(intent, address=address, context_tokens=context_tokens)
        key = intent.replica_id
        self._mine(intent.deployment)[key] = self._news[key] = intent
        if intent.node_id in self._on:
            self._on[intent.node_id][key] = intent

    def rooms(self) -> dict[NodeId, Candidate]:
        """The nodes that may be given replicas, with what is held of them."""
        if self._rooms is None:
            self._rooms = {k: self._room(n) for k, n in self._nodes.items() if n.live and not n.lost}
        return self._rooms

    def room_without(self, node_id: NodeId, gone: Collection[ReplicaId]) -> Candidate | None:
        """One of `rooms`, as it would be without some replicas."""
        if node_id not in self.rooms():
            return None
        there = self._there(node_id)
        left = [i for k, i in there.items() if k not in gone]
        return candidate(self._nodes[node_id], left, self.knows) if len(left) < len(there) else self.rooms()[node_id]

    def fits(self, d: Deployment) -> bool:
        """Whether there is room for a replica of `d` now."""
        need = d.resources, d.model.engine
        if need not in self._fit_now:
            self._fit_now[need] = fits(*need, self.rooms().values())
        return self._fit_now[need]

    def would_fit(self, d: Deployment) -> bool:
        """Whether there is once all that is stopping has gone."""
        need = d.resources, d.model.engine
        if need not in self._fit_later:
            gone = {i.replica_id: i.node_id for i in self.stopping()}
            freed = {n: room for n in set(gone.values()) if (room := self.room_without(n, gone))}
            self._fit_later[need] = fits(*need, (self.rooms() | freed).values())
        return self._fit_later[need]

    def why_not(self, d: Deployment) -> str:
        """What is missing for a replica of `d`; "" if nothing is."""
        need = d.resources, d.model.engine
        if need not in self._missing:
            where = choose(d.name, *need, self.rooms().values())
            self._missing[need] = where.reason if isinstance(where, NoPlace) else ""
        return self._missing[need]

    def changes(self) -> tuple[Change, ...]:
        """What differs from the state, drops first, by id."""
        news = sorted(self._news.items())
        drops = [DropIntent(k) for k, i in news if i is None and k in self._intents]
        puts = [PutIntent(i) for k, i in news if i is not None and self._intents.get(k) != i]
        return (*drops, *puts)

    def _mine(self, deployment: str) -> dict[ReplicaId, Intent]:
        if deployment not in self._of:
            self._of[deployment] = {i.replica_id: i for i in self._intents.of(deployment)}
        return self._of[deployment]

    def _there(self, node_id: NodeId) -> dict[ReplicaId, Intent]:
        if node_id not in self._on:
            self._on[node_id] = {i.replica_id: i for i in self._intents.on(node_id)}
        return self._on[node_id]

    def _room(self, node: NodeView) -> Candidate:
        return candidate(node, self._there(node.info.node_id).values(), self.knows)

    def _moved(self, node_id: NodeId) -> None:
        """What is held of a node is something else now."""
        self._fit_now.clear()
        self._fit_later.clear()
        self._missing.clear()
        if self._rooms is not None and node_id in self._rooms:
            self._rooms[node_id] = self._room(self._nodes[node_id])
