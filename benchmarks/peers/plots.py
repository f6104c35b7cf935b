"""The figures as PNGs, for the README: `pip install -e '.[bench]'` for Matplotlib."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from peers.report import Result, cells, targets, values

COLOURS = {
    "smg": "#b5651d",
    "vllm-router": "#8a2be2",
    "ray[serve]": "#888888",
    "litellm": "#bbbbbb",
    "direct": "#555555",
    "floor": "#555555",
}
OURS = ("#0b6e99", "#3fb6d3", "#0a3d62")


def draw(result: Result, folder: Path) -> None:
    try:
        import matplotlib
    except ImportError as e:
        raise SystemExit("Plots need Matplotlib: pip install -e '.[bench]'") from e
    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    _cost(result, folder / "proxies-cpu.png")
    _latency(result, folder / "proxies-latency.png")


def _colour(target: str, result: Result) -> str:
    ours = [t for t in targets(result) if t.startswith("headrace")]
    return OURS[ours.index(target) % len(OURS)] if target in ours else COLOURS.get(target, "#000000")


def _figure(title: str) -> tuple[Any, Any]:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.2, 4.2), dpi=150)
    axes.set_title(title, fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.3)
    return figure, axes


def _caption(figure: Any, result: Result) -> None:
    m = result["machine"]
    figure.text(
        0.01, 0.01, f"{m['cpu']}, {m['cores']} cores; median and range of {result['rounds']} rounds", fontsize=7
    )
    figure.tight_layout(rect=(0, 0.03, 1, 1))


def _cost(result: Result, path: Path) -> None:
    columns = [c for c in cells(result, "streams", wall=False) if c["replicas"] == 1]
    figure, axes = _figure("CPU time of the proxy per streamed token")
    for t in targets(result):
        points = [(c["streams"], v) for c in columns if (v := values(result, t, c["name"], "us"))]
        if t == "direct" or not points:
            continue
        x, y = [p[0] for p in points], [statistics.median(p[1]) for p in points]
        spread = [
            [m - min(p[1]) for m, p in zip(y, points, strict=True)],
            [max(p[1]) - m for m, p in zip(y, points, strict=True)],
        ]
        style = "--" if t == "floor" else "-"
        axes.errorbar(
            x, y, spread, linestyle=style, marker="o", markersize=4, capsize=2, label=t, color=_colour(t, result)
        )
    axes.set_xscale("log", base=4)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:g}"[0] in "25" else "")
    axes.set_xticks([c["streams"] for c in columns], [str(c["streams"]) for c in columns])
    axes.set_xlabel("streams")
    axes.set_ylabel("µs per token (log)")
    axes.legend(fontsize=8, frameon=False)
    _caption(figure, result)
    figure.savefig(path)


def _latency(result: Result, path: Path) -> None:
    columns = [c for c in cells(result, "streams", wall=False) if c["replicas"] == 1 and c["streams"] in (16, 64, 256)]
    shown = [t for t in targets(result) if t != "floor"]
    figure, axes = _figure("Time to the first token (p50, and p99 as a line); direct: without any proxy")
    width = 0.8 / max(1, len(shown))
    named: set[str] = set()
    for i, t in enumerate(shown):
        for j, c in enumerate(columns):
            middle, high = (values(result, t, c["name"], f"ttft_{q}_ms") for q in ("p50", "p99"))
            if not middle:
                continue
            x = j + (i - (len(shown) - 1) / 2) * width
            axes.bar(
                x, statistics.median(middle), width * 0.9, color=_colour(t, result), label=None if t in named else t
            )
            named.add(t)
            axes.plot([x, x], [statistics.median(middle), statistics.median(high)], color="#333333", linewidth=1)
    axes.set_xticks(range(len(columns)), [f"{c['name']} streams" for c in columns])
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylabel("ms")
    axes.legend(fontsize=8, frameon=False)
    _caption(figure, result)
    figure.savefig(path)
