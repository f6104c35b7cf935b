"""Some hundred of the requests that nobody should send, against the real system; `make fuzz` sends thousands."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fuzz.run import Plan, run


@pytest.mark.timeout(300)
async def test_the_system_stands_what_nobody_should_send(tmp_path: Path) -> None:
    # A failure tells its seed, and how to send a case again.
    seed = int(os.environ.get("SEED") or 1)
    report = await run(Plan(seed=seed, cases=150, examples=10), tmp_path)
    assert not report.wrong(), report.told(seed)
    assert min(report.sent.values()) > 50
    assert report.answers > 0
