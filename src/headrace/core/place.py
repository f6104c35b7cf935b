"""Placement: which node gets a replica, and which of its GPUs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

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


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node that may be given replicas, and what is held of it already."""

    info: NodeInfo
    held: tuple[Held, ...] = ()


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


def free_gpus(node: Candidate) -> tuple[Gpu, ...]:
    held = {index for h in node.held for index in h.gpu_indices}
    return tuple(g for g in usable_gpus(node.info) if g.index not in held)


def free(node: Candidate) -> Resources:
    """What is left of a node, never below zero. GPU memory: of the free GPU that has most."""
    gpus = free_gpus(node)
    total = node.info.resources
    return Resources(
        cpus=max(0.0, total.cpus - math.fsum(h.resources.cpus for h in node.held)),
        memory_bytes=max(0, total.memory_bytes - sum(h.resources.memory_bytes for h in node.held)),
        gpus=len(gpus),
        gpu_memory_bytes=max((g.memory_free_bytes for g in gpus), default=0),
    )


def need_on(node: Candidate, need: Resources, engine: str) -> Resources:
    """What a replica needs on this node. Where vLLM meets GPUs it takes one, although none was asked for.

    vLLM's build for GPUs cannot do without; "auto" takes one while one is free, and goes without otherwise.
    """
    if need.gpus or "vllm" not in node.info.engines or not node.info.resources.gpus:
        return need
    if engine == "vllm" or (engine == "auto" and free_gpus(node)):
        return replace(need, gpus=1)
    return need


def choose(deployment: str, need: Resources, engine: str, nodes: Iterable[Candidate]) -> Placement | NoPlace:
    """A node for one replica of `deployment`: the one with fewest of its replicas, then the tightest fit, then by id.

    "auto" goes to a GPU rather than elsewhere. The outcome depends on the set of nodes, not on their order. Among a
    node's GPUs the tightest fit goes first. Where no node at all has an engine for "auto", any will do: the replica
    then fails at once, and says what to install.
    """
    found = sorted(nodes, key=lambda n: n.info.node_id)
    if engine == "auto":
        found = [n for n in found if _can_run(engine, n.info.engines)] or found
    if not found:
        return NoPlace(_NO_SCHEDULER)
    fitting = [n for n in found if not _shortages(need_on(n, need, engine), engine, n)]
    if not fitting:
        return NoPlace(_explain(need, engine, found))
    best = min(fitting, key=lambda n: (not need_on(n, need, engine).gpus, *_order(deployment, n)))
    held = need_on(best, need, engine)
    return Placement(best.info.node_id, _pick_gpus(held, best), held)


def _order(deployment: str, node: Candidate) -> tuple[int, int, float, int, str]:
    left = free(node)
    same = sum(h.deployment == deployment and h.counts for h in node.held)
    return same, left.gpus, left.cpus, left.memory_bytes, node.info.node_id


def _pick_gpus(need: Resources, node: Candidate) -> tuple[int, ...]:
    good = [g for g in free_gpus(node) if g.memory_free_bytes >= need.gpu_memory_bytes]
    good.sort(key=lambda g: (g.memory_free_bytes, g.index))
    return tuple(sorted(g.index for g in good[: need.gpus]))


def _can_run(engine: str, engines: Sequence[str]) -> bool:
    """Whether one of `engines` will do. For "auto" the simulated one will not: its answers are not a model's."""
    return any(e != "simulated" for e in engines) if engine == "auto" else engine in engines


def _shortages(need: Resources, engine: str, node: Candidate) -> dict[str, tuple[str, str]]:
    """What is needed → (what the node has of it, the unit), in words, for each thing that it is short of."""
    left, total = free(node), node.info.resources
    short: dict[str, tuple[str, str]] = {}
    if engine != "auto" and not _can_run(engine, node.info.engines):
        short[f"the engine {engine}"] = (", ".join(node.info.engines) or "none", "as engines")
    if need.gpus > left.gpus:
        short[_count(need.gpus, "GPU")] = (_of(str(left.gpus), str(total.gpus)), "GPUs")
    elif need.gpus:
        good = sum(g.memory_free_bytes >= need.gpu_memory_bytes for g in free_gpus(node))
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
        told.append(f"node {node.info.node_id} has {' and '.join(words)}")
    rest = len(nodes) - len(told)
    more = f" and {rest} more {'node has' if rest == 1 else 'nodes have'} no room" if rest else ""
    return f"needs {' and '.join(wanted)}; {', '.join(told)}{more}"


def _of(left: str, total: str) -> str:
    return left if left == total else f"{left} free of {total}"


def _count(n: float, unit: str) -> str:
    return f"{n:g} {unit}" if n == 1 else f"{n:g} {unit}s"


def _size(n: int) -> str:
    return f"{n / 2**30:.1f} GiB" if n >= 2**30 else f"{n / 2**20:.0f} MiB"
