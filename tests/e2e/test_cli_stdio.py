"""Every command with streams that are closed, full or abandoned: its own exit code, and at most one sentence."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from chat_fixtures import fake_api
from cli_fixtures import FakeHead, Result, deployment, fake_head, run_cli

from headrace.cli import COMMANDS
from headrace.core.types import DeployRequest
from headrace.process import child_env

FULL = "Error: Cannot write the output: No space left on device.\n"

# What is run, and its exit code; all those write to standard output.
ONCE = {
    "--help": 0,
    "--version": 0,
    "status --help": 0,
    "status": 0,
    "status --json": 0,
    "nodes": 0,
    "models": 0,
    "logs demo": 0,
    "explain x": 0,
    "deploy demo": 0,
    "scale demo 1": 0,
    "rollback demo": 0,
    "revisions demo": 0,
    "adapters demo": 0,
    "adapters remove demo a": 0,
    "delete demo": 0,
    "chat demo": 0,
    "doctor": 0,
}
# These only have errors to tell.
WRONG = {
    "statsu": 2,
    "deploy": 2,
    "deploy other": 1,
    "chat other": 1,
    "head --http_port=x": 2,
    "head --config=/": 1,
    "scheduler --head_address=a:1": 1,
    "proxy --http_host=0.0.0.0": 1,
    "up --model=/nowhere": 1,
    "token --role=x": 2,
    "join /nowhere": 1,
}


def test_no_command_is_left_out() -> None:
    assert {words.split()[0] for words in (*ONCE, *WRONG)} >= set(COMMANDS)


@pytest.fixture
async def head(tmp_path: Path) -> AsyncIterator[FakeHead]:
    async with fake_head(tmp_path) as head, fake_api() as (_, port):
        path = tmp_path / "head/endpoint.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"http": f"127.0.0.1:{port}"}))
        yield head


async def redirected(head: FakeHead, state: Path, words: str, redirection: str, stdin: str = "hello\n") -> Result:
    """One command, as a shell starts it with a redirection."""
    head.deployments = {"demo": deployment(DeployRequest("demo"), 1)}
    line = f'exec "{sys.executable}" -m headrace {words} {redirection}'
    process = await asyncio.create_subprocess_exec(
        "sh", "-c", line, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE, env=child_env({"HEADRACE_STATE_DIR": str(state)}),
    )  # fmt: skip
    try:
        out, err = await asyncio.wait_for(process.communicate(stdin.encode()), 60)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return Result(process.returncode, out.decode(), err.decode())


def ours(err: str) -> str:
    """Standard error without the progress of what loads."""
    return "".join(line for line in err.splitlines(keepends=True) if not line.startswith("demo: "))


@pytest.mark.parametrize("words", ONCE)
async def test_what_happens_to_the_output_is_no_accident(head: FakeHead, tmp_path: Path, words: str) -> None:
    usual = await redirected(head, tmp_path, words, "")
    assert (usual.code, ours(usual.err)) == (ONCE[words], "")
    assert usual.out
    got = await redirected(head, tmp_path, words, ">&-")
    assert (got.code, got.out, ours(got.err)) == (usual.code, "", "")
    got = await redirected(head, tmp_path, words, "2>&- <&-")
    assert (got.code, got.err) == (usual.code, "")
    assert got.out or words == "chat demo"
    got = await redirected(head, tmp_path, words, ">/dev/full")
    assert (got.code, got.out, ours(got.err)) == (1, "", FULL)


@pytest.mark.parametrize("words", WRONG)
async def test_an_error_is_one_sentence_or_silence(head: FakeHead, tmp_path: Path, words: str) -> None:
    usual = await redirected(head, tmp_path, words, "")
    assert usual.code == WRONG[words]
    assert usual.out == ""
    assert usual.err.count("Error: ") == 1
    assert not any(word in usual.err for word in ("Traceback", "Unexpected"))
    assert await redirected(head, tmp_path, words, ">&- <&-") == usual
    for redirection in (">&- 2>&-", "2>/dev/full"):
        assert await redirected(head, tmp_path, words, redirection) == Result(usual.code, "", ""), redirection


@pytest.mark.parametrize("words", [w for w in ONCE if "help" not in w])
async def test_a_reader_that_has_gone_is_no_failure(head: FakeHead, tmp_path: Path, words: str) -> None:
    head.deployments = {"demo": deployment(DeployRequest("demo"), 1)}
    read, write = os.pipe()
    os.close(read)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "headrace", *words.split(), stdin=asyncio.subprocess.PIPE, stdout=write,
        stderr=asyncio.subprocess.PIPE, env=child_env({"HEADRACE_STATE_DIR": str(tmp_path)}),
    )  # fmt: skip
    os.close(write)
    _, err = await asyncio.wait_for(process.communicate(b"hello\n"), 60)
    assert (process.returncode, ours(err.decode())) == (0, "")


@pytest.mark.parametrize("words", ["status --watch", "status --watch --json"])
async def test_a_watch_ends_when_nobody_reads_it_any_more(head: FakeHead, tmp_path: Path, words: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "headrace", *words.split(), stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE, env=child_env({"HEADRACE_STATE_DIR": str(tmp_path)}),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    await asyncio.wait_for(process.stdout.readline(), 60)
    process.stdout._transport.close()  # type: ignore[attr-defined]
    assert await asyncio.wait_for(process.wait(), 60) == 0  # although nothing changes any more
    assert await process.stderr.read() == b""


@pytest.mark.parametrize("redirection", [">&- 2>&- <&-", ">/dev/full 2>/dev/full"])
def test_a_part_that_serves_needs_no_stream(tmp_path: Path, redirection: str) -> None:
    line = f'exec "{sys.executable}" -m headrace head --http_port=0 --node_port=0 --grpc_port=0 --num_proxies=0'
    env = child_env({"HEADRACE_STATE_DIR": str(tmp_path)})
    process = subprocess.Popen(["sh", "-c", f"{line} {redirection}"], env=env)
    try:
        for _ in range(1200):
            if (tmp_path / "head/endpoint.json").exists() or process.poll() is not None:
                break
            signal.sigtimedwait([], 0.05)
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def test_words_that_are_no_text_are_told(tmp_path: Path) -> None:
    for words, said in (("deploy 'a\xff'", r"b'a\xff'"), ("status --state_dir='/x\xff'", r"b'--state_dir=/x\xff'")):
        line = f'exec "{sys.executable}" -m headrace {words}'.encode("latin-1")
        done = subprocess.run(["sh", "-c", line], capture_output=True, timeout=60, env=child_env())
        assert (done.returncode, done.stdout.decode()) == (2, "")
        assert done.stderr.decode() == f"Error: {said} is not UTF-8.\n"
    env = {**child_env(), "HEADRACE_NODE_ID": os.fsdecode(b"\xff")}
    done = subprocess.run([sys.executable, "-m", "headrace", "scheduler"], capture_output=True, timeout=60, env=env)
    assert done.returncode == 2
    assert done.stderr.decode() == r"""Error: b'HEADRACE_NODE_ID=\xff' is not UTF-8.""" + "\n"


@pytest.mark.parametrize("env", [{"COLUMNS": "1"}, {"COLUMNS": "x"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}, {"TERM": "?"}])
@pytest.mark.parametrize("words", ["status", "models", "deploy demo"])
async def test_odd_terminals(head: FakeHead, tmp_path: Path, words: str, env: dict[str, str]) -> None:
    head.deployments = {"demo": deployment(DeployRequest("demo"), 1)}
    got = await run_cli(*words.split(), env={"HEADRACE_STATE_DIR": str(tmp_path), **env})
    assert (got.code, ours(got.err)) == (0, "")


def test_a_user_whom_the_machine_does_not_know(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can be another user")
    env = {k: v for k, v in child_env().items() if k not in ("HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME")}
    command = ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups", sys.executable, "-m", "headrace"]
    if subprocess.run([*command, "--version"], capture_output=True, env=env, cwd="/").returncode:
        pytest.skip("another user may not read this checkout")
    done = subprocess.run([*command, "status"], capture_output=True, text=True, timeout=60, env=env, cwd="/")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: Cannot reach the head")
    for words in (["head"], ["up"], ["scheduler"]):  # they have no folder
        done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=60, env=env, cwd="/")
        assert done.returncode == 1, words
        assert done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.startswith("Error: "), done.stderr
        assert "Unexpected" not in done.stderr
