"""One run: start the system, load it, break it, wait until it is quiet, stop it. Its logs are the result."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from chaos_harness import probes
from chaos_harness.faults import KINDS, Faults
from chaos_harness.history import Recorder
from chaos_harness.load import Load, Mix, baseline
from chaos_harness.system import Size, System

_QUIET_S = 11.0
_AT_A_TIME = 4  # before anything is broken


@dataclass(frozen=True)
class Plan:
    """What a run does. Everything random follows from `seed`."""

    seed: int = 1
    minutes: float = 2.0
    rate: float = 12.0
    every_s: float = 5.0  # between faults
    kinds: tuple[str, ...] = KINDS
    size: Size = field(default_factory=Size)
    mix: Mix = field(default_factory=Mix)
    mutant: str = ""
    quiet_s: float = _QUIET_S  # after the last fault and request, before all must be as wanted


async def run(plan: Plan, folder: Path) -> None:
    """Writes the logs of a run into `folder`/history. Whatever happens, no process of it is left."""
    recorder = Recorder(folder / "history")
    system = System(folder / "system", plan.size, plan.mutant)
    system.root.mkdir(parents=True, exist_ok=True)
    try:
        recorder.write("faults", "plan", seed=plan.seed, minutes=plan.minutes, rate=plan.rate, mutant=plan.mutant)
        await system.start()
        await _run(plan, system, recorder)
    finally:
        left = await system.stop()
        recorder.write("processes", "stopped", left=[r.as_event() for r in left])
        recorder.close()


async def _run(plan: Plan, system: System, recorder: Recorder) -> None:
    load = Load(system.address, system.models, plan.rate, plan.seed, recorder, plan.mix)
    asks = baseline(system.models, plan.mix)
    for i in range(0, len(asks), _AT_A_TIME):
        await asyncio.gather(*(load.one(ask, 0.0) for ask in asks[i : i + _AT_A_TIME]))
    faults = Faults(system, recorder, plan.seed, plan.every_s, plan.kinds)
    async with asyncio.TaskGroup() as tasks:
        watches = [
            tasks.create_task(probes.watch_processes(system, recorder)),
            tasks.create_task(probes.watch_queues(system, recorder)),
        ]
        administration = tasks.create_task(probes.administer(system, recorder, plan.seed))
        recorder.write("faults", "load_begins")
        asking = tasks.create_task(load.run())
        await faults.run(recorder.now() + 60 * plan.minutes)
        load.stopping.set()
        recorder.write("faults", "load_ends", started=load.started)
        await asking
        administration.cancel()
        await _quiet(system, recorder, plan.quiet_s)
        for watch in watches:
            watch.cancel()


async def _quiet(system: System, recorder: Recorder, quiet_s: float) -> None:
    """Ten seconds after the last fault everything must be as it is wanted, and no load be left."""
    recorder.write("faults", "quiet_begins")
    await probes.read_ledger(system, recorder)
    await asyncio.sleep(quiet_s)
    if quiet_s < 10:
        return  # too early to ask
    rows = await asyncio.to_thread(system.processes)
    status = await system.status()
    recorder.write(
        "processes", "quiet", rows=[r.as_event() for r in rows], wanted=probes.wanted(status),
        roles=dict(Counter(r.role for r in rows)), size={"proxies": system.size.proxies, "nodes": system.size.nodes},
    )  # fmt: skip
    recorder.write("faults", "quiet_ends")
