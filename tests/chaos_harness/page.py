"""The report as one HTML file: the line, a picture of faults and latency over time, and what was violated."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from html import escape

from chaos_harness.checker import Verdict
from chaos_harness.history import History
from chaos_harness.report import explain, line, three

_W, _H, _LEFT, _ROW = 1100, 170, 190, 16
_COLOURS = {"completed": "#4a8", "error": "#c33", "cancelled": "#999", "proxy_lost": "#e90", "lost": "#000"}


def page(v: Verdict, history: History) -> str:
    rows = [f"<tr><td>{escape(k)}</td><td>{n}</td></tr>" for k, n in sorted(v.streams.errors.items())]
    errors = f"<h2>Errors by code</h2><table>{''.join(rows)}</table>" if rows else ""
    gaps = [*v.moves.gaps.items(), ("taken over", v.moves.returns)]
    waits = "".join(f"<tr><td>{k}</td><td>{len(g)}</td><td>{three(g)} s</td></tr>" for k, g in gaps if g)
    moves = f"<h2>Moves, and their gaps (p50/p99/max)</h2><table>{waits}</table>" if waits else ""
    story = f"<h2>Violations</h2><pre>{escape(explain(v, history))}</pre>" if v.violations else ""
    verdict = "void" if v.void else "violated" if v.violations else "all invariants held"
    return (
        "<!doctype html><meta charset=utf-8><title>Chaos run</title><style>body{font:14px sans-serif;margin:2em;"
        "max-width:1150px}pre{white-space:pre-wrap;font-size:12px}td{padding-right:2em}svg text{font:11px sans-serif}"
        f"</style><h1>Chaos run, seed {v.seed}: {verdict}</h1><p>{escape(line(v))}</p>{_svg(v, history)}"
        f"{moves}{errors}{story}\n"
    )


def _svg(v: Verdict, history: History) -> str:
    events = [*history.clients, *history.faults]
    end = max((e["t"] for e in events), default=1.0) or 1.0

    def x(t: float) -> float:
        return _LEFT + (_W - _LEFT - 10) * t / end

    faults, below = _faults(history, x)
    parts = [
        _ends(history, x),
        f'<g transform="translate(0,{_H + 30})">{_gaps(v, history, x)}</g>',
        f'<g transform="translate(0,{2 * (_H + 30)})">{faults}</g>',
    ]
    height = 2 * (_H + 30) + below + 30
    ticks = "".join(
        f'<text x="{x(end * i / 10):.0f}" y="{height - 8}" text-anchor="middle">{end * i / 10:.0f} s</text>'
        for i in range(11)
    )
    lines = "".join(
        f'<path d="M{x(f["t"]):.1f} 0V{height - 24}" stroke="#c33" stroke-opacity=".15"/>'
        for f in history.faults
        if f["ev"] == "begin"
    )
    return f'<svg viewBox="0 0 {_W} {height}" width="{_W}">{lines}{"".join(parts)}{ticks}</svg>'


def _ends(history: History, x: Callable[[float], float]) -> str:
    """Requests that ended, by how, in slots of two seconds."""
    lasts = {"proxy_kill": 12, "proxy_stopped": 30}
    kills = [(f["t"], lasts[f["kind"]]) for f in history.faults if f["ev"] == "begin" and f["kind"] in lasts]
    slots: defaultdict[int, Counter[str]] = defaultdict(Counter)
    for e in history.clients:
        if e["ev"] == "end":
            state = e["status"] if e["status"] in _COLOURS else "lost"
            if state == "lost" and any(k - 1 <= e["t"] <= k + s for k, s in kills):
                state = "proxy_lost"
            slots[int(e["t"] // 2)][state] += 1
    top = max((sum(c.values()) for c in slots.values()), default=1)
    bars: list[str] = []
    for slot, counts in slots.items():
        y = float(_H)
        for state, colour in _COLOURS.items():
            h = _H * counts[state] / top
            y -= h
            left, width = x(2 * slot), x(2 * slot + 2) - x(2 * slot)
            bars.append(f'<rect x="{left:.1f}" y="{y:.1f}" width="{width:.1f}" height="{h:.1f}" fill="{colour}"/>')
    legend = "".join(
        f'<text x="0" y="{34 + 16 * i}" fill="{c}">■ {s}</text>' for i, (s, c) in enumerate(_COLOURS.items())
    )
    return f'<text x="0" y="14">Ends per 2 s, up to {top}</text>{legend}{"".join(bars)}'


def _gaps(v: Verdict, history: History, x: Callable[[float], float]) -> str:
    """First-token times, and the longest gap of each stream; those that moved in red."""
    dots: list[str] = []
    points: list[tuple[float, float, str]] = [(t, s, "#48c") for t, s in v.streams.firsts]
    for e in history.clients:
        if e["ev"] == "end" and len(e["pieces"]) > 1:
            gap, t, moved = max(
                (b[0] - a[0], b[0], b[2] > a[2]) for a, b in zip(e["pieces"], e["pieces"][1:], strict=False)
            )
            points.append((t, gap, "#c33" if moved else "#bbb"))
    top = max([p[1] for p in points] or [1.0]) or 1.0
    for t, seconds, colour in sorted(points, key=lambda p: p[2] == "#c33"):
        y = _H - _H * seconds / top
        dots.append(f'<circle cx="{x(t):.1f}" cy="{y:.1f}" r="1.6" fill="{colour}"/>')
    names = (("#48c", "first token"), ("#bbb", "longest gap"), ("#c33", "gap of a move"))
    legend = "".join(f'<text x="0" y="{34 + 16 * i}" fill="{c}">● {s}</text>' for i, (c, s) in enumerate(names))
    return f'<text x="0" y="14">Seconds, up to {top:.1f}</text>{legend}{"".join(dots)}'


def _faults(history: History, x: Callable[[float], float]) -> tuple[str, int]:
    """A row for each kind of fault; a bar where it lasted."""
    ends = {f["number"]: f["t"] for f in history.faults if f["ev"] == "end"}
    begun = [f for f in history.faults if f["ev"] == "begin"]
    kinds = sorted({f["kind"] for f in begun})
    parts = [f'<text x="0" y="{_ROW * i + 12}">{k}</text>' for i, k in enumerate(kinds)]
    for f in begun:
        left = x(f["t"])
        width = max(3.0, x(ends.get(f["number"], f["t"])) - left)
        y = _ROW * kinds.index(f["kind"]) + 3
        parts.append(f'<rect x="{left:.1f}" y="{y}" width="{width:.1f}" height="10" fill="#c33" fill-opacity=".7"/>')
    return "".join(parts), _ROW * len(kinds)
