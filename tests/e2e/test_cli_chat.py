"""`headrace chat` against a double of the HTTP API: in a terminal and with a pipe."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from chat_fixtures import FakeApi, fake_api
from cli_fixtures import run_cli
from terminal_fixtures import Terminal

from headrace.process import child_env


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[FakeApi]:
    async with fake_api() as (fake, port):
        (tmp_path / "head").mkdir()
        where = {"http": f"127.0.0.1:{port}", "node": "127.0.0.1:1", "grpc": "127.0.0.1:1", "pid": 1}
        (tmp_path / "head/endpoint.json").write_text(json.dumps(where))
        yield fake


async def interrupted(terminal: Terminal, at: int) -> int:
    """Ctrl-C until there is a new prompt. Python's input() can miss one that comes just before it waits for a key."""
    for _ in range(30):
        terminal.type("\x03")
        with contextlib.suppress(AssertionError):
            return await terminal.until("> ", at, patience_s=2.0)
    raise AssertionError("Ctrl-C brings no new prompt")


async def test_a_terminal(api: FakeApi, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "headrace", "chat", "demo", "--system=Be brief.", "--temperature=0"]
    env = child_env({"HEADRACE_STATE_DIR": str(tmp_path), "HEADRACE_API_KEY": "secret"})
    async with Terminal(argv, env) as terminal:
        at = await terminal.until("> ")
        terminal.type("hallo\x7fo\n")  # line editing: a backspace
        at = await terminal.until("2 messages, café.\n> ", at)
        assert api.bodies[-1]["messages"][-1]["content"] == "hallo"
        assert api.bodies[-1]["temperature"] == 0
        terminal.type("again\n")
        at = await terminal.until("4 messages, café.\n> ", at)
        terminal.type("slow\n")
        at = await terminal.until("6 messages, café.", at)
        terminal.type("\x03")
        at = await terminal.until("[stopped]\n> ", at)
        await asyncio.wait_for(api.left.wait(), 30)  # the server was told
        terminal.type("fail\n")
        at = await terminal.until("Error: The replica is gone.\n> ", at)
        terminal.type("now\n")
        at = await terminal.until("8 messages, café.\n> ", at)  # the stopped turn counts, the failed one does not
        terminal.type("/reset\n")
        at = await terminal.until("Forgotten.\n> ", at)
        terminal.type("unfinished")
        at = await terminal.until("unfinished", at)
        at = await interrupted(terminal, at)
        terminal.type("fresh\n")
        at = await terminal.until("2 messages, café.\n> ", at)
        terminal.type("\x04")
        assert await terminal.ended() == 1  # a turn failed
    assert set(api.keys) == {"Bearer secret"}
    assert "Traceback" not in terminal.text


async def test_quit(api: FakeApi, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "headrace", "chat", "demo"]
    async with Terminal(argv, child_env({"HEADRACE_STATE_DIR": str(tmp_path)})) as terminal:
        await terminal.until("> ")
        terminal.type("/quit\n")
        assert await terminal.ended() == 0


async def test_an_unknown_model_is_told_before_anything_is_typed(api: FakeApi, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "headrace", "chat", "nope"]
    async with Terminal(argv, child_env({"HEADRACE_STATE_DIR": str(tmp_path)})) as terminal:
        assert await terminal.ended() == 1
        await terminal.until("Error: There is no model 'nope'. Those that exist: demo.\n")


async def test_every_line_of_a_pipe_is_a_turn(api: FakeApi, tmp_path: Path) -> None:
    got = await run_cli("chat", "demo", stdin="one\n\ntwo\n", env={"HEADRACE_STATE_DIR": str(tmp_path)})
    assert (got.code, got.out, got.err) == (0, "1 messages, café.\n3 messages, café.\n", "")


async def test_errors_of_a_pipe_are_sentences(api: FakeApi, tmp_path: Path) -> None:
    got = await run_cli("chat", "demo", stdin="fail\ntwo\n", env={"HEADRACE_STATE_DIR": str(tmp_path)})
    assert (got.code, got.err) == (1, "Error: The replica is gone.\n")
    assert got.out.endswith("1 messages, café.\n")


async def test_nothing_there(tmp_path: Path) -> None:
    got = await run_cli("chat", "demo", "--url=127.0.0.1:9", stdin="x\n", env={"HEADRACE_STATE_DIR": str(tmp_path)})
    sentence = "Error: Cannot reach Headrace at http://127.0.0.1:9; is it running? Start it with: headrace up\n"
    assert (got.code, got.out, got.err) == (1, "", sentence)


async def test_a_pipe_without_a_line_still_tells_that_there_is_no_such_model(api: FakeApi, tmp_path: Path) -> None:
    got = await run_cli("chat", "nosuch", env={"HEADRACE_STATE_DIR": str(tmp_path)})
    assert (got.code, got.out, got.err) == (1, "", "Error: There is no model 'nosuch'. Those that exist: demo.\n")
    got = await run_cli("chat", "demo", env={"HEADRACE_STATE_DIR": str(tmp_path)})
    assert (got.code, got.out, got.err) == (0, "", "")


async def test_a_line_that_is_no_text_is_told_and_the_next_is_asked(api: FakeApi, tmp_path: Path) -> None:
    got = await run_cli("chat", "demo", stdin=b"a\xff\ntwo\n", env={"HEADRACE_STATE_DIR": str(tmp_path)})
    assert (got.code, got.out) == (1, "1 messages, café.\n")
    assert got.err == "Error: Line 1 of the input is not UTF-8: byte 2 is 0xff.\n"


async def test_a_line_without_end_is_not_read_without_end(api: FakeApi, tmp_path: Path) -> None:
    got = await run_cli("chat", "demo", stdin=bytes(9 * 2**20), env={"HEADRACE_STATE_DIR": str(tmp_path)})
    assert (got.code, got.out, got.err) == (1, "", "Error: Line 1 of the input is longer than 8 MiB.\n")


async def test_an_answer_in_a_terminal_that_knows_few_letters(api: FakeApi, tmp_path: Path) -> None:
    env = {"HEADRACE_STATE_DIR": str(tmp_path), "PYTHONIOENCODING": "koi8-r"}
    got = await run_cli("chat", "demo", stdin="one\n", env=env)
    assert (got.code, got.out, got.err) == (0, "1 messages, caf?.\n", "")
