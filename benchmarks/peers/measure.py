"""One cell of the matrix on one target: drive the load, sample CPU time beside it, and give a row of figures."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from peers.generator import Answers, Called, Calls, Failed, Generator, Load
from peers.meter import Sample, memory_bytes, sample
from peers.targets import Target, chat

Row = dict[str, Any]

NEVER = float("inf")
BUSY = 0.85  # of a core: whoever is busier than that may be what limits a wall-clock figure


@dataclass(frozen=True)
class Cell:
    """kind: "streams", "calls" (short, without streaming) or "held" (streams that wait for their first token).

    dear: how much slow proxies get of it: tokens of a stream, or calls; 0: none. pressed: coalescing may be at work.
    """

    name: str
    kind: str
    streams: int
    tokens: int = 0
    step_s: float = 0.02
    replicas: int = 1
    prompt_bytes: int = 0
    calls: int = 0
    dear: int = 0
    pressed: bool = False
    wall: bool = False  # it is as fast as it can be: its wall-clock figures count


@dataclass(frozen=True)
class Busy:
    """Shares of a core over one run."""

    generator: float
    upstream: float
    proxy: float
    machine: float  # of all cores

    @property
    def others(self) -> float:
        """What programs took that have nothing to do with it, in cores."""
        return max(0.0, self.machine * (os.cpu_count() or 1) - self.generator - self.upstream - self.proxy)

    @property
    def limits(self) -> list[str]:
        names = [n for n in ("generator", "upstream", "proxy") if getattr(self, n) > BUSY]
        return names + (["machine"] if self.machine > 0.95 else [])


def run(cell: Cell, target: Target, generator: Generator, *, dear: bool = False) -> Row:
    row: Row = {"cell": cell.name, "target": target.name}
    kinds = {"streams": _streams, "calls": _calls, "held": _held}
    try:
        return row | kinds[cell.kind](cell, target, generator, dear)
    except Failed as e:
        return row | {"error": str(e)}


def _streams(cell: Cell, target: Target, generator: Generator, dear: bool) -> Row:
    tokens = cell.dear if dear else cell.tokens
    body = chat(target.model(cell.step_s), tokens, stream=True, prompt_bytes=cell.prompt_bytes)
    ramp_s = 0.0 if cell.wall else min(1.0, cell.streams * cell.step_s)
    load = Load(target.port, body, cell.streams, tokens, target.text(tokens), ramp_s)
    members, beside, behind = list(target.members()), list(target.beside()), list(target.upstream())
    psutil.cpu_percent()
    before, beside_before, behind_before = sample(members), sample(beside), sample(behind)
    generator.send(load)
    marks: dict[str, Sample] = {}
    while isinstance(said := generator.next(), str):
        marks[said] = sample(members)
        if said == "ended":
            ended, beside_ended, behind_ended = sample(members), sample(beside), sample(behind)
            machine = psutil.cpu_percent() / 100
    assert isinstance(said, Answers)
    cost = ended - before
    wall = said.ended_at - said.begun_at
    busy = Busy(said.cpu_s / wall, (behind_ended - behind_before).cpu_s / wall, cost.cpu_s / wall, machine)
    ticks = cost.user_s + cost.system_s or 1.0
    row: Row = {
        "tokens": said.tokens,
        "us": cost.cpu_s / said.tokens * 1e6,
        "user_us": cost.cpu_s * cost.user_s / ticks / said.tokens * 1e6,
        "system_us": cost.cpu_s * cost.system_s / ticks / said.tokens * 1e6,
        "beside_us": (beside_ended - beside_before).cpu_s / said.tokens * 1e6,
        "behind_us": (behind_ended - behind_before).cpu_s / said.tokens * 1e6,
        "ttft_p50_ms": quantile(said.ttft_s, 0.5) * 1e3,
        "ttft_p99_ms": quantile(said.ttft_s, 0.99) * 1e3,
        "itl_p50_ms": quantile(said.gap_s, 0.5) * 1e3,
        "itl_p99_ms": quantile(said.gap_s, 0.99) * 1e3,
        "tokens_s": said.tokens / (said.token_at[-1] - said.begun_at),
        "tokens_per_read": said.tokens / said.reads,
        "busy": vars(busy) | {"others": busy.others},
        "limits": busy.limits,
    }
    if {"begun", "ending"} <= marks.keys() and marks["ending"].at - marks["begun"].at > 0.5:
        steady, between = marks["ending"] - marks["begun"], (marks["begun"].at, marks["ending"].at)
        if during := said.tokens_between(*between):
            row["steady_us"] = steady.cpu_s / during * 1e6
    return row


def _calls(cell: Cell, target: Target, generator: Generator, dear: bool) -> Row:
    count = cell.dear if dear else cell.calls
    body = chat(target.model(cell.step_s), 1, stream=False, prompt_bytes=cell.prompt_bytes)
    members, behind = list(target.members()), list(target.upstream())
    psutil.cpu_percent()
    before, behind_before = sample(members), sample(behind)
    generator.send(Calls(target.port, body, min(cell.streams, count), count))
    said = generator.next()
    assert isinstance(said, Called)
    cost, behind_cost = sample(members) - before, sample(behind) - behind_before
    wall = said.wall_s
    busy = Busy(said.cpu_s / wall, behind_cost.cpu_s / wall, cost.cpu_s / wall, psutil.cpu_percent() / 100)
    return {
        "calls": count,
        "ms": cost.cpu_s / count * 1e3,
        "calls_s": count / said.wall_s,
        "took_p50_ms": quantile(said.took_s, 0.5) * 1e3,
        "took_p99_ms": quantile(said.took_s, 0.99) * 1e3,
        "busy": vars(busy) | {"others": busy.others},
        "limits": busy.limits,
    }


def _held(cell: Cell, target: Target, generator: Generator, dear: bool) -> Row:
    streams = cell.dear if dear else cell.streams
    body = chat(target.model(NEVER), 16, stream=True)
    members = list(target.members())
    before = memory_bytes(members)
    generator.send(("hold", Load(target.port, body, streams, 16)))
    generator.next()
    time.sleep(2.0)  # until all of them have passed the proxy
    used = memory_bytes(members)
    generator.send("release")
    generator.next()
    time.sleep(0.5)
    return {"streams": streams, "kb": (used - before) / streams / 1000, "idle_mb": before / 1e6}


def quantile(values: Sequence[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * q))] if ordered else 0.0


def machine() -> dict[str, object]:
    import platform

    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as f:
            model = next(line.split(":", 1)[1].strip() for line in f if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
