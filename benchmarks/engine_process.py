"""What a process of its own for OpenVINO's engine brings to the event loop that serves its tokens.

    python benchmarks/engine_process.py [--model FOLDER] [--tokens 400] [--rounds 3]

The same engine twice: stepped by a thread of this process, as one would do it first, and by a process of its own, as
the replica does it. Measured in the event loop: in how many pieces the tokens of one stream come, and how late a timer
is that wants to run every millisecond, while tokens are made one by one and during one long step of a prompt.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import headrace
from headrace.core.streams import Sampling
from headrace.core.types import Resources
from headrace.replica import telemetry
from headrace.replica.engine import Engine, EngineRequest, Step
from headrace.replica.engines.hosted import Host, HostedEngine
from headrace.replica.engines.openvino_options import OpenVinoOptions
from headrace.replica.engines.openvino_parsers import Parsers

telemetry.forbid()

_EVERY_S = 0.001
_LONG = 16  # prompts of the long step, of 1,000 tokens each
_OPTIONS = OpenVinoOptions(step_tokens=32_000, kv_cache_mib=512, prefix_cache=False)
_CPUS = Resources(cpus=1)
_GREEDY = Sampling(temperature=0.0, ignore_eos=True)


class Loop:
    """The event loop's side: the pieces in which tokens come, and how late its timer is."""

    def __init__(self) -> None:
        self.pieces: list[int] = []
        self.late_s: list[float] = []
        self._loop = asyncio.get_running_loop()
        self._came: list[Step] = []
        self._left = 0
        self._done = asyncio.Event()

    def on_step(self, step: Step) -> None:
        """Called by the engine's thread."""
        self._came.append(step)
        self._loop.call_soon_threadsafe(self._take)

    def _take(self) -> None:
        came, self._came = self._came, []
        if came:
            self.pieces.append(sum(len(r.tokens) for s in came for r in s.rows))
        self._left -= sum(r.finish is not None for s in came for r in s.rows)
        if not self._left:
            self._done.set()

    async def run(self, engine: Engine, requests: Sequence[EngineRequest]) -> float:
        """Seconds until all have ended."""
        self.pieces, self.late_s = [], []
        self._left = len(requests)
        self._done.clear()
        begun = time.perf_counter()
        for request in requests:
            engine.submit(request)
        while not self._done.is_set():
            before = time.perf_counter()
            await asyncio.sleep(_EVERY_S)
            self.late_s.append(time.perf_counter() - before - _EVERY_S)
        return time.perf_counter() - begun


def in_this_process(folder: Path) -> Engine:
    from headrace.replica.engines.openvino import OpenVinoEngine

    return OpenVinoEngine(folder, _OPTIONS, _CPUS, 0, Parsers("", ""))


def in_its_own(folder: Path) -> Engine:
    host, parsers = Host(), Parsers("", "")
    return HostedEngine(host, host.load(folder, _OPTIONS, _CPUS, 0, parsers), _OPTIONS, parsers)


async def measure(make: Callable[[Path], Engine], folder: Path, tokens: int) -> dict[str, float]:
    engine, loop = make(folder), Loop()
    engine.start(loop.on_step, print)
    await loop.run(engine, [EngineRequest(1, [5, 6, 7], 20, _GREEDY)])
    took = await loop.run(engine, [EngineRequest(2, [5, 6, 7], tokens, _GREEDY)])
    late = sorted(loop.late_s)
    found = {
        "tokens/s": tokens / took,
        "pieces per 100 tokens": 100 * len(loop.pieces) / tokens,
        "late p50, ms": 1e3 * statistics.median(late),
        "late p99, ms": 1e3 * late[int(0.99 * len(late))],
    }
    prompts = [[5 + (7 * n + i) % 900 for i in range(1000)] for n in range(_LONG)]
    await loop.run(engine, [EngineRequest(10 + n, p, 1, _GREEDY) for n, p in enumerate(prompts)])
    found["late in a long step, ms"] = 1e3 * max(loop.late_s)
    await asyncio.to_thread(engine.close)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path(headrace.__file__).parent / "data" / "demo")
    parser.add_argument("--tokens", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    ways = {"in this process": in_this_process, "in its own": in_its_own}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, make in ways.items():
            found[name].append(asyncio.run(measure(make, args.model, args.tokens)))
    print(f"{'medians of ' + str(args.rounds) + ' rounds':28}" + "".join(f"{name:>18}" for name in ways))
    for what in found["in its own"][0]:
        print(f"{what:28}" + "".join(f"{statistics.median(f[what] for f in found[n]):18.1f}" for n in ways))


if __name__ == "__main__":
    main()
