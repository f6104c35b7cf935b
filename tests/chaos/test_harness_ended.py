"""What `make chaos`, `make fuzz` and `make bench` have started ends with them, however they are ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
CONTAIN = [sys.executable, str(ROOT / "scripts/contain.py")]
# Two generations, each in a session of its own, that no signal but KILL ends; the one between them has ended.
FAMILY = """
import os, signal, subprocess, sys, time
for s in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT): signal.signal(s, signal.SIG_IGN)
if sys.argv[1] != "0":
    subprocess.Popen([sys.executable, "-c", sys.argv[2], str(int(sys.argv[1]) - 1), sys.argv[2], sys.argv[3]],
                     start_new_session=True)
if sys.argv[1] == "1": sys.exit()
open(sys.argv[3] + "/" + sys.argv[1], "w").close()
time.sleep(300)
"""


def until(check: Callable[[], object], limit_s: float = 90.0) -> None:
    end = time.monotonic() + limit_s
    while not check():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.05)


def marked(mark: str) -> list[int]:
    """Living processes whose environment has `mark` as the value of WHOSE."""
    found: list[int] = []
    for p in psutil.process_iter():
        try:
            if p.status() != psutil.STATUS_ZOMBIE and p.environ().get("WHOSE") == mark:
                found.append(p.pid)
        except psutil.Error:
            continue
    return found


def named(path: Path) -> list[int]:
    """Living processes that name `path` in their command or environment, but for those that run the harness."""
    found: list[int] = []
    for p in psutil.process_iter():
        try:
            said = "\0".join([*p.cmdline(), *p.environ().values()])
            if p.status() != psutil.STATUS_ZOMBIE and f"{path}/" in said:
                found.append(p.pid)
        except psutil.Error:
            continue
    return found


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_nothing_outlives_what_contains_it(tmp_path: Path, signum: signal.Signals) -> None:
    # TERM that the command heeds ends it at once; its family is deaf.
    command = f"{sys.executable} -c '{FAMILY}' 2 \"$FAMILY\" {tmp_path} & wait"
    env = {**os.environ, "WHOSE": str(tmp_path), "FAMILY": FAMILY}
    outer = subprocess.Popen([*CONTAIN, "sh", "-c", command], env=env)
    until((tmp_path / "0").exists)
    until((tmp_path / "2").exists)
    assert len(marked(str(tmp_path))) >= 4
    outer.send_signal(signum)
    outer.wait(60)
    assert not marked(str(tmp_path))


def test_nor_the_death_of_who_started_it(tmp_path: Path) -> None:
    command = f"{sys.executable} -c '{FAMILY}' 2 \"$FAMILY\" {tmp_path} & wait"
    env = {**os.environ, "WHOSE": str(tmp_path), "FAMILY": FAMILY}
    start = "import subprocess, sys; subprocess.Popen(sys.argv[1:]).wait()"
    outer = subprocess.Popen([sys.executable, "-c", start, *CONTAIN, "sh", "-c", command], env=env)
    until((tmp_path / "0").exists)
    outer.kill()
    outer.wait()
    until(lambda: not marked(str(tmp_path)), 60)


@pytest.mark.parametrize(("command", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137)])
def test_the_commands_own_code_is_the_exit_code(command: str, code: int) -> None:
    assert subprocess.run([*CONTAIN, "sh", "-c", command]).returncode == code


@pytest.mark.parametrize(
    ("target", "signum"), [("chaos", signal.SIGTERM), ("chaos", signal.SIGKILL), ("fuzz", signal.SIGTERM)]
)
def test_a_harness_that_is_ended_leaves_nothing(tmp_path: Path, target: str, signum: signal.Signals) -> None:
    venv = Path(sys.prefix)
    command = ["make", f"VENV={venv}", "-o", f"{venv}/.dev", target, "MUTANTS=none", "MINUTES=5", "RATE=5"]
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))} | {"RESULTS": str(tmp_path)}
    with (tmp_path / "output").open("wb") as output:
        make = subprocess.Popen(command, cwd=ROOT, env=env, stdout=output, stderr=output, start_new_session=True)
    until(lambda: list(tmp_path.glob("**/replicas/*/process.json")))
    assert len(named(tmp_path)) > 4
    os.kill(make.pid, signum)  # make alone
    make.wait(60)
    until(lambda: not named(tmp_path), 60)
