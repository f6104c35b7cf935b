"""Hostile inputs, one at a time, beside a steady load: how long the others wait, and what memory each takes.

    python benchmarks/hostile.py [--only prompt-4m,metadata] [--quick] [--limit_s 300] [--engine openvino] [--assert]

A real system (head, one proxy, a scheduler; the demo model in OpenVINO, or `--engine simulated`, and a replica of the
simulated engine) is asked by its clients without pause: two streams of a token each 20 ms, short answers of both
models, and a question to the proxy each 20 ms. Meanwhile each input of `strangers/` comes from a process of its own and
with another API key, and the next one only when the clients are served again. To try another version (another work
tree), run this file with that version's Python:

    ../other/.venv/bin/python benchmarks/hostile.py

Per input: what it was answered and after how long; the worst gap; the growth of memory; what became of the others.

**The gap.** How long others wait by the clock is no measure where others use the machine, so what counts is what the
process itself did in one turn of its event loop, in which it can serve nobody: the time that the loop's thread ran on a
core, and for as long as that thread waited for the interpreter's lock, the time that the process's other threads ran.
A turn ends when a client hears from the process, or when the loop is seen to have nothing to do. (All of it is seen
from outside, by the kernel's counts, a hundred times a second; Linux only, see `strangers/watch.py`.) "All threads" is
the whole process's time from the token before to the token after, which also has threads that hold nobody up, such as a
tokenizer that has let the interpreter go. "By the clock" is the longest that any client waited, whoever was to blame:
between two tokens, and for the first one.

**Memory.** The most that a process had resident after the input began (its peak is forgotten before), less what it had
then; and that over the size of all bodies that were under way at once. For what is no body, such as connections, 16 KiB
count for each.

What a process has kept of an earlier input is not counted again, so that `--only NAME` is the exact figure of one.

**Verdict.** `gap`: over 250 ms. `memory`: over 8 × the body and 16 MiB, or 256 MiB in all. `others failed`: a client
that means no harm got an error or half an answer. `others waited`: one did for 5 s, by the clock. `status`: a 5xx that
is no 503. `no answer`: none within 15 or 25 s. The exit status is 0 all the same, unless `--assert`.
Figures go to `results/hostile.json` (`--json`).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import signal
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from strangers import table, watch
from strangers.bystanders import Bystanders
from strangers.inputs import INPUTS
from strangers.script import Hostile, Told, stranger
from strangers.system import System
from strangers.table import Measured

from headrace import __version__

_BEFORE_S, _QUIET_S = 0.3, 0.5
_SETTLE_S = 60.0  # after which a system that serves its other clients no more is given up


async def _received(pipe: Connection, patience_s: float) -> object:
    """What the process at the other end says, or None if it does not."""
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        try:
            if pipe.poll():
                return pipe.recv()
        except EOFError:
            return None
        await asyncio.sleep(0.01)
    return None


async def measured(system: System, others: Bystanders, hostile: Hostile) -> Measured:
    """One input, from a quiet system to a quiet system."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=stranger, args=(theirs, hostile.name, system.strange), daemon=True)
    child.start()
    theirs.close()
    try:
        size = await _received(ours, 60.0)
        if not isinstance(size, int):
            raise RuntimeError(f"the input {hostile.name!r} could not be made")
        pids = dict(system.pids if system.alive() else await system.until_well())
        others.forget()
        clocks = [watch.Clock(name, pid) for name, pid in pids.items()]
        before = {c.name: watch.forget_peak(c.pid) for c in clocks}
        with watch.Sampler(clocks):
            await asyncio.sleep(_BEFORE_S)
            ours.send("go")
            told = await _received(ours, 40.0)
            settled = await _quiet(others)
            end = time.monotonic()
        grown = {c.name: most - before[c.name] for c in clocks if (most := watch.peak(c.pid))}
    finally:
        child.kill()
        child.join()
        ours.close()
    everything = [t for times in others.arrivals.values() for t in times]
    gaps = {
        c.name: watch.worst_gap(c, everything if c.name == "proxy" else others.arrivals[c.name], end) for c in clocks
    }
    told = told if isinstance(told, Told) else Told()
    return Measured(
        hostile.name, hostile.origin, dict(told.statuses), told.first, told.took_s, size, gaps, grown or {"-": 0},
        others.worst_wait_s, others.worst_first_s, others.late_s, dict(others.failures),
        [n for n in pids if n not in grown], settled,
    )  # fmt: skip


async def _quiet(others: Bystanders) -> bool:
    """Wait until every client is served again, and for a moment after that."""
    asked = time.monotonic()
    while not others.all_heard_since(asked):
        if time.monotonic() > asked + _SETTLE_S:
            return False
        await asyncio.sleep(0.05)
    again = time.monotonic()
    await asyncio.sleep(_QUIET_S)
    while not others.all_heard_since(again):
        if time.monotonic() > asked + _SETTLE_S:
            return False
        await asyncio.sleep(0.05)
    return True


async def run(args: argparse.Namespace, chosen: list[Hostile]) -> int:
    rows: list[Measured] = []
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = args.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hostile-")))
        system = System(folder, args.engine)
        try:
            try:
                await system.start()
            except TimeoutError:
                raise SystemExit(f"The system did not start. Its logs end so:\n{system.last_words()}") from None
            print(f"Headrace {__version__}; {table.machine()}\n{table.HEAD}", flush=True)
            async with Bystanders(system.where) as others:
                await asyncio.sleep(1.0)
                for hostile in chosen:
                    if time.monotonic() - began > args.limit_s:
                        print(f"Not run within {args.limit_s:g} s: {', '.join(h.name for h in chosen[len(rows) :])}")
                        break
                    rows.append(await measured(system, others, hostile))
                    print(table.line(rows[-1]), flush=True)
        finally:
            system.stop()
            errors = [
                line
                for log in system.logs()
                for line in log.read_text(errors="replace").splitlines()
                if "Traceback" in line
            ]
    wrong = [m.name for m in rows if m.wrong()]
    print(
        f"{len(rows) - len(wrong)} of {len(rows)} inputs are within the bounds; {len(errors)} tracebacks in the logs."
    )
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        told = {
            "version": __version__,
            "machine": table.machine(),
            "engine": args.engine,
            "inputs": [m.as_json() for m in rows],
        }
        told = told | {"tracebacks": len(errors)}
        args.json.write_text(json.dumps(told, indent=1))
        if args.beside:
            _show(told, args.beside)
    return bool(args.check and (wrong or errors))


def _show(told: dict[str, Any], earlier: Path | None) -> None:
    print(table.beside(json.loads(earlier.read_text()), told) if earlier else table.of_json(told))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="names of inputs, with commas")
    parser.add_argument("--quick", action="store_true", help="the short list")
    parser.add_argument("--list", action="store_true", help="say what there is, and end")
    parser.add_argument("--limit_s", type=float, default=300.0, help="seconds after which no other input is begun")
    parser.add_argument("--engine", default="openvino", choices=("openvino", "simulated"), help="of the demo model")
    parser.add_argument("--folder", type=Path, help="for state and logs, to look at afterwards")
    parser.add_argument("--json", type=Path, default=Path("results/hostile.json"))
    parser.add_argument("--beside", type=Path, help="JSON of an earlier run, to print both in one table at the end")
    parser.add_argument("--from_json", type=Path, help="run nothing, and show what an earlier run has found")
    parser.add_argument("--assert", dest="check", action="store_true", help="exit with 1 if a bound is broken")
    args = parser.parse_args()
    if args.list:
        print("\n".join(f"{h.name:22} {h.origin}" for h in INPUTS))
        return 0
    if args.from_json:
        _show(json.loads(args.from_json.read_text()), args.beside)
        return 0
    names = set(filter(None, args.only.split(",")))
    if unknown := names - {h.name for h in INPUTS}:
        parser.error(f"there is no {', '.join(sorted(unknown))}: --list shows what there is")
    chosen = [h for h in INPUTS if (not names or h.name in names) and (h.quick or not args.quick)]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing is left behind
    return asyncio.run(run(args, chosen))


if __name__ == "__main__":
    sys.exit(main())
