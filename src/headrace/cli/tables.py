"""ClusterStatus as plain text. Pure; no line is wider than `width`, whatever the lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from headrace.cli.waiting import doing
from headrace.cli.words import ago, number, one_line, size, wrapped
from headrace.core.adapters import Standing, public_name, standing
from headrace.core.phase import Phase
from headrace.core.state import Revision
from headrace.core.types import (
    CatalogEntry,
    ClusterStatus,
    DeploymentStatus,
    ModelSpec,
    NodeStatus,
    PlacedReplica,
    ReplicaStatus,
    Resources,
    RouteState,
)

WIDTH = 100
_GAP = "  "


@dataclass(frozen=True, slots=True)
class Row:
    """Cells, and sentences that go below them."""

    cells: Sequence[str]
    notes: Sequence[str] = field(default=())


def table(heads: Sequence[str], rows: Sequence[Row], width: int = WIDTH) -> list[str]:
    """Columns as wide as they need to be. Heads that begin with ">" are right-aligned.

    The first column holds names that people copy: one that is too long gets a line of its own and stays whole.
    The last column is cut to what is left.
    """
    right = [h.startswith(">") for h in heads]
    titles = [h.lstrip(">") for h in heads]
    cells = [[one_line(c) for c in row.cells] for row in rows]
    widths = [max([len(t), *(len(c[i]) for c in cells)]) for i, t in enumerate(titles)]
    middle = sum(widths[1:-1]) + len(_GAP) * (len(heads) - 1)
    last = max(len(titles[-1]), min(widths[-1], 24))
    widths[0] = max(len(titles[0]), min(widths[0], width - middle - last))
    widths[-1] = min(widths[-1], max(0, width - widths[0] - middle))

    def line(parts: Sequence[str]) -> str:
        return _GAP.join(
            _cut(p, w).rjust(w) if r else _cut(p, w).ljust(w) for p, w, r in zip(parts, widths, right, strict=True)
        ).rstrip()

    lines = [line(titles)]
    for row, parts in zip(rows, cells, strict=True):
        if len(parts[0]) > widths[0]:
            lines += [parts[0][i : i + width] for i in range(0, len(parts[0]), width)]
            parts = ["", *parts[1:]]
        lines.append(line(parts))
        for note in row.notes:
            lines += wrapped(note, width, "    ")
    return lines


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"[:width]


def status_lines(status: ClusterStatus, width: int = WIDTH) -> list[str]:
    """Everything `headrace status` shows."""
    alive = sum(n.alive for n in status.nodes)
    where = f"http://{status.http_address}" if status.http_address else "no HTTP proxy"
    lines = wrapped(f"Headrace {status.version}, {where}, {_count(alive, 'node')}", width, "")
    lines += ["", *deployment_lines(status.deployments, status.replicas, width)]
    if status.replicas:
        lines += ["", *replica_lines(status.replicas, width)]
    if status.proxies:
        rows = [
            Row((p.proxy_id, p.state, str(p.pid), str(p.restarts)), (p.reason,) if p.reason else ())
            for p in status.proxies
        ]
        lines += ["", *table(("PROXY", "STATE", ">PID", ">RESTARTS"), rows, width)]
    return lines


def deployment_lines(
    deployments: Sequence[DeploymentStatus], replicas: Sequence[PlacedReplica] = (), width: int = WIDTH
) -> list[str]:
    """Deployments; the engine is the one that runs, where it was left open and a replica has chosen."""
    if not deployments:
        return ["Nothing is deployed. `headrace models` lists what could be; `headrace deploy MODEL` deploys it."]
    rows: list[Row] = []
    chosen = {r.status.deployment: r.status.model.engine for r in replicas if r.status.model}
    for s in deployments:
        d = s.deployment
        low, high = d.min_replicas, d.max_replicas
        scale = str(low) if low == high else f"{low} to {high}"
        engine = chosen.get(d.name, "auto") if d.model.engine == "auto" else d.model.engine
        cells = (d.name, _state(s), f"{s.ready}/{d.replicas}", scale, str(d.revision), engine)
        rows.append(Row((*cells, d.model.source), (s.reason, _how_to_retry(s), *_missing_adapters(s, replicas))))
    return table(("DEPLOYMENT", "STATE", ">READY", ">REPLICAS", ">REV", "ENGINE", "SOURCE"), rows, width)


def _state(s: DeploymentStatus) -> str:
    """READY is said of all that are wanted; of fewer, which can be called all the same, PARTIAL."""
    fewer = s.state is RouteState.READY and s.ready < s.deployment.replicas
    return "PARTIAL" if fewer else s.state.upper()


def _how_to_retry(s: DeploymentStatus) -> str:
    """The command that tries again, as it is, what was given up."""
    if s.state is not RouteState.FAILED or s.stuck:
        return ""
    low, high = s.deployment.min_replicas, s.deployment.max_replicas
    how = str(low) if low == high else f"--min={low} --max={high}"
    return f"To try it again, say: headrace scale {s.deployment.name} {how}"


def _missing_adapters(s: DeploymentStatus, replicas: Sequence[PlacedReplica]) -> list[str]:
    """The adapters that not every ready replica of a deployment has, and why."""
    ready = _ready(s, replicas)
    stand = [standing(a, ready) for a in s.deployment.adapters]
    return [f"adapter {x.adapter.name}: {_why(x, len(ready))}" for x in stand if ready and x.loaded < len(ready)]


def _ready(s: DeploymentStatus, replicas: Sequence[PlacedReplica]) -> list[ReplicaStatus]:
    mine = [r.status for r in replicas if r.status.deployment == s.deployment.name]
    return [r for r in mine if r.phase is Phase.READY]


def _why(s: Standing, ready: int) -> str:
    where = f"loaded by {s.loaded} of {ready} replicas; " if s.loaded else ""
    return where + (s.reason or "loading")


def adapter_lines(s: DeploymentStatus, replicas: Sequence[PlacedReplica] = (), width: int = WIDTH) -> list[str]:
    """Everything `headrace adapters MODEL` shows, under the names that clients use."""
    name = s.deployment.name
    if not s.deployment.adapters:
        return [f"{name} has no adapters. Add one with: headrace adapters add {name} NAME=SOURCE"]
    ready = _ready(s, replicas)
    rows: list[Row] = []
    for x in (standing(a, ready) for a in s.deployment.adapters):
        state = "READY" if x.loaded else "FAILED" if x.reason else "LOADING" if ready else s.state.upper()
        cells = (public_name(name, x.adapter.name), state, f"{x.loaded}/{len(ready)}", x.adapter.source_revision)
        rows.append(Row((*cells, x.adapter.source), (x.reason,)))
    return table(("ADAPTER", "STATE", ">LOADED", "REVISION", "SOURCE"), rows, width)


def revision_lines(
    revisions: Sequence[Revision], replicas: Sequence[PlacedReplica], now: float, width: int = WIDTH
) -> list[str]:
    """Everything `headrace revisions` shows. The first is the current one."""
    rows: list[Row] = []
    for r in revisions:
        mine = [x.status for x in replicas if (x.status.deployment, x.status.revision) == (r.deployment, r.revision)]
        ready = sum(x.phase is Phase.READY for x in mine)
        failed = next((x.reason for x in mine if x.phase is Phase.FAILED), "")
        cells = (str(r.revision), f"{ready}/{len(mine)}" if mine else "", ago(r.created_unix_s, now), r.model.engine)
        notes = ("current" if r is revisions[0] else "", f"the same as revision {r.repeats}" if r.repeats else "")
        about = ", ".join(filter(None, notes))
        rows.append(
            Row(
                (*cells, r.model.source),
                (about, f"failed: {failed}" if failed else "", _needs(r.resources), *_unlike(r.model)),
            )
        )
    return table((">REV", ">READY", "MADE", "ENGINE", "SOURCE"), rows, width)


def _needs(r: Resources) -> str:
    parts = [
        f"{number(r.cpus)} CPUs" if r.cpus else "",
        f"{size(r.memory_bytes)} of memory" if r.memory_bytes else "",
        f"{r.gpus} GPUs" if r.gpus else "",
        f"{size(r.gpu_memory_bytes)} free on each GPU" if r.gpu_memory_bytes else "",
    ]
    return f"needs {', '.join(filter(None, parts))}" if any(parts) else ""


def _unlike(model: ModelSpec) -> list[str]:
    """How a model is run, where that is not as usual; what two revisions may differ in."""
    usual = ModelSpec(model.source, engine=model.engine)
    told = [f.name for f in fields(model) if getattr(model, f.name) != getattr(usual, f.name)]
    return [f"{name.removesuffix('_json')}: {_cut(one_line(str(getattr(model, name))), 200)}" for name in told]


def replica_lines(replicas: Sequence[PlacedReplica], width: int = WIDTH) -> list[str]:
    rows: list[Row] = []
    for placed in replicas:
        s, load = placed.status, placed.status.load
        busy = s.phase in (Phase.READY, Phase.DRAINING)
        rows.append(
            Row(
                (
                    s.replica_id,
                    s.phase.value,
                    str(s.pid) if s.pid else "",
                    str(s.restarts),
                    str(load.running) if busy else "",
                    str(load.waiting) if busy else "",
                    f"{load.kv_usage * 100:.0f} %" if busy else "",
                    placed.node_id,
                ),
                (_note(placed),),
            )
        )
    heads = ("REPLICA", "PHASE", ">PID", ">RESTARTS", ">RUNNING", ">WAITING", ">KV", "NODE")
    return table(heads, rows, width)


def _note(placed: PlacedReplica) -> str:
    s = placed.status
    return s.reason if not s.activity and s.progress < 0 else doing(s)


def node_lines(nodes: Sequence[NodeStatus], width: int = WIDTH) -> list[str]:
    """Everything `headrace nodes` shows; resources as free of total."""
    if not nodes:
        return ["No node has joined. Start one with: headrace scheduler --node_id=1 --head_address=HOST --port=50051"]
    rows: list[Row] = []
    for n in nodes:
        total, free = n.info.resources, n.free
        notes = [f"silent for {n.silent_s:.0f} s"] if not n.alive else []
        notes += [
            f"GPU {g.index}: {g.name}, {size(g.memory_free_bytes)} of {size(g.memory_bytes)} free" for g in n.info.gpus
        ]
        cells = (
            n.info.node_id,
            "ALIVE" if n.alive else "LOST",
            f"{number(free.cpus)}/{number(total.cpus)}",
            f"{size(free.memory_bytes)}/{size(total.memory_bytes)}",
            f"{free.gpus}/{total.gpus}",
            n.info.version,
            n.info.hostname,
        )
        rows.append(Row(cells, (*notes, f"engines: {', '.join(n.info.engines) or 'none'}")))
    return table(("NODE", "STATE", ">CPUS", ">MEMORY", ">GPUS", "VERSION", "HOST"), rows, width)


def model_lines(models: Sequence[CatalogEntry], width: int = WIDTH) -> list[str]:
    """Everything `headrace models` shows."""
    rows = [Row((m.name, m.origin, m.model.engine, m.model.source), (m.description, _adapters_of(m))) for m in models]
    return table(("MODEL", "ORIGIN", "ENGINE", "SOURCE"), rows, width) if rows else ["The catalog is empty."]


def _adapters_of(m: CatalogEntry) -> str:
    return f"adapters: {', '.join(a.name for a in m.adapters)}" if m.adapters else ""


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
