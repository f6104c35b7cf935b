"""Real processes: groups, sessions, identity, and the ways to be told to stop."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import uvloop

from headrace.process import (
    LIFELINE_ENV,
    Child,
    ProcessRecord,
    child_env,
    explain_exit,
    group_members,
    kill_all,
    processes_with_env,
    write_atomic,
)

linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


def python(code: str, **options: object) -> Child:
    env = child_env({"PYTHONUNBUFFERED": "1", **{k: str(v) for k, v in dict(options.pop("env", {})).items()}})  # type: ignore[call-overload]
    return Child.spawn([sys.executable, "-S", "-c", code], env=env, **options)  # type: ignore[arg-type]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


async def test_exit_code_output_and_group_of_a_child(tmp_path: Path) -> None:
    child = python(
        "import os; print(os.getpgrp() == os.getpid() == os.getsid(0)); os._exit(7)", output=tmp_path / "log"
    )
    assert await child.wait() == 7
    assert text(tmp_path / "log") == "True\n"
    assert not child.alive()
    assert not child.record.alive()
    assert await child.stop() == 7


async def test_output_is_appended_to(tmp_path: Path) -> None:
    for _ in range(2):
        await python("print('x')", output=tmp_path / "log").wait()
    assert text(tmp_path / "log") == "x\nx\n"


async def test_a_program_that_is_not_there() -> None:
    with pytest.raises(OSError, match="no-such"):
        Child.spawn(["/no-such/program"], env={})


async def test_stop_is_polite_first(tmp_path: Path) -> None:
    child = python(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('bye'), sys.exit(0)))\n"
        "print('up'); time.sleep(60)",
        output=tmp_path / "log",
    )
    await until(lambda: "up" in text(tmp_path / "log"))
    assert await child.stop(term_s=20) == 0
    assert "bye" in text(tmp_path / "log")


STUBBORN = (
    "import os, signal, subprocess, sys, time\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "sub = [sys.executable, '-S', '-c', 'import time; time.sleep(60)']\n"
    "a = subprocess.Popen(sub)\n"
    "b = subprocess.Popen(sub, process_group=0)\n"
    "print(a.pid, b.pid); time.sleep(60)"
)


async def test_stop_kills_who_ignores_term_and_all_it_started(tmp_path: Path) -> None:
    child = python(STUBBORN, output=tmp_path / "log")
    await until(lambda: "\n" in text(tmp_path / "log"))
    started = [ProcessRecord.of(int(pid)) for pid in text(tmp_path / "log").split()]
    assert all(started)
    assert await child.stop(term_s=0.2) == -signal.SIGKILL
    assert not any(r and r.alive() for r in started)


async def test_survivors_of_a_dead_leader_are_killed(tmp_path: Path) -> None:
    child = python(
        "import subprocess, sys\n"
        "p = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(60)'])\n"
        "print(p.pid); p.returncode = 0",
        output=tmp_path / "survivor",
    )
    assert await child.wait() == 0
    survivor = ProcessRecord.of(int(text(tmp_path / "survivor")))
    assert survivor
    assert survivor.alive()
    assert child.members() == [survivor.pid]
    await child.kill_group()
    assert not survivor.alive()


async def test_adopted_process_is_the_same_and_can_be_stopped() -> None:
    child = python("import time; time.sleep(60)")
    record = ProcessRecord.from_json(child.record.to_json())
    found = Child.adopt(record)
    assert found
    assert found.pid == child.pid
    ended = asyncio.ensure_future(found.wait())
    assert await found.stop() is None
    assert await ended is None
    assert await child.wait() == -signal.SIGTERM
    assert Child.adopt(record) is None


async def test_another_process_of_the_same_number_is_not_touched() -> None:
    child = python("import time; time.sleep(60)")
    earlier = ProcessRecord(child.pid, child.record.start_time - 1)
    assert not earlier.alive()
    assert Child.adopt(earlier) is None
    stale = Child(earlier)
    async with asyncio.timeout(10):
        await stale.wait()
        await stale.kill_group()
        await kill_all([earlier])
    assert child.alive()
    await child.stop()


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@linux
async def test_a_zombie_is_gone() -> None:
    child = python("pass")
    await until(lambda: not child.record.alive())
    assert _state(child.pid) == "Z"
    assert group_members(child.pid) == []
    assert ProcessRecord.of(child.pid) is None
    assert await child.wait() == 0


@linux
async def test_a_process_whose_first_thread_ended_still_lives(tmp_path: Path) -> None:
    child = python(
        "import ctypes, platform, threading, time\n"
        "threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "print('up', flush=True)\n"
        "ctypes.CDLL(None).syscall({'x86_64': 60}.get(platform.machine(), 93), 0)",
        output=tmp_path / "log",
    )
    await until(lambda: _state(child.pid) == "Z")
    assert child.record.alive()
    assert child.members() == [child.pid]
    await child.stop(term_s=0.2)
    assert not child.record.alive()


async def test_waiting_works_under_uvloop_too() -> None:
    async def story() -> list[int | None]:
        child = python("import time; time.sleep(60)")
        found = Child.adopt(child.record)
        assert found
        waits = [asyncio.ensure_future(w) for w in (child.wait(), child.wait(), found.wait())]
        await child.stop()
        return await asyncio.gather(*waits)

    def run() -> list[int | None]:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(story())

    assert await asyncio.to_thread(run) == [-signal.SIGTERM, -signal.SIGTERM, None]


async def test_waiting_works_without_pidfd(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(pid: int) -> int:
        raise OSError(38, "not implemented")

    monkeypatch.setattr(os, "pidfd_open", refused, raising=False)
    assert await python("raise SystemExit(3)").wait() == 3


async def test_a_process_left_alone_runs_on() -> None:
    child = python("import time; time.sleep(60)")
    record = child.record
    child.leave()
    del child
    found = Child.adopt(record)
    assert found
    await found.stop()
    os.waitpid(record.pid, 0)  # noqa: ASYNC222


@linux
async def test_processes_are_found_by_what_they_were_started_with(tmp_path: Path) -> None:
    child = python(
        "import subprocess, sys, time\n"
        "p = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(60)'], start_new_session=True)\n"
        "print(p.pid); time.sleep(60)",
        output=tmp_path / "log",
        env={"HEADRACE_TEST_MARK": str(tmp_path)},
    )
    await until(lambda: "\n" in text(tmp_path / "log"))

    def found() -> list[ProcessRecord]:
        return [r for r, e in processes_with_env("HEADRACE_TEST_MARK") if e["HEADRACE_TEST_MARK"] == str(tmp_path)]

    # A process shows no environment for a moment at its start, after its parent has heard that it runs.
    both = {child.pid, int(text(tmp_path / "log"))}
    await until(lambda: {r.pid for r in found()} == both)
    records = found()
    await child.stop()
    assert any(r.alive() for r in records)
    await kill_all(records)
    assert not any(r.alive() for r in records)


TOLD = "import asyncio, headrace.process as p\nprint('why:', asyncio.run(p.told_to_stop()))"
SIGNALS = {s.name: s for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}


async def _told(tmp_path: Path, tell: Callable[[Child], Awaitable[None] | None], **options: object) -> str:
    log = tmp_path / "log"
    code = "print('up', flush=True)\n" + TOLD
    child = Child.spawn([sys.executable, "-c", code], output=log, **({"env": child_env()} | options))  # type: ignore[arg-type]
    await until(lambda: "up" in text(log))
    await until(lambda: _catches(child.pid))
    told = tell(child)
    if told is not None:
        await told
    assert await child.wait() == 0
    return text(log).partition("why: ")[2].strip()


def _catches(pid: int) -> bool:
    """True once the process handles SIGHUP, the last that told_to_stop takes."""
    if sys.platform != "linux":
        return True
    line = next(x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("SigCgt"))
    return bool(int(line.split()[1], 16) & 1 << (signal.SIGHUP - 1))


@pytest.mark.parametrize("name", SIGNALS)
async def test_a_signal_tells_to_stop(tmp_path: Path, name: str) -> None:
    assert await _told(tmp_path, lambda child: os.kill(child.pid, SIGNALS[name])) == name


async def test_the_end_of_the_lifeline_tells_to_stop(tmp_path: Path) -> None:
    ours_end, childs_end = os.pipe()
    held = [childs_end]  # the parent holds the writing end; the child reads
    try:
        env = child_env({LIFELINE_ENV: str(ours_end)})
        why = await _told(tmp_path, lambda _: os.close(held.pop()), env=env, pass_fds=(ours_end,))
    finally:
        os.close(ours_end)
        for fd in held:
            os.close(fd)
    assert why == "parent ended"


def test_the_environment_of_a_child_is_an_allow_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    monkeypatch.setenv("HEADRACE_LIFELINE_FD", "3")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    env = child_env({"EXTRA": "1"})
    assert "AWS_SECRET_ACCESS_KEY" not in env
    assert child_env(sources=True)["AWS_SECRET_ACCESS_KEY"] == "s"
    assert "HEADRACE_LIFELINE_FD" not in env
    assert env["OMP_NUM_THREADS"] == "2"
    assert env["EXTRA"] == "1"


@pytest.mark.parametrize("damaged", ["", "{", "[]", '{"pid": 1}', '{"pid": "x", "start_time": 1}', "null"])
def test_a_damaged_record_is_told(damaged: str) -> None:
    with pytest.raises(ValueError, match="not a process record"):
        ProcessRecord.from_json(damaged)


def test_atomic_write_leaves_nothing_else(tmp_path: Path) -> None:
    for word in ("one", "two"):
        write_atomic(tmp_path / "f", word)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("f", "two")]


@pytest.mark.parametrize(
    ("code", "words"),
    [(None, "ended"), (1, "exited with code 1"), (-9, "was killed by SIGKILL"), (-99, "was killed by signal 99")],
)
def test_exit_codes_in_words(code: int | None, words: str) -> None:
    assert explain_exit(code) == words
