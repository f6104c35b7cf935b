"""What came of each input, against the bounds; as a table and as JSON."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass, field
from typing import Any

from strangers.watch import Gap

GAP_S = 0.25
WAIT_S = 5.0  # by the clock, so only what no busy machine explains
MEMORY_TIMES = 8.0
TOTAL_BYTES = 256 * 2**20  # however much came: a proxy has to live with half a gigabyte
SLACK_BYTES = 16 * 2**20  # what a process's memory moves by without any strange input, the allocator's arenas included


@dataclass
class Measured:
    """Of one input. `gaps`, `grown_bytes`: by process ("proxy", "demo", "sim"). `died`: those that are gone."""

    name: str
    origin: str
    statuses: dict[str, int]
    first: str
    took_s: float
    body_bytes: int
    gaps: dict[str, Gap]
    grown_bytes: dict[str, int]
    wait_s: float  # the longest that a bystander waited between two tokens, by the clock
    first_s: float  # and for its first token
    late_s: float  # the most that a timer of the bystanders' own process was late
    failures: dict[str, int] = field(default_factory=dict)
    died: list[str] = field(default_factory=list)
    settled: bool = True

    def slowest(self) -> tuple[str, Gap]:
        return max(self.gaps.items(), key=lambda item: item[1].made_s)

    def largest(self) -> tuple[str, int]:
        return max(self.grown_bytes.items(), key=lambda item: item[1])

    def times(self) -> float:
        return self.largest()[1] / max(1, self.body_bytes)

    def wrong(self) -> list[str]:
        """What is over the bounds; empty if nothing is."""
        found = [f"{who} died" for who in self.died]
        if self.slowest()[1].made_s > GAP_S:
            found.append("gap")
        if self.largest()[1] > min(MEMORY_TIMES * self.body_bytes + SLACK_BYTES, TOTAL_BYTES):
            found.append("memory")
        if self.failures:
            found.append("others failed")
        if any(s.startswith("5") and s != "503" for s in self.statuses):
            found.append("status")
        if max(self.wait_s, self.first_s) > WAIT_S:
            found.append("others waited")
        if "late" in self.statuses:
            found.append("no answer")
        if not self.settled:
            found.append("never quiet again")
        return found

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"memory_times": round(self.times(), 2), "wrong": self.wrong()}


def summary(statuses: dict[str, int]) -> str:
    """The most frequent statuses in words."""
    most = sorted(statuses.items(), key=lambda item: -item[1])
    told = [s if n == 1 else f"{n} × {s}" for s, n in most[:3]]
    more = len(most) - 3
    return (", ".join(told) or "none") + (f" and {more} more" if more > 0 else "")


HEAD = (
    "| input | body | answer | after, s | worst gap, ms: made by | all threads | by the clock | first token | memory"
    " | × body | others | verdict |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def line(m: Measured) -> str:
    who, gap = m.slowest()
    which, grown = m.largest()
    failures = ", ".join(f"{n} × {k}" for k, n in m.failures.items()) or "whole"
    verdict = ", ".join(m.wrong()) or "ok"
    return (
        f"| {m.name} | {_size(m.body_bytes)} | {summary(m.statuses)} | {m.took_s:.1f} | {gap.made_s * 1e3:.0f} {who} |"
        f" {gap.process_s * 1e3:.0f} | {m.wait_s * 1e3:.0f} | {m.first_s * 1e3:.0f} | {_size(grown)} {which} |"
        f" {m.times():.1f} | {failures} | {verdict} |"
    )


def of_json(told: dict[str, Any]) -> str:
    """The table of a run, from its JSON."""
    rows = []
    for m in told["inputs"]:
        kept = {k: v for k, v in m.items() if k not in ("memory_times", "wrong")}
        rows.append(line(Measured(**kept | {"gaps": {k: Gap(**g) for k, g in m["gaps"].items()}})))
    return "\n".join([HEAD, *rows])


def beside(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Two runs as one table, from their JSON; inputs that only one of them has are left out."""
    lines = [
        "| input | what it is | body | answer | turn, ms | × body | then: answer | turn, ms | × body | first token, s |"
        " verdict |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    earlier = {m["name"]: m for m in before["inputs"]}
    for m in after["inputs"]:
        if m["name"] not in earlier:
            continue
        cells = [m["name"], m["origin"], _size(m["body_bytes"])]
        for run in (earlier[m["name"]], m):
            turn = max(g["made_s"] for g in run["gaps"].values())
            cells += [summary(run["statuses"]), f"{turn * 1e3:.0f}", _times(run)]
        first = " → ".join(f"{r['first_s']:.1f}" for r in (earlier[m["name"]], m))
        verdict = " → ".join(", ".join(r["wrong"]) or "ok" for r in (earlier[m["name"]], m))
        lines.append("| " + " | ".join([*cells, first, verdict]) + " |")
    return "\n".join(lines)


def _times(run: dict[str, Any]) -> str:
    """Memory over the body; of what is small, the memory itself."""
    grown = max(run["grown_bytes"].values())
    return _size(grown) if run["body_bytes"] < 10**6 else f"{run['memory_times']:.1f}"


def _size(count: float) -> str:
    for unit in ("B", "KB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} MB"


def machine() -> dict[str, Any]:
    return {
        "python": platform.python_version(), "cpus": os.cpu_count(), "system": platform.platform(),
        "load": os.getloadavg(),
    }  # fmt: skip
