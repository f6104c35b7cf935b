"""Headrace's proxy and others, under the same load in turns: CPU per token, latency, saturation, memory, short calls.

    python benchmarks/proxies.py [--only smg,headrace] [--streams 64,256] [--rounds 3] [--output FILE] [--plots DIR]

Peers are installed on first use, each in an environment of its own (peers/environments.py); one that cannot be had is
reported with the reason. Each is put in front of the same cheap upstream (peers/upstream.py); Headrace's proxy in front
of replicas of its simulated engine, which step alike. Every stream must bring exactly the tokens it was to bring, else
the run is an error and not a figure. CPU time is that of all processes of the proxy; rounds take turns (A B C, C B A).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from peers import environments, plots, report
from peers.environments import Absent
from peers.generator import Generator
from peers.measure import NEVER, Cell, Row, machine, run
from peers.ours import headrace
from peers.processes import DidNotStart, end_on_term
from peers.targets import START, Target, Upstream, cheap_upstream

from headrace import __version__

COALESCING = "headrace, coalescing"
DEAR_ROUNDS = 2  # they are so much dearer that more would say nothing
LIGHT, DEAR = ("direct", "floor", "smg", "vllm-router", "headrace"), ("ray", "litellm")
# At most about twelve thousand tokens a second, so that time is left on two cores; but for "pressure", which is more
# than they can do, and "saturation", which is more than anybody can. Calls go to an engine that needs 1 ms.
CELLS = (
    Cell("held", "held", 1000, step_s=NEVER, dear=100),
    Cell("1", "streams", 1, 150, dear=100),
    Cell("16", "streams", 16, 200, dear=100),
    Cell("64", "streams", 64, 200, dear=60),
    Cell("256", "streams", 256, 300, pressed=True),
    Cell("1024", "streams", 1024, 80, step_s=0.08, pressed=True),
    Cell("pressure", "streams", 512, 300, step_s=0.01, pressed=True, wall=True),
    Cell("saturation", "streams", 256, 300, step_s=0.002, pressed=True, wall=True),
    Cell("calls", "calls", 16, step_s=0.001, calls=1000, dear=100, wall=True),
    Cell("calls, 16 KB", "calls", 16, step_s=0.001, calls=400, prompt_bytes=16_000, dear=50, wall=True),
    Cell("calls, 1 MB", "calls", 4, step_s=0.001, calls=24, prompt_bytes=1_000_000, dear=8, wall=True),
    Cell("64 × 4 replicas", "streams", 64, 200, replicas=4, dear=60),
    Cell("256 × 4 replicas", "streams", 256, 300, replicas=4, pressed=True),
)
WARM = Cell("warm", "streams", 8, 50)

Starter = Callable[[Upstream, Path], Iterator[Target]]


def variants(given: Sequence[str]) -> dict[str, list[str]]:
    """Headrace's names in the tables, and for each the head's flags and variables, which its proxies inherit."""
    if given:
        return {name: args.split() for name, _, args in (one.partition("=") for one in given)}
    return {"headrace": ["HEADRACE_COALESCE_S=0"], COALESCING: []}


def starters(names: Sequence[str], cells: Sequence[Cell], given: Sequence[str]) -> dict[str, Starter]:
    steps = sorted({c.step_s for c in (WARM, *cells)})
    replicas = cells[0].replicas if cells else 1
    found: dict[str, Starter] = {}
    for name in names:
        if name != "headrace":
            found[name] = START[name]
            continue
        for label, args in variants(given).items():

            def ours(source: Upstream, folder: Path, label: str = label, args: list[str] = args) -> Iterator[Target]:
                return headrace(label, steps, replicas, args, folder / label.replace(" ", "-"))

            found[label] = ours
    return found


class Bench:
    def __init__(self, folder: Path, generator: Generator, rounds: int, given: Sequence[str]) -> None:
        self.rows: list[Row] = []
        self.absent: dict[str, str] = {}
        self._folder, self._generator, self._rounds, self._given = folder, generator, rounds, given

    def all_of(self, names: Sequence[str], cells: Sequence[Cell]) -> None:
        """Cells of one number of replicas."""
        light = starters([n for n in names if n in LIGHT], cells, self._given)
        dear = starters([n for n in names if n in DEAR], cells, self._given)
        with ExitStack() as stack:
            source = stack.enter_context(cheap_upstream(cells[0].replicas, self._folder))
            targets = [t for name, s in light.items() if (t := self._started(stack, name, s, source))]
            for number in range(self._rounds):
                for cell in cells:
                    if cell.kind == "held" and number:
                        continue  # what was freed once is not taken from the system again
                    for target in targets if number % 2 == 0 else reversed(targets):
                        self._run(number, cell, target, dear=False)
                for name, starter in dear.items() if number < DEAR_ROUNDS else ():
                    with ExitStack() as one:
                        if target := self._started(one, name, starter, source):
                            for cell in cells:
                                if cell.dear and (cell.kind != "held" or not number):
                                    self._run(number, cell, target, dear=True)

    def _started(self, stack: ExitStack, name: str, starter: Starter, source: Upstream) -> Target | None:
        if name in self.absent:
            return None
        try:
            target = stack.enter_context(contextmanager(starter)(source, self._folder))
            run(WARM, target, self._generator)
            return target
        except (Absent, DidNotStart, TimeoutError) as e:
            self.absent[name] = str(e) or "it did not start in time"
            print(f"{name}: absent: {self.absent[name]}", file=sys.stderr)
            return None

    def _run(self, number: int, cell: Cell, target: Target, *, dear: bool) -> None:
        if target.name == "floor" and cell.kind != "streams":
            return
        if target.name == COALESCING and not cell.pressed:
            return  # it would be the same as without
        row = run(cell, target, self._generator, dear=dear) | {"round": number}
        self.rows.append(row)
        figure = row.get("error") or " ".join(f"{k} {row[k]:.1f}" for k in ("us", "ms", "kb") if k in row)
        print(f"  round {number + 1}, {cell.name}: {target.name}: {figure}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help=f"some of {','.join((*LIGHT, *DEAR))}")
    parser.add_argument("--streams", help="numbers of streams: 1,16,64,256,1024")
    parser.add_argument("--cells", help=f"some of: {'; '.join(c.name for c in CELLS)} (separated by ;)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--headrace", action="append", default=[], metavar="NAME=ARGS", help="a variant: flags and variables"
    )
    parser.add_argument("--output", type=Path, help="JSON; without it results/proxies-TIME.json")
    parser.add_argument("--plots", type=Path, help="folder for PNG plots (needs the extra bench)")
    parser.add_argument("--from_json", type=Path, help="show the figures of an earlier run")
    args = parser.parse_args()
    end_on_term()
    if args.from_json:
        result = json.loads(args.from_json.read_text())
    else:
        cells = [c for c in CELLS if not args.cells or c.name in [n.strip() for n in args.cells.split(";")]]
        if args.streams:
            wanted = {int(n) for n in args.streams.split(",")}
            cells = [c for c in cells if c.kind == "streams" and not c.wall and c.streams in wanted]
        names = args.only.split(",") if args.only else [*LIGHT, *DEAR]
        if "direct" not in names:
            names.insert(0, "direct")
        result = measure(cells, names, args.rounds, args.headrace)
        output = args.output or Path("results") / time.strftime("proxies-%Y%m%d-%H%M%S.json")
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(result, indent=1))
        print(f"figures: {output}", file=sys.stderr)
    print(report.text(result))
    if args.plots:
        plots.draw(result, args.plots)


def measure(cells: Sequence[Cell], names: Sequence[str], rounds: int, given: Sequence[str]) -> dict[str, object]:
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder, Generator() as generator:
        bench = Bench(Path(folder), generator, rounds, given)
        try:
            for replicas in sorted({c.replicas for c in cells}):
                bench.all_of(names, [c for c in cells if c.replicas == replicas])
        except (KeyboardInterrupt, SystemExit):
            print("interrupted; these are the figures until now", file=sys.stderr)
    return {
        "machine": machine(),
        "headrace": __version__,
        "versions": {name: environments.version(name) for name in names if name in environments.REQUIREMENTS},
        "rounds": rounds,
        "took_s": time.monotonic() - begin,
        "cells": [vars(c) for c in cells],
        "absent": bench.absent,
        "rows": bench.rows,
    }


if __name__ == "__main__":
    main()
