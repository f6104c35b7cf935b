"""What a run says at its end: the line, the shortest history of each violation, and JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from chaos_harness.check_moves import ALONE_S
from chaos_harness.checker import Verdict
from chaos_harness.history import Event, History, Violation
from chaos_harness.stats import percentile

_SHOWN = 5
_NEAR_S = 15.0
_ORDER = ("killed", "hung", "none left", "other")


def line(v: Verdict) -> str:
    s, st, p, m = v.streams, v.state, v.processes, v.moves
    done = s.states["completed"]
    lost_with_proxy = s.states["proxy_lost"]
    error = s.states["error"]
    void = f" VOID: {'; '.join(v.void)}." if v.void else ""
    return (
        f"{sum(v.faults.values())} faults ({len(v.faults)} kinds, seed {v.seed}) in {v.load_s / 60:.1f} min at"
        f" {v.rate:.1f} req/s, {100 * s.streaming / max(1, s.admitted):.0f} % streaming,"
        f" {s.tokens / max(1, done):.0f} mean tokens: admitted {s.admitted} = completed {done} + error {error}"
        f" + cancelled {s.states['cancelled']} + ended with their proxy {lost_with_proxy}; lost {s.lost};"
        f" corrupted {s.corrupted} of {m.failed_over} failed-over and {m.taken_over} taken over ({m.gone} gone);"
        f"{_otherwise(v)}"
        f" duplicate/missing tokens {s.duplicate}/{s.missing}; gap p50/p99/max {_by_fault(m.gaps, three)} s,"
        f" of faults {ALONE_S:g} s from any other {_by_fault(m.alone, three)} s,"
        f" taken over {three(m.returns)} s, proxies replaced in {three(v.replaced)} s;"
        f" detection p99 {_by_fault(m.detections, _p99)} s;"
        f" acknowledged writes lost {st.lost} of {st.acknowledged}; orphans {p.orphans};"
        f" stale-epoch accepts {st.stale_accepted} of {st.stale}; max queue/cap {p.max_queue:g}/{p.cap:g};"
        f" RSS slope {p.rss_slope:.2f} MiB/min; violations {len(v.violations)}.{void}"
    )


def _otherwise(v: Verdict) -> str:
    """Of a real model, whose numerics may part two equal requests; nothing where there are none such."""
    s = v.streams
    if not s.otherwise:
        return ""
    shares = (f"{s.otherwise[k]} of {s.compared[k]} {k}" for k in ("moved", "not moved"))
    return f" went on otherwise {' and '.join(shares)};"


def three(values: Sequence[float]) -> str:
    return f"{percentile(values, 0.5):.2f}/{percentile(values, 0.99):.2f}/{max(values, default=0):.2f}"


def _p99(values: Sequence[float]) -> str:
    return f"{percentile(values, 0.99):.2f}"


def _by_fault(values: Mapping[str, Sequence[float]], told: Callable[[Sequence[float]], str]) -> str:
    """One figure for each way in which replicas were lost; those that there were."""
    return ", ".join(f"{name} {told(values[name])}" for name in _ORDER if values.get(name)) or told(())


def as_json(v: Verdict) -> dict[str, Any]:
    return {
        "line": line(v),
        "ok": not v.violations and not v.void,
        "seed": v.seed,
        "void": v.void,
        "faults": dict(v.faults),
        "states": dict(v.streams.states),
        "errors": dict(v.streams.errors),
        "failed_over": v.moves.failed_over,
        "taken_over": v.moves.taken_over,
        "gone": v.moves.gone,
        "compared": dict(v.streams.compared),
        "otherwise": dict(v.streams.otherwise),
        "gaps": {name: _figures(gaps) for name, gaps in v.moves.gaps.items()},
        "gaps_alone": {name: _figures(gaps) for name, gaps in v.moves.alone.items()},
        "detections": {name: _figures(found) for name, found in v.moves.detections.items()},
        "takeover_gaps": _figures(v.moves.returns),
        "proxies_replaced": _figures(v.replaced),
        "violations": [asdict(x) for x in v.violations],
    }


def _figures(values: Sequence[float]) -> dict[str, float]:
    shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
    return {
        "count": len(values),
        **{k: percentile(values, q) for k, q in shares.items()},
        "max": max(values, default=0),
    }


def explain(v: Verdict, history: History) -> str:
    """The seed, and for the first violations the fewest events that show each, with the faults near it."""
    if not v.violations:
        return ""
    told = [f"seed {v.seed}: {len(v.violations)} violations"]
    kinds: set[tuple[str, str]] = set()
    for x in v.violations:
        if (x.invariant, x.kind) not in kinds and len(kinds) < _SHOWN:
            kinds.add((x.invariant, x.kind))
            told += _story(x, history.faults)
    return "\n".join(told)


def _story(x: Violation, faults: list[Event]) -> list[str]:
    last = max([e.get("t", x.t) for e in x.shown_by] or [x.t])
    near = [f for f in faults if f["ev"] == "begin" and x.t - _NEAR_S <= f["t"] <= last + 1]
    events = sorted([*x.shown_by, *near], key=lambda e: e.get("t", x.t))
    return [f"{x.invariant} {x.kind}: {x.what}", *(f"    {json.dumps(e, ensure_ascii=False)[:1500]}" for e in events)]


def write(v: Verdict, history: History, folder: Path) -> None:
    """report.json and report.html."""
    from chaos_harness.page import page

    (folder / "report.json").write_text(json.dumps(as_json(v), indent=1, ensure_ascii=False))
    (folder / "report.html").write_text(page(v, history))
