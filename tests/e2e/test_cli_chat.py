"""`headrace chat` against a double of the HTTP API: in a terminal and with a pipe."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cli_fixtures import run_cli
from terminal_fixtures import Terminal

from headrace.process import child_env


class FakeApi:
    """Answers with the number of messages it was sent; "slow" goes on until the client leaves; "fail" breaks off."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.left = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().split("\r\n")
                headers = {k.lower(): v for k, _, v in (x.partition(": ") for x in lines[1:] if x)}
                self.keys.append(headers.get("authorization", ""))
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                if not await self._answer(lines[0].split(" ")[1], body, reader, writer):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, path: str, body: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        model = json.loads(body)["model"] if body else path.rpartition("/")[2]
        if model != "demo":
            error = {"error": {"message": f"There is no model {model!r}. Those that exist: demo."}}
            self._whole(writer, "404 Not Found", error)
            return True
        if not body:
            self._whole(writer, "200 OK", {"id": "demo"})
            return True
        self.bodies.append(json.loads(body))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        words = self.bodies[-1]["messages"][-1]["content"]
        writer.write(b": demo is loading, 40 %\n\n")
        for piece in (f"{len(self.bodies[-1]['messages'])} ", "messages, caf", "é."):
            writer.write(b"data: " + json.dumps({"choices": [{"delta": {"content": piece}}]}).encode() + b"\n\n")
        if words == "fail":
            writer.write(b'data: {"error": {"message": "The replica is gone."}}\n\n')
        if words == "slow":
            await writer.drain()
            await reader.read()
            self.left.set()
        else:
            writer.write(b"data: [DONE]\n\n")
            await writer.drain()
        return False

    @staticmethod
    def _whole(writer: asyncio.StreamWriter, status: str, value: object) -> None:
        body = json.dumps(value).encode()
        writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[FakeApi]:
    fake = FakeApi()
    server = await asyncio.start_server(fake.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    (tmp_path / "head").mkdir()
    where = {"http": f"127.0.0.1:{port}", "node": "127.0.0.1:1", "grpc": "127.0.0.1:1", "pid": 1}
    (tmp_path / "head/endpoint.json").write_text(json.dumps(where))
    async with server:
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
        assert await terminal.ended() == 0
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
