"""Proof that the checker sees: for each planted bug a short run aimed at it, found wrong in the right way."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from pathlib import Path

from chaos_harness.check_streams import simulated
from chaos_harness.checker import Verdict, check
from chaos_harness.history import History
from chaos_harness.load import Mix
from chaos_harness.run import Plan, run
from chaos_harness.system import Size

_SMALL = Size(proxies=1, nodes=1, models=1, replicas=2, step_s=0.01)
_BRIEF = Mix(short=0.0, long=0.0)
_BASE = Plan(minutes=0.1, rate=15, every_s=2.0, kinds=(), size=_SMALL, mix=_BRIEF, quiet_s=0.0)


@dataclass(frozen=True)
class Mutant:
    """`caught_by`: (invariant, kind) of violations, any of which shows the bug."""

    caught_by: frozenset[tuple[str, str]]
    plan: Plan = field(default=_BASE)


def _mutant(*caught_by: str, **changes: object) -> Mutant:
    pairs = frozenset((c.split(" ", 1)[0], c.split(" ", 1)[1]) for c in caught_by)
    return Mutant(pairs, replace(_BASE, **changes))  # type: ignore[arg-type]


_KILLS = {"kinds": ("replica_kill",), "minutes": 0.15}
_TEXT = ("I2 missing", "I2 duplicate", "I2 corrupted")

MUTANTS: dict[str, Mutant] = {
    "skip_token": _mutant(*_TEXT),
    "repeat_token": _mutant(*_TEXT),
    "two_end_markers": _mutant("I2 ends twice"),
    "swap_streams": _mutant(*_TEXT),
    "lose_last_delta": _mutant(*_TEXT),
    "misroute": _mutant("I2 finish", *_TEXT, size=replace(_SMALL, models=2), mix=Mix(short=0.0, long=1.0)),
    "leak_slot": _mutant("I3 load", mix=replace(_BRIEF, leaves=0.5), quiet_s=11.0),
    "leak_load": _mutant("I3 load", quiet_s=11.0),
    "wrong_position": _mutant(*_TEXT, "I2 ids", **_KILLS),
    "resume_one_missing": _mutant(*_TEXT, "I3 error", **_KILLS),
    "forget_moved": _mutant("I3 lost", **_KILLS),
    "lose_at_takeover": _mutant(
        *_TEXT, kinds=("proxy_kill",), minutes=0.15, size=replace(_SMALL, proxies=2), mix=replace(_BRIEF, returns=0.9)
    ),
    "drop_commit": _mutant("I1 forgotten", kinds=("head_kill",), minutes=0.3, every_s=5.0),
    "ignore_epoch_node": _mutant("I6 stale", kinds=("stale_head",)),
    "ignore_epoch_proxy": _mutant("I6 stale", kinds=("stale_head",)),
    "double_placement": _mutant("I4 double", "I4 orphan", kinds=("scheduler_kill",), quiet_s=3.0),
    "leave_orphan": _mutant("I4 orphan", "I4 count", kinds=("scale",), minutes=0.2, quiet_s=11.0),
    "no_cap": _mutant(
        "I5 queue", kinds=("model_kill",), minutes=0.15, rate=40, size=replace(_SMALL, max_waiting=2), every_s=4.0
    ),
}


def caught(name: str, verdict: Verdict) -> str:
    """The violation that shows this mutant; "" if there is none."""
    wanted = MUTANTS[name].caught_by
    return next((f"{v.invariant} {v.what}" for v in verdict.violations if (v.invariant, v.kind) in wanted), "")


def catch(name: str, folder: Path, mutant: str | None = None) -> str:
    """Run the mutant's plan; what shows it, or "". `mutant`: what to plant instead ("": nothing)."""
    plan = replace(MUTANTS[name].plan, mutant=name if mutant is None else mutant)
    asyncio.run(run(plan, folder))
    return caught(name, check(History.read(folder / "history"), simulated(plan.size.ends())))
