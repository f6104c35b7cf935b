"""The reconcile step: from what is wanted and what is seen to what is to change. Level-triggered and idempotent.

Replicas are only ever created (RUN), told to go (STOP), and forgotten once their node says that they are gone. A FAILED
replica of the newest revision keeps its place, so that a broken deployment does not eat the cluster; one on a LOST node
is made up for elsewhere, and when the node returns the surplus goes, those that are not ready first, then the newest.
A new revision comes up beside the old one, a few replicas at a time; an old replica goes when a new one is READY. One
that had to be started again is not trusted with that until it has run for PROVEN_S, so that a revision which crashes at
work does not use up the old one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from headrace.core.place import Candidate, Held, NoPlace, Placement, choose
from headrace.core.state import (
    Change,
    DropIntent,
    Goal,
    Intent,
    Nodes,
    NodeView,
    PutIntent,
    State,
    Unplaced,
    phase_of,
    status_of,
)
from headrace.core.types import Deployment, Phase, ReplicaId, Resources

PROVEN_S = 60.0
FORGET_S = 3600.0  # a node that is silent for so long does not come back with anything worth keeping

NewId = Callable[[str, int], ReplicaId]


@dataclass(frozen=True, slots=True)
class Plan:
    """Changes to commit, and for each deployment that cannot have all its replicas, why.

    again_in_s: when to plan again although nothing has changed; None: no need.
    """

    changes: tuple[Change, ...]
    reasons: Mapping[str, Unplaced]
    again_in_s: float | None = None


def plan(state: State, nodes: Nodes, now: float, new_id: NewId, forget_s: float = FORGET_S) -> Plan:
    """What to change now. After its changes were applied, planning again with the same observations changes nothing.

    now: the clock that stamps intents and that `nodes` was seen with. new_id: a fresh id for (deployment, revision).
    """
    step = _Step(state, nodes, now, new_id, forget_s)
    step.forget_gone()
    step.remember_addresses()
    step.stop([i for i in step.running() if i.deployment not in state.deployments])
    wanted = sorted(state.deployments.values(), key=lambda d: (d.created_unix_s, d.name))
    for d in wanted:
        step.stop(_surplus(d, step))
    short = [d for d in wanted if not _fill(d, step)]
    proofs = [
        step.unproven_s(i) for d in wanted if _old(d, step) for i in step.running(d.name) if i.revision == d.revision
    ]
    return Plan(step.changes(), {d.name: _why(d, step) for d in short}, min(filter(None, proofs), default=None))


def candidate(
    node: NodeView, intents: Mapping[ReplicaId, Intent], known: Mapping[ReplicaId, Intent] | None = None
) -> Candidate:
    """A node with what those of `intents` that are on it hold. `known`: all that are remembered, if that is more."""
    known = intents if known is None else known
    mine = [i for i in intents.values() if i.node_id == node.info.node_id]
    held = [Held(i.deployment, i.resources, i.gpu_indices, i.goal is Goal.RUN) for i in mine]
    # What we have forgotten and the node still reports keeps its GPUs until it has gone.
    for s in node.statuses.values():
        if s.replica_id not in known and s.phase not in (Phase.STOPPED, Phase.FAILED):
            held.append(Held(s.deployment, Resources(), s.gpu_indices, counts=False))
    return Candidate(node.info, tuple(held))


def surge(wanted: int) -> int:
    """How many replicas more than wanted may exist during a rolling update."""
    return max(1, wanted // 4)


class _Step:
    """The intents as they will be, while one plan is made."""

    def __init__(self, state: State, nodes: Nodes, now: float, new_id: NewId, forget_s: float) -> None:
        self.nodes = nodes
        self._before = state.intents
        self._board: dict[ReplicaId, Intent] = dict(state.intents)
        self._now, self._new_id, self._forget_s = now, new_id, forget_s

    def running(self, deployment: str | None = None) -> list[Intent]:
        found = [i for i in self._board.values() if i.goal is Goal.RUN and deployment in (None, i.deployment)]
        return sorted(found, key=lambda i: i.replica_id)

    def stopping(self) -> list[Intent]:
        """Those on their way out that will free their place."""
        return [i for i in self._board.values() if i.goal is Goal.STOP and not self.is_lost(i)]

    def phase(self, intent: Intent) -> Phase | None:
        return phase_of(intent, self.nodes)

    def unproven_s(self, intent: Intent) -> float:
        """How long a READY replica that was started again has yet to run until it is trusted; 0: it is."""
        said = status_of(intent, self.nodes)
        if said is None or said.phase is not Phase.READY or not said.restarts:
            return 0.0
        return max(0.0, said.started_at + PROVEN_S - self._now)

    def works(self, intent: Intent) -> bool:
        """Whether it is READY and may be relied upon."""
        return self.phase(intent) is Phase.READY and not self.unproven_s(intent)

    def is_lost(self, intent: Intent) -> bool:
        return self.phase(intent) is Phase.LOST

    def long_lost(self, intent: Intent) -> bool:
        node = self.nodes.get(intent.node_id)
        return node is not None and node.lost and self._now - node.heard_at > self._forget_s

    def stop_order(self, intent: Intent) -> tuple[int, float, str]:
        """Which goes first: given up, not ready, ready; of equals the newest."""
        phase = self.phase(intent)
        rank = 0 if phase is Phase.FAILED else 2 if phase is Phase.READY else 1
        return rank, -intent.created, intent.replica_id

    def stop(self, intents: Iterable[Intent]) -> None:
        for intent in intents:
            if self.long_lost(intent):
                del self._board[intent.replica_id]
            else:
                self._board[intent.replica_id] = replace(intent, goal=Goal.STOP, changed=self._now)

    def create(self, d: Deployment, where: Placement) -> None:
        replica_id = self._new_id(d.name, d.revision)
        self._board[replica_id] = Intent(
            replica_id=replica_id,
            deployment=d.name,
            revision=d.revision,
            node_id=where.node_id,
            resources=where.resources,
            gpu_indices=where.gpu_indices,
            goal=Goal.RUN,
            created=self._now,
            changed=self._now,
        )

    def forget_gone(self) -> None:
        """Drop what was told to stop and is gone by a report that is newer than the telling."""
        for intent in [i for i in self._board.values() if i.goal is Goal.STOP]:
            node = self.nodes.get(intent.node_id)
            if node is None:
                continue
            said = node.statuses.get(intent.replica_id)
            gone = said is None or said.phase is Phase.STOPPED
            if (gone and node.reported_at > intent.changed) or self.long_lost(intent):
                del self._board[intent.replica_id]

    def remember_addresses(self) -> None:
        for intent in self.running():
            said = status_of(intent, self.nodes)
            if said is None or said.phase is not Phase.READY:
                continue
            tokens = said.model.context_tokens if said.model else 0
            if (said.address, tokens) != (intent.address, intent.context_tokens):
                self._board[intent.replica_id] = replace(intent, address=said.address, context_tokens=tokens)

    def candidates(self, without: Iterable[ReplicaId] = ()) -> list[Candidate]:
        """The nodes that may be given replicas, with what is held of them; `without` some replicas."""
        gone = set(without)
        board = {k: i for k, i in self._board.items() if k not in gone} if gone else self._board
        by_node: dict[str, dict[ReplicaId, Intent]] = {}
        for k, i in board.items():
            by_node.setdefault(i.node_id, {})[k] = i
        return [candidate(n, by_node.get(k, {}), self._board) for k, n in self.nodes.items() if n.live and not n.lost]

    def changes(self) -> tuple[Change, ...]:
        drops = [DropIntent(r) for r in sorted(self._before) if r not in self._board]
        puts = [PutIntent(i) for r, i in sorted(self._board.items()) if self._before.get(r) != i]
        return (*drops, *puts)


def _surplus(d: Deployment, step: _Step) -> list[Intent]:
    """The replicas of `d` that are to go. None while some of them have yet to be heard of after a start of the head."""
    mine = step.running(d.name)
    if any(step.phase(i) is None for i in mine):
        return []
    current = [i for i in mine if i.revision == d.revision]
    old = sorted(_old(d, step), key=step.stop_order)
    lost = sorted((i for i in current if step.is_lost(i)), key=step.stop_order)
    here = sorted((i for i in current if not step.is_lost(i)), key=step.stop_order)
    ready = sum(step.phase(i) is Phase.READY for i in here)

    go = here[: max(0, len(here) - d.replicas)]
    go += lost[: max(0, len(lost) - d.replicas)]
    if ready >= d.replicas:
        go += [i for i in lost if step.long_lost(i) and i not in go]
    go += [i for i in old if step.phase(i) is Phase.FAILED]
    old = [i for i in old if step.phase(i) is not Phase.FAILED]
    go += old[: max(0, len(old) - max(0, d.replicas - sum(map(step.works, here))))]
    return go


def _old(d: Deployment, step: _Step) -> list[Intent]:
    return [i for i in step.running(d.name) if i.revision != d.revision]


def _fill(d: Deployment, step: _Step) -> bool:
    """Create what is missing of `d`; False if something had to be left out for want of room."""
    mine = step.running(d.name)
    here = [i for i in mine if i.revision == d.revision and not step.is_lost(i)]
    old = [i for i in _old(d, step) if not step.is_lost(i)]
    missing = d.replicas - len(here)
    if old:
        missing = min(missing, d.replicas + surge(d.replicas) - len(here) - len(old))
    # One at a time: nobody gives way to a new replica while another new one has yet to show that it works.
    may_displace = all(map(step.works, here)) and all(step.phase(i) for i in old)
    for made in range(missing):
        where = choose(d.name, d.resources, d.model.engine, step.candidates())
        if isinstance(where, NoPlace):
            if not _fits(d, step) and may_displace and not made:
                step.stop(_in_the_way(d, old, step))
            return False
        step.create(d, where)
    return True


def _fits(d: Deployment, step: _Step) -> bool:
    """Whether a replica of `d` fits once all that is stopping has gone."""
    room = step.candidates(without=[i.replica_id for i in step.stopping()])
    return isinstance(choose(d.name, d.resources, d.model.engine, room), Placement)


def _in_the_way(d: Deployment, old: Sequence[Intent], step: _Step) -> list[Intent]:
    """The fewest old replicas of one node whose going makes room for a new one; none if that cannot be."""
    going = [i.replica_id for i in step.stopping()]
    options: list[tuple[int, str, list[Intent]]] = []
    for node_id in {i.node_id for i in old}:
        there = sorted((i for i in old if i.node_id == node_id), key=step.stop_order)
        for n in range(1, len(there) + 1):
            room = step.candidates(without=[*going, *(i.replica_id for i in there[:n])])
            here = [c for c in room if c.info.node_id == node_id]
            if isinstance(choose(d.name, d.resources, d.model.engine, here), Placement):
                options.append((n, node_id, there[:n]))
                break
    return min(options, key=lambda o: o[:2])[2] if options else []


def _why(d: Deployment, step: _Step) -> Unplaced:
    """Why no further replica of `d` can be placed now."""
    if _fits(d, step):
        return Unplaced("waits for another replica to stop")
    old = [i for i in _old(d, step) if not step.is_lost(i)]
    if old and _in_the_way(d, old, step):
        return Unplaced("no room for a new replica beside the old ones, so one old replica goes for each new one")
    anywhere = step.candidates()
    where = choose(d.name, d.resources, d.model.engine, anywhere)
    lost = {i.node_id for i in step.running(d.name) if step.is_lost(i)}
    if not anywhere:
        lost |= {n for n, view in step.nodes.items() if view.lost}
    if not lost:
        return Unplaced(where.reason if isinstance(where, NoPlace) else "", stuck=bool(anywhere))
    names = sorted(lost)[:5]
    said = f"node {names[0]} does not answer" if len(lost) == 1 else f"nodes {', '.join(names)} do not answer"
    if isinstance(where, NoPlace) and anywhere:
        return Unplaced(f"{said}; {where.reason}")
    return Unplaced(f"{said}; start its scheduler again")
