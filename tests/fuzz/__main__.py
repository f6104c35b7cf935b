"""`python -m fuzz`: SEED, MINUTES, KIND and CASE say what; RESULTS where. Exits with 1 if anything was found."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from fuzz.run import KINDS, Plan, run


def plan_of(env: Mapping[str, str]) -> Plan:
    """MINUTES is for all kinds together."""
    only = env.get("KIND") or ""
    if only not in ("", *KINDS):
        raise SystemExit(f"There is no kind {only!r}; there are {', '.join(KINDS)}.")
    if env.get("CASE") and not only:
        raise SystemExit("CASE needs KIND.")
    plan = Plan(int(env.get("SEED") or 1), only=only, case=int(env["CASE"]) if env.get("CASE") else None)
    minutes = float(env.get("MINUTES") or 4)
    return Plan(plan.seed, 60 * minutes / len(plan.kinds()), only=only, case=plan.case)


def main() -> int:
    plan = plan_of(os.environ)
    for signum in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, lambda *_: signal.raise_signal(signal.SIGINT))  # the run then stops what it started
    print(f"seed {plan.seed}, {plan.seconds:g} s each: {', '.join(plan.kinds())}", flush=True)
    results = Path(os.environ.get("RESULTS") or "results/fuzz").absolute()
    results.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"seed{plan.seed}-", dir=results))
    report = asyncio.run(run(plan, folder, lambda line: print(line, flush=True)))
    print(report.told(plan.seed), flush=True)
    (folder / "report.txt").write_text(report.told(plan.seed))
    for f in report.findings:
        (folder / f"{f.kind}-{f.number}.sent").write_bytes(f.sent)
    print(f"Logs and what was sent: {folder}", flush=True)
    return report.wrong()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("Stopped; nothing of it is left.", file=sys.stderr)
        sys.exit(130)
