"""The figures as tables: medians over rounds with their range, and the ratios that are aimed at."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

Row = dict[str, Any]
Result = dict[str, Any]

RUST = ("smg", "vllm-router")
TARGET, TARGET_COALESCING = 0.9, 0.5
QUIET = 0.3  # cores that other programs may take without being mentioned
HEADLINE, PRESSURE = "256", "pressure"


def text(result: Result) -> str:
    parts = [heading(result), cost(result), latency(result), saturation(result), calls(result), memory(result)]
    return "\n\n".join([p for p in parts if p] + [notes(result), "\n".join(ratios(result))])


def heading(result: Result) -> str:
    m, versions = result["machine"], ", ".join(f"{name} {v}" for name, v in result["versions"].items())
    return (
        f"Headrace {result['headrace']} beside {versions or 'nobody'}; {m['cpu']}, {m['cores']} cores,"
        f" Linux {m['kernel']}, Python {m['python']}; {result['rounds']} rounds, {result['took_s'] / 60:.0f} minutes"
    )


def values(result: Result, target: str, cell: str, key: str) -> list[float]:
    return [r[key] for r in result["rows"] if r["target"] == target and r["cell"] == cell and key in r]


def targets(result: Result) -> list[str]:
    return list(dict.fromkeys(r["target"] for r in result["rows"]))


def cells(result: Result, kind: str, wall: bool | None = None) -> list[Row]:
    ran = {r["cell"] for r in result["rows"]}
    return [c for c in result["cells"] if c["kind"] == kind and c["name"] in ran and wall in (None, c["wall"])]


def show(found: Sequence[float], digits: int = 1) -> str:
    """Median (least to most)."""
    if not found:
        return "–"
    middle, low, high = (f"{v:,.{digits}f}" for v in (statistics.median(found), min(found), max(found)))
    return middle if len(found) == 1 else f"{middle} ({low}–{high})"


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
    return f"{title}\n\n" + "\n".join(lines)


def grid(title: str, result: Result, columns: Sequence[Row], cell: Callable[[str, str], str]) -> str:
    if not columns:
        return ""
    rows = [[t, *(cell(t, c["name"]) for c in columns)] for t in targets(result)]
    return table(title, ["", *(c["name"] for c in columns)], [r for r in rows if any(v != "–" for v in r[1:])])


def cost(result: Result) -> str:
    columns = cells(result, "streams", wall=False)
    title = "CPU µs per token of the proxy, from the first request to the last byte, by streams"
    whole = grid(title, result, columns, lambda t, c: show(values(result, t, c, "us")))
    split = []
    for t in targets(result):
        for c in [c["name"] for c in columns if c["name"] == HEADLINE]:
            keys = ("user_us", "system_us", "steady_us", "beside_us", "behind_us")
            split.append([t, *(show(values(result, t, c, k)) for k in keys)])
    head = ["", "user", "system", "between the last stream's start and the first one's end", "beside", "behind"]
    title = f"The same at {HEADLINE} streams by parts; `behind` is what the upstream or replica spends"
    return whole + ("\n\n" + table(title, head, split) if split else "")


def added(result: Result, target: str, cell: str, key: str) -> list[float]:
    """What the proxy adds: in each round the difference to that round without one."""
    without = {r["round"]: r[key] for r in result["rows"] if (r["target"], r["cell"]) == ("direct", cell) and key in r}
    rows = [r for r in result["rows"] if (r["target"], r["cell"]) == (target, cell) and key in r]
    return [r[key] - without[r["round"]] for r in rows if r["round"] in without]


def latency(result: Result) -> str:
    parts = []
    for key, what in (("ttft", "time to the first token"), ("itl", "time between tokens")):
        for q in ("p50", "p99"):

            def cell(t: str, c: str, key: str = f"{key}_{q}_ms") -> str:
                found = values(result, t, c, key) if t == "direct" else added(result, t, c, key)
                of = " in all" if t == "direct" else ""
                return show(found) + of + limited(result, t, c) if found else "–"

            title = f"Added {what}, ms, {q}"
            parts.append(grid(title, result, cells(result, "streams", wall=False), cell))
    return "\n\n".join(p for p in parts if p)


def limited(result: Result, target: str, cell: str) -> str:
    names = {n for r in result["rows"] if (r["target"], r["cell"]) == (target, cell) for n in r.get("limits", ())}
    return f" [{', '.join(sorted(names))}]" if names else ""


def saturation(result: Result) -> str:
    head = ["", "tokens/s", "CPU µs per token", "tokens/s per core of proxy", "tokens per read", "ITL p99, ms"]
    parts = []
    for c in cells(result, "streams", wall=True):
        rows = []
        for t in targets(result):
            if us := values(result, t, c["name"], "us"):
                of = {k: values(result, t, c["name"], k) for k in ("tokens_s", "tokens_per_read", "itl_p99_ms")}
                per_core = show([1e6 / u for u in us], 0)
                wall = show(of["tokens_s"], 0) + limited(result, t, c["name"])
                rows.append([t, wall, show(us), per_core, show(of["tokens_per_read"], 2), show(of["itl_p99_ms"], 0)])
        step = f"a step of {c['step_s'] * 1000:g} ms" if c["step_s"] else "steps as fast as they can be"
        parts.append(table(f"{c['name']}: {c['streams']} streams at {step}, all at once", head, rows))
    return "\n\n".join(parts)


def calls(result: Result) -> str:
    columns = cells(result, "calls")
    rate = grid(
        "Short calls without streaming, a second",
        result,
        columns,
        lambda t, c: show(values(result, t, c, "calls_s"), 0) + limited(result, t, c),
    )
    cpu = grid("CPU ms of the proxy per call", result, columns, lambda t, c: show(values(result, t, c, "ms"), 2))
    took = grid("A call's time, ms, p50", result, columns, lambda t, c: show(values(result, t, c, "took_p50_ms"), 1))
    return "\n\n".join(p for p in (rate, cpu, took) if p)


def memory(result: Result) -> str:
    found = cells(result, "held")
    if not found:
        return ""
    rows = []
    for t in targets(result):
        if t != "direct" and (kb := values(result, t, found[0]["name"], "kb")):
            rows.append([t, show(kb), show(values(result, t, found[0]["name"], "idle_mb"), 0)])
    head = ["", "KB per stream", "MB without any"]
    return table("Memory of a stream that waits for its first token; a process's own pages", head, rows)


def notes(result: Result) -> str:
    lines = [f"absent: {name}: {why.strip().splitlines()[0]}" for name, why in result["absent"].items()]
    for r in result["rows"]:
        if "error" in r:
            lines.append(f"error: {r['target']}, {r['cell']}, round {r['round'] + 1}: {r['error']}")
    others = [r["busy"]["others"] for r in result["rows"] if "busy" in r]
    if others and statistics.median(others) > QUIET:
        lines.append(
            f"Other programs took {statistics.median(others):.1f} of {result['machine']['cores']} cores meanwhile: the"
            " figures are higher, and spread wider, than on a quiet machine."
        )
    if any(r.get("limits") for r in result["rows"]):
        lines.append(
            "In brackets: what was busy for more than 85 % of a core (the machine: 95 % of all), so that a figure by"
            " the clock is limited by it too. CPU time per token is not."
        )
    return "\n".join(lines)


def ratios(result: Result) -> list[str]:
    """The lines that say how far the aims are."""
    ours = [t for t in targets(result) if t.startswith("headrace")]
    lines = []
    for what, name, cell, target in (
        ("Headrace / best Rust router", ours[:1], HEADLINE, TARGET),
        ("with coalescing, under pressure", ours[-1:], PRESSURE, TARGET_COALESCING),
    ):
        rust = {r: statistics.median(us) for r in RUST if (us := values(result, r, cell, "us"))}
        if rust and name and (us := values(result, name[0], cell, "us")):
            best = min(rust, key=rust.__getitem__)
            each = show([u / rust[best] for u in us], 2)
            lines.append(f"{what} ({name[0]} / {best}, cell {cell}): {each} (target {target})")
    return lines
