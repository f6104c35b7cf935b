"""The reconcile step: from what is wanted and what is seen to what is to change. Level-triggered and idempotent.

Replicas are only ever created (RUN), told to go (STOP), and forgotten once their node says that they are gone; or they
are given up (GIVEN_UP). Such a one of the newest revision is not replaced, so that a broken deployment does not eat the
cluster, and holds no room. It is placed anew when its node's scheduler was started again, which may have mended it, and
when its revision works elsewhere. One on a LOST node, and one that keeps failing where it is, is made up for elsewhere;
when it is back the surplus goes, those that are not ready first, then the newest.
A new revision comes up beside the old one, a few replicas at a time; an old replica goes when a new one is READY. One
that had to be started again is not trusted with that until it has run for PROVEN_S, so that a revision which crashes at
work does not use up the old one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from headrace.core import touched
from headrace.core.board import Board
from headrace.core.phase import Phase
from headrace.core.place import Choice, NoPlace, fits
from headrace.core.state import Change, Goal, Intent, Nodes, PutDeployment, State, Unplaced, phase_of, status_of
from headrace.core.types import Deployment, NodeId, ReplicaId, Resources

PROVEN_S = 60.0
RETRY_S = 60.0  # one that was given up is placed anew so long afterwards, if its revision works elsewhere
MOVE_AFTER = 3  # failures in a row, after which one that waits for its next try is made up for on another node
REPORT_S = 1.0  # after which to look whether a node that was told of a stop has reported since
FORGET_S = 3600.0  # a node that is silent for so long does not come back with anything worth keeping

_COMING = (Phase.PENDING, Phase.STARTING, Phase.LOADING)

NewId = Callable[[str, int], ReplicaId]


@dataclass(frozen=True, slots=True)
class Plan:
    """Changes to commit, and for each deployment that cannot have all its replicas, why.

    again_in_s: when to plan again although nothing has changed; None: no need. made_of, open and due are for the next
    plan: what this one saw, the deployments that it did not settle, and when time alone makes a difference to others.
    """

    changes: tuple[Change, ...]
    reasons: Mapping[str, Unplaced]
    again_in_s: float | None = None
    made_of: touched.Seen | None = None
    open: frozenset[str] = frozenset()
    due: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))


def plan(
    state: State, nodes: Nodes, now: float, new_id: NewId, forget_s: float = FORGET_S, last: Plan | None = None
) -> Plan:
    """What to change now. After its changes were applied, planning again with the same observations changes nothing.

    now: the clock that stamps intents and that `nodes` was seen with. new_id: a fresh id for (deployment, revision).
    last: the plan before this one, whether or not its changes were committed. The outcome is the same without it; with
    it, only deployments of which something differs are looked at.
    """
    step = _Step(state, nodes, now, new_id, forget_s)
    names = _to_look_at(state, nodes, now, last)
    step.forget_gone()
    step.remember_addresses(names)
    step.give_up(names)
    for name in sorted(names - state.deployments.keys()):
        step.stop(step.running(name))
    wanted = sorted((state.deployments[n] for n in names if n in state.deployments), key=_order)
    for d in wanted:
        step.stop(_surplus(d, step))
        step.stop(i for i in step.running(d.name) if i.revision == d.revision and step.worth_another_try(d, i))
    proven = [d for d in wanted if _proves_itself(d, step)]
    short = [d for d in wanted if not _fill(d, step)]
    due = {name: t for name, t in last.due.items() if name not in names} if last else {}
    due |= {d.name: t for d in wanted if (t := step.next_at(d)) is not None}
    pauses = [max(0.0, t - now) for t in due.values()] + [REPORT_S] * step.awaits_report
    return Plan(
        (*(PutDeployment(replace(d, proven=True)) for d in proven), *step.board.changes()),
        {d.name: _why(d, step) for d in short},
        min(pauses, default=None),
        (state, nodes),
        frozenset(d.name for d in short) | step.changed | step.moving,
        due,
    )


def surge(wanted: int) -> int:
    """How many replicas more than wanted may exist during a rolling update."""
    return max(1, wanted // 4)


def _to_look_at(state: State, nodes: Nodes, now: float, last: Plan | None) -> set[str]:
    if last is None or last.made_of is None:
        return set(state.deployments) | set(state.intents.deployments)
    names = touched.deployments(last.made_of, (state, nodes))
    return names | last.open | {name for name, t in last.due.items() if now >= t}


def _order(d: Deployment) -> tuple[int, str]:
    return d.created_unix_s, d.name


class _Step:
    """What is seen, and what is decided, while one plan is made."""

    def __init__(self, state: State, nodes: Nodes, now: float, new_id: NewId, forget_s: float) -> None:
        self.nodes = nodes
        self.board = Board(state, nodes)
        self.changed: set[str] = set()  # deployments
        self.moving: set[str] = set()  # those that would have a replica on another node, and there is no room yet
        self.awaits_report = False
        self._now, self._new_id, self._forget_s = now, new_id, forget_s

    def running(self, deployment: str) -> list[Intent]:
        return self.board.running(deployment)

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
        node = self.nodes.get(intent.node_id)
        return node is not None and node.lost and intent.goal is not Goal.GIVEN_UP

    def long_lost(self, intent: Intent) -> bool:
        node = self.nodes.get(intent.node_id)
        return node is not None and self.is_lost(intent) and self._now - node.heard_at > self._forget_s

    def keeps_failing(self, intent: Intent) -> bool:
        """Whether it waits for another try, or is at it, after several that failed."""
        said = status_of(intent, self.nodes)
        return said is not None and said.phase in _COMING and said.failures >= MOVE_AFTER

    def worth_another_try(self, d: Deployment, intent: Intent) -> bool:
        """Whether one that was given up is to be placed anew."""
        if intent.goal is not Goal.GIVEN_UP:
            return False
        if d.proven and self._now >= intent.changed + RETRY_S:
            return True
        node = self.nodes.get(intent.node_id)
        return node is not None and bool(node.reported_at) and node.info.incarnation != intent.incarnation

    def next_at(self, d: Deployment) -> float | None:
        """When time alone makes a difference to `d`: a new replica has proven itself, a lost node is given up."""
        mine = self.running(d.name)
        times = [self.nodes[i.node_id].heard_at + self._forget_s for i in mine if self.is_lost(i)]
        times += [i.changed + RETRY_S for i in mine if d.proven and i.goal is Goal.GIVEN_UP]
        if any(i.revision != d.revision for i in mine):
            times += [self._now + s for i in mine if i.revision == d.revision and (s := self.unproven_s(i))]
        return min((t for t in times if t >= self._now), default=None)

    def stop_order(self, intent: Intent) -> tuple[int, float, str]:
        """Which goes first: given up, not ready, ready; of equals the newest."""
        phase = self.phase(intent)
        rank = 0 if phase is Phase.FAILED else 2 if phase is Phase.READY else 1
        return rank, -intent.created, intent.replica_id

    def stop(self, intents: Iterable[Intent]) -> None:
        for intent in intents:
            self.changed.add(intent.deployment)
            if self.long_lost(intent) or intent.goal is Goal.GIVEN_UP:
                self.board.drop(intent)
            else:
                self.board.put(replace(intent, goal=Goal.STOP, changed=self._now))

    def give_up(self, deployments: Iterable[str]) -> None:
        """Take their room from those that their nodes have given up; the reason stays."""
        for intent in (i for name in deployments for i in self.running(name) if i.goal is Goal.RUN):
            said = status_of(intent, self.nodes)
            if said is None or said.phase is not Phase.FAILED:
                continue
            self.changed.add(intent.deployment)
            given_up = replace(
                intent,
                goal=Goal.GIVEN_UP,
                resources=Resources(),
                gpu_indices=(),
                changed=self._now,
                reason=said.reason or "failed without a reason",
                incarnation=self.nodes[intent.node_id].info.incarnation,
            )
            self.board.put(given_up)

    def create(self, d: Deployment, choice: Choice) -> NoPlace | None:
        """One more replica of `d` at the next place; NoPlace if there is none."""
        where = choice.next()
        if isinstance(where, NoPlace):
            return where
        self.changed.add(d.name)
        replica_id = self._new_id(d.name, d.revision)
        intent = Intent(
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
        self.board.put(intent)
        choice.update(self.board.rooms()[where.node_id])
        return None

    def forget_gone(self) -> None:
        """Drop what was told to stop and is gone by a report that is newer than the telling."""
        for intent in self.board.told_to_stop():
            node = self.nodes.get(intent.node_id)
            if node is None:
                continue
            said = node.statuses.get(intent.replica_id)
            gone = said is None or said.phase is Phase.STOPPED
            if (gone and node.reported_at > intent.changed) or self.long_lost(intent):
                self.board.drop(intent)
            elif gone and not node.lost:
                self.awaits_report = True  # which may say nothing new, and then wakes nobody

    def remember_addresses(self, deployments: Iterable[str]) -> None:
        for intent in (i for name in deployments for i in self.running(name)):
            said = status_of(intent, self.nodes)
            if said is None or said.phase is not Phase.READY:
                continue
            tokens = said.model.context_tokens if said.model else 0
            if (said.address, tokens) != (intent.address, intent.context_tokens):
                self.changed.add(intent.deployment)
                self.board.remember(intent, said.address, tokens)


def _surplus(d: Deployment, step: _Step) -> list[Intent]:
    """The replicas of `d` that are to go. None while some of them have yet to be heard of after a start of the head."""
    mine = step.running(d.name)
    if any(step.phase(i) is None for i in mine):
        return []
    current = [i for i in mine if i.revision == d.revision]
    old = sorted(_old(d, step), key=step.stop_order)
    lost = sorted((i for i in current if step.is_lost(i)), key=step.stop_order)
    failing = sorted((i for i in current if step.keeps_failing(i)), key=step.stop_order)
    here = sorted((i for i in current if not (step.is_lost(i) or step.keeps_failing(i))), key=step.stop_order)
    ready = sum(step.phase(i) is Phase.READY for i in here)

    go = here[: max(0, len(here) - d.replicas)]
    go += lost[: max(0, len(lost) - d.replicas)]
    go += failing if ready >= d.replicas else failing[: max(0, len(failing) - d.replicas)]
    if ready >= d.replicas:
        go += [i for i in lost if step.long_lost(i) and i not in go]
    go += [i for i in old if step.phase(i) is Phase.FAILED]
    old = [i for i in old if step.phase(i) is not Phase.FAILED]
    go += old[: max(0, len(old) - max(0, d.replicas - sum(map(step.works, here))))]
    return go


def _proves_itself(d: Deployment, step: _Step) -> bool:
    """Whether the newest revision serves, and serves alone: beside an older one it is on trial."""
    if d.proven or step.board.revisions(d.name) != {d.revision}:
        return False
    return any(step.phase(i) is Phase.READY for i in step.running(d.name))


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
    filled = missing <= 0
    if missing > 0 and step.board.fits(d):
        choice = Choice(d.name, d.resources, d.model.engine, step.board.rooms().values())
        filled = not any(step.create(d, choice) for _ in range(missing))
    elif missing > 0 and may_displace and not step.board.would_fit(d):
        step.stop(_in_the_way(d, old, step))
    _make_up(d, step)
    return filled


def _make_up(d: Deployment, step: _Step) -> None:
    """For those that keep failing, create others on other nodes, at most as many again as are wanted.

    Those that fail stay meanwhile: they remember where it was tried, and may be the first that work.
    """
    mine = [i for i in step.running(d.name) if not step.is_lost(i)]
    here = [i for i in mine if i.revision == d.revision]
    old = [i for i in mine if i.revision != d.revision]
    failing = [i for i in here if step.keeps_failing(i)]
    most = d.replicas + surge(d.replicas) - len(old) if old else 2 * d.replicas
    missing = min(d.replicas - (len(here) - len(failing)), most - len(here))
    if missing <= 0 or not failing:
        return
    tried: set[NodeId] = {i.node_id for i in failing}
    rooms = [room for node_id, room in step.board.rooms().items() if node_id not in tried]
    choice = Choice(d.name, d.resources, d.model.engine, rooms)
    if any(step.create(d, choice) for _ in range(missing)):
        step.moving.add(d.name)


def _in_the_way(d: Deployment, old: Sequence[Intent], step: _Step) -> list[Intent]:
    """The fewest old replicas of one node whose going makes room for a new one; none if that cannot be."""
    going = [i.replica_id for i in step.board.stopping()]
    options: list[tuple[int, str, list[Intent]]] = []
    for node_id in {i.node_id for i in old}:
        there = sorted((i for i in old if i.node_id == node_id), key=step.stop_order)
        for n in range(1, len(there) + 1):
            room = step.board.room_without(node_id, {*going, *(i.replica_id for i in there[:n])})
            if room and fits(d.resources, d.model.engine, [room]):
                options.append((n, node_id, there[:n]))
                break
    return min(options, key=lambda o: o[:2])[2] if options else []


def _why(d: Deployment, step: _Step) -> Unplaced:
    """Why no further replica of `d` can be placed now."""
    if step.board.would_fit(d):
        return Unplaced("waits for another replica to stop")
    old = [i for i in _old(d, step) if not step.is_lost(i)]
    if old and _in_the_way(d, old, step):
        return Unplaced("no room for a new replica beside the old ones, so one old replica goes for each new one")
    anywhere, missing = bool(step.board.rooms()), step.board.why_not(d)
    lost = {i.node_id for i in step.running(d.name) if step.is_lost(i)}
    if not anywhere:
        lost |= {n for n, view in step.nodes.items() if view.lost}
    if not lost:
        return Unplaced(missing, stuck=anywhere)
    names = sorted(lost)[:5]
    said = f"node {names[0]} does not answer" if len(lost) == 1 else f"nodes {', '.join(names)} do not answer"
    if missing and anywhere:
        return Unplaced(f"{said}; {missing}")
    return Unplaced(f"{said}; start its scheduler again")
