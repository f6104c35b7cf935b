"""Two minutes of the chaos harness over the real system, and a few of the bugs that it must see."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from chaos_harness import report
from chaos_harness.__main__ import judged
from chaos_harness.history import History
from chaos_harness.mutants import catch
from chaos_harness.run import Plan
from chaos_harness.system import Size


@pytest.mark.timeout(400)
def test_faults_at_random_lose_nothing(tmp_path: Path) -> None:
    # A failure tells its seed.
    seed = int(os.environ.get("SEED") or 1)
    plan = Plan(seed=seed, minutes=1.5, rate=8, every_s=4.0, size=Size(proxies=2, replicas=2))
    verdict = judged(plan, tmp_path)
    assert not verdict.violations, report.explain(verdict, History.read(tmp_path / "history"))
    assert not verdict.void, verdict.void
    assert verdict.moves.failed_over > 0
    assert verdict.state.acknowledged > 0
    assert (tmp_path / "report.html").exists()


@pytest.mark.timeout(200)
@pytest.mark.parametrize("bug", ["swap_streams", "resume_one_missing", "lose_at_takeover"])
def test_a_planted_bug_is_seen(tmp_path: Path, bug: str) -> None:
    assert catch(bug, tmp_path)
