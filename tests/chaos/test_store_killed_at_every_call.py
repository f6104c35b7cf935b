"""A process that commits is killed at each call that changes its file: also in the middle of SQLite's own work."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from store_that_commits import STEPS

from headrace.core.state import State, apply
from headrace.head.store import SqliteStore
from headrace.process import child_env

pytestmark = pytest.mark.long

HERE = Path(__file__).parent


@pytest.fixture
def shim(tmp_path: Path) -> Path:
    cc = shutil.which("cc")
    if cc is None or sys.platform != "linux":
        pytest.skip("needs a C compiler, on Linux")
    made = tmp_path / "die.so"
    subprocess.run([cc, "-shared", "-fPIC", "-O1", "-o", made, HERE / "die_at_syscall.c", "-ldl"], check=True)
    return made


async def test_every_acknowledged_commit_is_there_and_the_next_wholly_or_not_at_all(tmp_path: Path, shim: Path) -> None:
    states = [State()]
    for changes in STEPS:
        states.append(apply(states[-1], changes))
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(HERE / "store_that_commits.py"), str(tmp_path), stdout=asyncio.subprocess.PIPE,
        env=child_env({"LD_PRELOAD": str(shim)}),
    )  # fmt: skip
    out, _ = await asyncio.wait_for(process.communicate(), 100)
    lives = [tuple(map(int, line.split())) for line in out.splitlines()]
    assert [status for status, _ in lives] == [signal.SIGKILL] * (len(lives) - 1) + [0]
    assert len(lives) > 8 * len(STEPS), "a commit is many calls"
    as_acknowledged = 0
    for at, (_, acknowledged) in enumerate(lives, 1):
        store = await SqliteStore.open(tmp_path / str(at) / "head" / "state.db")
        found = await store.load()
        await store.close()
        assert found in states[acknowledged : acknowledged + 2], f"killed at call {at}, after step {acknowledged}"
        as_acknowledged += found == states[acknowledged]
    assert lives[-1] == (0, len(STEPS))
    assert 0 < len(lives) - as_acknowledged < len(lives) / 2, "some were killed between commit and acknowledgement"
