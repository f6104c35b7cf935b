"""Placement: which node gets a replica, and which of its GPUs."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from headrace.core.types import Gpu, NodeId, NodeInfo, Resources

_EPSILON = 1e-9  # ten times 0.1 CPU must fit into 1
_NO_SCHEDULER = "no scheduler has joined; start one with: headrace scheduler"


@dataclass(frozen=True, slots=True)
class Held:
    """What one replica holds of its node. `counts`: it is one of those that spreading looks at."""

    deployment: str
    resources: Resources
    gpu_indices: tuple[int, ...] = ()
    counts: bool = True


@dataclass(frozen=True)
class Candidate:
    """A node that may be given replicas, and what is held of it already."""

    info: NodeInfo
    held: tuple[Held, ...] = ()

    @cached_property
    def gpus_left(self) -> tuple[Gpu, ...]:
        if not self.info.resources.gpus:
            return ()
        held = {index for h in self.held for index in h.gpu_indices}
        return tuple(g for g in usable_gpus(self.info) if g.index not in held)

    @cached_property
    def left(self) -> Resources:
        """What is left of the node, never below zero. GPU memory: of the free GPU that has most."""
        total, gpus = self.info.resources, self.gpus_left
        return Resources(
            cpus=max(0.0, total.cpus - math.fsum(h.resources.cpus for h in self.held)),
            memory_bytes=max(0, total.memory_bytes - sum(h.resources.memory_bytes for h in self.held)),
            gpus=len(gpus),
            gpu_memory_bytes=max((g.memory_free_bytes for g in gpus), default=0),
        )


@dataclass(frozen=True, slots=True)
class Placement:
    """`resources`: what the replica holds there. That is what was asked for, or a GPU more: see `need_on`."""

    node_id: NodeId
    gpu_indices: tuple[int, ...]
    resources: Resources


@dataclass(frozen=True, slots=True)
class NoPlace:
    """Nothing fits. `reason`: what is needed and what there is, for people."""

    reason: str


def usable_gpus(info: NodeInfo) -> tuple[Gpu, ...]:
    """The GPUs that may be given out: as many as `resources.gpus` says, lowest index first.

    A node may claim more than it could describe; those get the lowest numbers not taken, and 0 bytes.
    """
    described = sorted(info.gpus, key=lambda g: g.index)[: info.resources.gpus]
    taken = {g.index for g in described}
    spare = (i for i in range(info.resources.gpus + len(described)) if i not in taken)
    missing = info.resources.gpus - len(described)
    extra = [Gpu(i, "", 0, 0) for _, i in zip(range(missing), spare, strict=False)]
    return tuple(sorted([*described, *extra], key=lambda g: g.index))


def as_if_empty(info: NodeInfo, held_indices: Iterable[int]) -> NodeInfo:
    """`info` with the GPUs that our own replicas hold counted as empty: a node at work may say hello."""
    ours = set(held_indices)
    gpus = tuple(replace(g, memory_free_bytes=g.memory_bytes) if g.index in ours else g for g in info.gpus)
    return replace(info, gpus=gpus)


def need_on(node: Candidate, need: Resources, engine: str) -> Resources:
    """What a replica needs on this node. Where vLLM meets GPUs it takes one, although none was asked for.

    vLLM's build for GPUs cannot do without; "auto" takes one while one is free, and goes without otherwise.
    """
    if need.gpus or "vllm" not in node.info.engines or not node.info.resources.gpus:
        return need
    if engine == "vllm" or (engine == "auto" and node.gpus_left):
        return replace(need, gpus=1)
    return need


class Choice:
    """Nodes for replicas of one deployment, one after another.

    Each time it is the node with fewest of its replicas, then the tightest fit, then by id. "auto" goes to a GPU rather
    than elsewhere. The outcome depends on the set of nodes, not on their order. Among a node's GPUs the tightest fit
    goes first. Where no node at all has an engine for "auto", any will do: the replica then fails at once, and says
    what to install. The next costs little, however many nodes there are.
    """

    def __init__(self, deployment: str, need: Resources, engine: str, nodes: Iterable[Candidate]) -> None:
        self._deployment, self._need, self._engine = deployment, need, engine
        self._nodes = {n.info.node_id: n for n in _able(engine, list(nodes))}
        self._ranked = [rank for n in self._nodes.values() if (rank := self._rank(n))]
        heapq.heapify(self._ranked)

    def next(self) -> Placement | NoPlace:
        """Where the next one goes; tell with `update` what is left there then, before the next call."""
        if not self._ranked:
            return NoPlace(self._why())
        best = self._nodes[heapq.heappop(self._ranked)[-1]]
        held = need_on(best, self._need, self._engine)
        return Placement(best.info.node_id, _pick_gpus(held, best), held)

    def update(self, node: Candidate) -> None:
        """The node that `next` chose, as it is now."""
        self._nodes[node.info.node_id] = node
        if rank := self._rank(node):
            heapq.heappush(self._ranked, rank)

    def _rank(self, node: Candidate) -> _Rank | None:
        """The order of choice; None: there is no room for one."""
        need = need_on(node, self._need, self._engine)
        if not _has_room(node, need, self._engine):
            return None
        left = node.left
        same = sum(h.deployment == self._deployment and h.counts for h in node.held)
        return not need.gpus, same, left.gpus, left.cpus, left.memory_bytes, node.info.node_id

    def _why(self) -> str:
        if not self._nodes:
            return _NO_SCHEDULER
        return _explain(self._need, self._engine, [self._nodes[k] for k in sorted(self._nodes)])


_Rank = tuple[bool, int, int, float, int, NodeId]


def choose(deployment: str, need: Resources, engine: str, nodes: Iterable[Candidate]) -> Placement | NoPlace:
    """A node for one replica of `deployment`, as `Choice` has it; or why there is none."""
    return Choice(deployment, need, engine, nodes).next()


def fits(need: Resources, engine: str, nodes: Iterable[Candidate]) -> bool:
    """Whether one of `nodes` has room for a replica."""
    return any(_has_room(n, need_on(n, need, engine), engine) for n in _able(engine, list(nodes)))


def _able(engine: str, nodes: Sequence[Candidate]) -> Sequence[Candidate]:
    """Those to choose from: for "auto" those with an engine for models, if there are any."""
    return [n for n in nodes if _can_run(engine, n.info.engines)] or nodes if engine == "auto" else nodes


def _has_room(node: Candidate, need: Resources, engine: str) -> bool:
    """Whether a node has what is needed on it. _shortages says the same at length."""
    left = node.left
    if need.cpus > left.cpus + _EPSILON or need.memory_bytes > left.memory_bytes or need.gpus > left.gpus:
        return False
    if engine != "auto" and not _can_run(engine, node.info.engines):
        return False
    return not need.gpus or sum(g.memory_free_bytes >= need.gpu_memory_bytes for g in node.gpus_left) >= need.gpus


def _pick_gpus(need: Resources, node: Candidate) -> tuple[int, ...]:
    good = [g for g in node.gpus_left if g.memory_free_bytes >= need.gpu_memory_bytes]
    good.sort(key=lambda g: (g.memory_free_bytes, g.index))
    return tuple(sorted(g.index for g in good[: need.gpus]))


def _can_run(engine: str, engines: Sequence[str]) -> bool:
    """Whether one of `engines` will do. For "auto" the simulated one will not: its answers are not a model's."""
    return any(e != "simulated" for e in engines) if engine == "auto" else engine in engines


def _shortages(need: Resources, engine: str, node: Candidate) -> dict[str, tuple[str, str]]:
    """What is needed → (what the node has of it, the unit), in words, for each thing that it is short of."""
    left, total = node.left, node.info.resources
    short: dict[str, tuple[str, str]] = {}
    if engine != "auto" and not _can_run(engine, node.info.engines):
        short[f"the engine {engine}"] = (", ".join(node.info.engines) or "none", "as engines")
    if need.gpus > left.gpus:
        short[_count(need.gpus, "GPU")] = (_of(str(left.gpus), str(total.gpus)), "GPUs")
    elif need.gpus:
        good = sum(g.memory_free_bytes >= need.gpu_memory_bytes for g in node.gpus_left)
        if good < need.gpus:
            what = f"{_count(need.gpus, 'GPU')} with {_size(need.gpu_memory_bytes)} free"
            short[what] = (f"{good} such", "GPUs")
    if need.cpus > left.cpus + _EPSILON:
        short[_count(need.cpus, "CPU")] = (_of(f"{left.cpus:g}", f"{total.cpus:g}"), "CPUs")
    if need.memory_bytes > left.memory_bytes:
        has = _of(_size(left.memory_bytes), _size(total.memory_bytes))
        short[f"{_size(need.memory_bytes)} of memory"] = (has, "of memory")
    return short


def _explain(need: Resources, engine: str, nodes: Sequence[Candidate]) -> str:
    """For example: needs 1 GPU; node 1 has 0, node 2 has 0, node 3 has 0 and 2 more nodes have no room."""
    short = [_shortages(need_on(n, need, engine), engine, n) for n in nodes]
    # What no node has is the cause; without such a thing, all that some node lacks is.
    wanted = list(dict.fromkeys(what for s in short for what in s))
    wanted = [what for what in wanted if all(what in s for s in short)] or wanted
    told: list[str] = []
    for node, s in list(zip(nodes, short, strict=True))[:3]:
        has = [s[what] for what in wanted if what in s]
        words = [amount if len(wanted) == 1 else f"{amount} {unit}" for amount, unit in has]
        holders = _holders(node, [unit for _, unit in has])
        told.append(f"node {node.info.node_id} has {' and '.join(words)}" + (f" ({holders})" if holders else ""))
    rest = len(nodes) - len(told)
    more = f" and {rest} more {'node has' if rest == 1 else 'nodes have'} no room" if rest else ""
    return f"needs {' and '.join(wanted)}; {', '.join(told)}{more}"


def _holders(node: Candidate, units: Sequence[str]) -> str:
    """Which deployments hold most of what a node is short of: "held by a: 2 CPUs, b: 1 CPU and 3 more"."""
    sums: dict[str, Resources] = {}
    for h in node.held:
        had, r = sums.get(h.deployment, Resources()), h.resources
        memory, gpus = had.memory_bytes + r.memory_bytes, had.gpus + max(r.gpus, len(h.gpu_indices))
        sums[h.deployment] = Resources(had.cpus + r.cpus, memory, gpus)
    words: dict[str, list[str]] = {}
    for name, r in sorted(sums.items(), key=lambda x: (-x[1].gpus, -x[1].cpus, -x[1].memory_bytes, x[0])):
        amounts = {
            "GPUs": _count(r.gpus, "GPU") if r.gpus else "",
            "CPUs": _count(r.cpus, "CPU") if r.cpus else "",
            "of memory": _size(r.memory_bytes) if r.memory_bytes else "",
        }
        if held := [amounts[u] for u in units if amounts.get(u)]:
            words[name] = held
    told = [f"{name}: {' and '.join(held)}" for name, held in list(words.items())[:3]]
    more = f" and {len(words) - 3} more" if len(words) > 3 else ""
    return f"held by {', '.join(told)}{more}" if told else ""


def _of(left: str, total: str) -> str:
    return left if left == total else f"{left} free of {total}"


def _count(n: float, unit: str) -> str:
    return f"{n:g} {unit}" if n == 1 else f"{n:g} {unit}s"


def _size(n: int) -> str:
    return f"{n / 2**30:.1f} GiB" if n >= 2**30 else f"{n / 2**20:.0f} MiB"
