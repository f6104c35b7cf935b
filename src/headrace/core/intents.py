"""The replicas that the head has decided upon, by deployment and by node, in a value that shares what did not change.

Ten thousand of them change one at a time: whoever works on them looks at the groups that are not the same objects as
before, and at nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, KeysView, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from headrace.core.types import NodeId, ReplicaId, Resources

K = TypeVar("K")
Group = tuple["Intent", ...]


class Goal(StrEnum):
    """What the head wants of a replica."""

    RUN = "run"
    STOP = "stop"  # kept until its node says that it is gone
    GIVEN_UP = "given up"  # it has failed and is not tried again: kept to say why, and holds nothing


@dataclass(frozen=True, slots=True)
class Intent:
    """One replica on one node, as decided.

    address, context_tokens: as last seen READY, for after a restart.
    reason, incarnation: of one that was given up, why, and by which start of its node's scheduler.
    """

    replica_id: ReplicaId
    deployment: str
    revision: int
    node_id: NodeId
    resources: Resources
    gpu_indices: tuple[int, ...]
    goal: Goal
    created: float
    changed: float  # when the goal was set
    address: str = ""
    context_tokens: int = 0
    reason: str = ""
    incarnation: int = 0


class Intents(Mapping[ReplicaId, Intent]):
    """Intents by replica id. A group is a tuple in the order of those ids."""

    __slots__ = ("_all", "_of", "_oldest", "_on", "_stopping")

    def __init__(self, intents: Iterable[Intent] = ()) -> None:
        self._all: dict[ReplicaId, Intent] = {}
        self._of: dict[str, Group] = {}
        self._on: dict[NodeId, Group] = {}
        self._oldest: dict[str, int] = {}
        self._stopping: dict[ReplicaId, Intent] = {}
        self._change({i.replica_id: i for i in intents})

    def __getitem__(self, key: ReplicaId) -> Intent:
        return self._all[key]

    def __iter__(self) -> Iterator[ReplicaId]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, key: object) -> bool:
        return key in self._all

    def __eq__(self, other: object) -> bool:
        return self._all == (other._all if isinstance(other, Intents) else other)

    def __repr__(self) -> str:
        return f"Intents({list(self._all.values())!r})"

    @property
    def deployments(self) -> KeysView[str]:
        """Those that have intents, also those that are no more wanted."""
        return self._of.keys()

    @property
    def nodes(self) -> KeysView[NodeId]:
        return self._on.keys()

    @property
    def stopping(self) -> Mapping[ReplicaId, Intent]:
        """Those with the goal STOP."""
        return self._stopping

    def of(self, deployment: str) -> Group:
        return self._of.get(deployment, ())

    def on(self, node_id: NodeId) -> Group:
        return self._on.get(node_id, ())

    def oldest(self, deployment: str) -> int:
        """The lowest revision of which a replica is to run; 0: there is none."""
        return self._oldest.get(deployment, 0)

    def changed(self, news: Mapping[ReplicaId, Intent | None]) -> Intents:
        """With these put in their places; None: dropped. Groups without one of them stay the same objects."""
        if not news:
            return self
        made = Intents()
        made._all, made._of, made._on = dict(self._all), dict(self._of), dict(self._on)
        made._stopping, made._oldest = dict(self._stopping), dict(self._oldest)
        made._change(news)
        return made

    def _change(self, news: Mapping[ReplicaId, Intent | None]) -> None:
        of: dict[str, dict[ReplicaId, Intent]] = {}
        on: dict[NodeId, dict[ReplicaId, Intent]] = {}

        def groups(i: Intent) -> tuple[dict[ReplicaId, Intent], dict[ReplicaId, Intent]]:
            if i.deployment not in of:
                of[i.deployment] = {x.replica_id: x for x in self.of(i.deployment)}
            if i.node_id not in on:
                on[i.node_id] = {x.replica_id: x for x in self.on(i.node_id)}
            return of[i.deployment], on[i.node_id]

        for key, intent in news.items():
            if before := self._all.get(key):
                for group in groups(before):
                    del group[key]
                self._stopping.pop(key, None)
            if intent is None:
                self._all.pop(key, None)
                continue
            self._all[key] = intent
            for group in groups(intent):
                group[key] = intent
            if intent.goal is Goal.STOP:
                self._stopping[key] = intent
        for name, group in of.items():
            _put(self._of, name, group)
            self._oldest[name] = min((i.revision for i in group.values() if i.goal is Goal.RUN), default=0)
            if not group:
                del self._oldest[name]
        for node_id, group in on.items():
            _put(self._on, node_id, group)


def _put(into: dict[K, Group], key: K, group: Mapping[ReplicaId, Intent]) -> None:
    if group:
        into[key] = tuple(group[k] for k in sorted(group))
    else:
        into.pop(key, None)
