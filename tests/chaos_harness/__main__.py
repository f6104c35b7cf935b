"""`python -m chaos_harness`: one long run, then the mutants. SEED, MINUTES, RATE, EVERY, ENGINE and RESULTS say how."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from chaos_harness import report
from chaos_harness.check_streams import simulated, uninterrupted
from chaos_harness.checker import Verdict, check
from chaos_harness.faults import KINDS
from chaos_harness.history import History
from chaos_harness.load import Mix
from chaos_harness.mutants import MUTANTS, catch
from chaos_harness.real_model import RealModel, counter
from chaos_harness.run import Plan, run
from chaos_harness.system import Size

_QUESTIONS = (
    "What is machine learning?", "Explain about Machine Learning?", "What is a token?", "What is a language model?",
    "How does a replica start?", "What is overfitting?", "What is Headrace?", "What does the head do?",
)  # fmt: skip
_LENGTHS = (40, 200, 400)  # tokens; small models have little to say, and who is brief is hit by nothing
_TOPICS = ("the engine of a car", "a dog at the sea", "the bread of a village", "why rivers bend", "a lost letter")
_REAL = Mix(prompts=tuple(f"Write a long story about {t}." for t in _TOPICS), lengths=(60, 200, 300), usage=1.0)
_REAL_START_S = 900.0  # converted, and loaded three times, on few processors
_VLLM_QUIET_S = 120.0
_ANY_ENGINE = tuple(k for k in KINDS if k not in ("engine_hangs", "engine_slow", "rolling_update"))


def plan_of(env: Mapping[str, str]) -> Plan:
    """ENGINE: simulated; openvino or vllm, with the demo model or MODEL, a folder with a real one."""
    engine, model = env.get("ENGINE") or "simulated", env.get("MODEL")
    base = Plan()
    if engine != "simulated":
        size = Size(models=1, replicas=3, engine=engine)
        mix = Mix(prompts=_QUESTIONS, lengths=_LENGTHS, endless=_LENGTHS[1:])
        if engine == "vllm":  # it takes half a minute to start, or minutes where several do on few processors
            size = replace(size, start_s=600.0)
        if model:
            size, mix = replace(size, replicas=2, source=str(Path(model).absolute()), start_s=_REAL_START_S), _REAL
        args = json.loads(env.get("ENGINE_ARGS") or "{}")
        base = Plan(kinds=_ANY_ENGINE, size=replace(size, engine_args=args), mix=mix)
    return replace(
        base,
        seed=int(env.get("SEED") or 1),
        minutes=float(env.get("MINUTES") or 5),
        rate=float(env.get("RATE") or 20),
        every_s=float(env.get("EVERY") or 5),
        quiet_s=_VLLM_QUIET_S if engine == "vllm" else base.quiet_s,
    )


def _checked(plan: Plan, history: History) -> Verdict:
    if plan.size.engine == "simulated":
        return check(history, simulated(plan.size.ends()))
    if plan.size.source.startswith("builtin:"):  # so sure of itself that no rounding makes a difference
        return check(history, uninterrupted(history.clients))
    real = RealModel(history.clients, counter(f"{plan.size.source}/tokenizer.json"))
    return check(history, real.expected, real.judge)


def judged(plan: Plan, folder: Path, say: bool = True) -> Verdict:
    """Run, check, report."""
    folder.mkdir(parents=True, exist_ok=True)
    asyncio.run(run(plan, folder))
    history = History.read(folder / "history")
    verdict = _checked(plan, history)
    report.write(verdict, history, folder)
    if say:
        print(report.line(verdict), flush=True)
        print(report.explain(verdict, history), flush=True)
    return verdict


def main() -> int:
    results = Path(os.environ.get("RESULTS") or "results/chaos").absolute()
    only = os.environ.get("MUTANTS", "all")
    failed = False
    for signum in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, lambda *_: signal.raise_signal(signal.SIGINT))  # the run then stops what it started
    if os.environ.get("ENGINE") == "vllm" and not importlib.util.find_spec("vllm"):
        print("There is no vLLM in this environment: `make chaos ENGINE=vllm` makes one that has it.", file=sys.stderr)
        return 2
    if only in ("all", "none"):
        plan = plan_of(os.environ)
        folder = Path(tempfile.mkdtemp(prefix=f"seed{plan.seed}-", dir=_made(results)))
        verdict = judged(plan, folder)
        print(f"The report: {folder}/report.html", flush=True)
        failed = bool(verdict.violations or verdict.void)
    if only != "none":
        names = [n for n in MUTANTS if only in ("all", n)]
        caught = 0
        for name in names:
            folder = Path(tempfile.mkdtemp(prefix=f"mutant-{name}-", dir=_made(results)))
            why = catch(name, folder)
            caught += bool(why)
            print(f"  mutant {name}: {'caught: ' + why if why else 'NOT CAUGHT'}", flush=True)
        print(f"mutants caught {caught}/{len(names)}", flush=True)
        failed = failed or caught < len(names)
    return failed


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("Stopped; nothing of it is left.", file=sys.stderr)
        sys.exit(130)
