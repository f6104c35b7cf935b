"""Connections, byte by byte: HTTP/1.0, hosts, several requests at once, clients that are slow, too many, or gone."""

from __future__ import annotations

import asyncio
import functools
import json
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop
from integration.proxy_fixtures import World, answer, eventually, world
from integration.proxy_requests import CHAT

from headrace.proxy import protocol

BODY = json.dumps(CHAT).encode()
STREAM = json.dumps(CHAT | {"stream": True}).encode()


def uv(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test on the loop that proxies run on, which closes, pauses and writes otherwise than asyncio's."""

    @functools.wraps(test)
    def run(*args: Any, **given: Any) -> None:
        uvloop.run(test(*args, **given))

    return run


def post(body: bytes = BODY, version: str = "1.1", host: str = "\r\nHost: localhost", more: str = "") -> bytes:
    head = f"POST /v1/chat/completions HTTP/{version}{host}\r\nContent-Length: {len(body)}{more}\r\n\r\n"
    return head.encode() + body


GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def connect(w: World, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = w.proxy.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    return reader, writer


async def exchange(w: World, data: bytes) -> bytes:
    """Everything that is answered until the server closes."""
    reader, writer = await connect(w, data)
    try:
        return await reader.read()
    finally:
        writer.close()


async def head_of(reader: asyncio.StreamReader) -> bytes:
    return (await reader.readuntil(b"\r\n\r\n")).lower()


def connections(w: World) -> int:
    return len(w.proxy.server.server_state.connections)


@pytest.fixture
def complaints(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """What uvicorn and asyncio have said when the test is over; nothing is right."""
    said: list[str] = []
    yield said
    said += [r.getMessage() for r in caplog.records if r.name.startswith(("uvicorn", "asyncio"))]
    assert said == []


# --- HTTP/1.0 ---


@pytest.mark.parametrize("host", ["", "\r\nHost: localhost"])
@uv
async def test_an_old_client_gets_a_stream_to_the_end_of_its_connection(host: str):
    async with world() as w:
        got = await exchange(w, post(STREAM, "1.0", host, "\r\nConnection: keep-alive\r\nExpect: 100-continue"))
        head, _, body = got.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"transfer-encoding" not in head.lower()
        assert b"connection: close" in head.lower()
        lines = body.decode().splitlines()
        assert lines[-2] == "data: [DONE]"
        assert all(not line or line.startswith(("data: ", "id: ")) for line in lines)
        got = await exchange(w, post(BODY, "1.0", host))
        head, _, body = got.partition(b"\r\n\r\n")
        assert f"content-length: {len(body)}" in head.decode().lower()
        assert json.loads(body)["choices"][0]["message"]["content"] == answer(8)
        await w.clean()


@pytest.mark.parametrize("how", ["cut off", "its end"])
@uv
async def test_an_old_client_can_tell_that_its_answer_is_not_whole(how: str):
    text = b"POST /v1/chat/demo HTTP/1.0\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nhi"
    async with world(tokens=10**6, step_s=0.005) as w:
        reader, _ = await connect(w, text)
        await reader.readuntil(b"w3 ")
        if how == "cut off":
            w.proxy.serving.fail_all(protocol.InvalidRequest("Enough."))
        else:
            for connection in list(w.proxy.server.server_state.connections):
                connection.transport.close()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        await w.clean()


@uv
async def test_versions_that_are_not_spoken():
    async with world() as w:
        for version in ("0.9", "2.0"):
            assert (await exchange(w, post(version=version))).startswith(b"HTTP/1.1 505 ")
        for version in ("3.0", "1.7"):
            assert (await exchange(w, post(version=version))).startswith(b"HTTP/1.1 400 ")


# --- hosts ---


@pytest.mark.parametrize(
    "host", ["", "\r\nHost: localhost\r\nHost: localhost", "\r\nHost:", "\r\nHost: a b", "\r\nHost: a/b", "\r\nHost: é"]
)
@uv
async def test_a_request_names_one_host(host: str):
    async with world() as w:
        got = await exchange(w, post(host=host))
        assert got.startswith(b"HTTP/1.1 400 ")
        assert b"Host" in got
        assert not w.replicas[0].submits


# --- several requests at once ---


@uv
async def test_several_requests_at_once_are_answered_in_order():
    async with world() as w:
        reader, writer = await connect(w, GET + post() + GET)
        for length in (15, None, 15):
            head = await head_of(reader)
            assert head.startswith(b"http/1.1 200 ")
            size = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            assert length in (None, size)
            await reader.readexactly(size)
        writer.close()
        await w.clean()


@pytest.mark.parametrize(
    "data",
    [
        GET + GET,
        post() + GET,
        GET + post(),
        post(STREAM) + post(STREAM),
        post() + b"GET / HT",
        post(STREAM) + b"x\r\n\r\n",
    ],
)
@pytest.mark.parametrize("wait_s", [0.0, 0.02])
@uv
async def test_a_client_that_leaves_is_no_error(data: bytes, wait_s: float, complaints: list[str]):
    async with world(tokens=10**6, step_s=0.005) as w:
        for reset in (True, False):
            for _ in range(5):
                _, writer = await connect(w, data)
                await asyncio.sleep(wait_s)
                if reset:
                    writer.transport.abort()
                else:
                    writer.close()
        await eventually(lambda: not connections(w) and not w.proxy.server.server_state.tasks)
        await w.clean()


@uv
async def test_what_comes_after_a_good_request_spoils_no_answer():
    async with world(step_s=0.01) as w:
        got = await exchange(w, post(STREAM) + b"\x00rubbish\r\n\r\n")
        assert got.count(b"HTTP/1.1 ") == 1
        assert got.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        got = await exchange(w, post() + GET + post(b"").replace(b"Length: 0", b"Length: x"))
        assert got.count(b"HTTP/1.1 200 OK") == got.count(b"HTTP/1.1 ") == 2
        broken = post(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked") + b"zz\r\n"
        got = await exchange(w, post() + GET + broken)
        assert got.count(b"HTTP/1.1 200 OK") == got.count(b"HTTP/1.1 ") == 2
        assert (await exchange(w, broken)).startswith(b"HTTP/1.1 400 ")
        await w.clean()


# --- bad HTTP ---


@uv
async def test_bad_http_is_told_once_a_minute_and_counted(capsys: pytest.CaptureFixture[str], complaints: list[str]):
    async with world() as w:
        for _ in range(50):
            assert (await exchange(w, b"NONSENSE\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
        for _ in range(5):
            got = await exchange(w, b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close, upgrade\r\n"
                                    b"Upgrade: websocket\r\n\r\n")  # fmt: skip
            assert got.startswith(b"HTTP/1.1 200 ")
        await eventually(lambda: not connections(w))
        page = (await w.client.get("/metrics")).text
        assert 'headrace_connections_closed_total{reason="bad_http"} 50.0' in page
    assert capsys.readouterr().out.count("connection_closed") == 1


# --- clients that are slow ---


@uv
async def test_an_answer_that_nobody_reads_is_cut(monkeypatch: pytest.MonkeyPatch):
    """Small ones and large ones, with and without an end of the connection to come."""
    monkeypatch.setattr("headrace.proxy.server.KEEP_ALIVE_S", 0.4)
    async with world(settings={"stall_s": 0.4}) as w:
        host, _, port = w.proxy.address.rpartition(":")
        ends = (b"GET /docs HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", b"NONSENSE\r\n\r\n")
        many = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 60
        for data in (many, many + ends[0].replace(b"Host: a", b"Host: localhost"), many + ends[1]):
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setblocking(False)
            await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
            await asyncio.get_running_loop().sock_sendall(sock, data)
            await eventually(lambda: connections(w) == 1)
            await eventually(lambda: not connections(w))
            sock.close()
        page = (await w.client.get("/metrics")).text
        assert 'headrace_connections_closed_total{reason="unread"} 3.0' in page


@uv
async def test_a_body_that_comes_after_its_answer_keeps_no_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(protocol, "LATE_BODY_S", 0.3)
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    keys.chmod(0o600)
    async with world(settings={"api_keys_file": keys}) as w:
        reader, writer = await connect(w, post(b"", more="\r\nX: 1").replace(b"Length: 0", b"Length: 100000"))
        assert (await head_of(reader)).startswith(b"http/1.1 401 ")

        async def trickle() -> None:
            while True:
                writer.write(b"x")
                await asyncio.sleep(0.02)

        task = asyncio.create_task(trickle())
        await eventually(lambda: not connections(w))
        task.cancel()
        writer.close()
        # One that comes soon is read over, and the connection lives on.
        reader, writer = await connect(w, post(b"").replace(b"Length: 0", b"Length: 10"))
        await head_of(reader)
        writer.write(b"0123456789")
        await asyncio.sleep(0.5)
        writer.write(GET)
        assert b"HTTP/1.1 200 OK" in await reader.readuntil(b'"ok"}')
        writer.close()


# --- too many ---


@asynccontextmanager
async def silent(w: World, count: int) -> AsyncIterator[list[asyncio.StreamReader]]:
    made = [await connect(w, b"") for _ in range(count)]
    try:
        yield [reader for reader, _ in made]
    finally:
        for _, writer in made:
            writer.close()


@uv
async def test_the_oldest_idle_connection_makes_room(complaints: list[str]):
    async with world(tokens=10**6, step_s=0.005, settings={"max_idle": 5}) as w:
        streaming, stream = await connect(w, post(STREAM))
        await streaming.readuntil(b"w3 ")
        resting, rest = await connect(w, GET)
        await resting.readuntil(b'"ok"}')
        async with silent(w, 4) as quiet:
            await eventually(lambda: w.proxy.server.clients.idle_count == 5)
            async with silent(w, 3) as late:
                assert await resting.read() == b""
                assert await quiet[0].read() == await quiet[1].read() == b""
                assert w.proxy.server.clients.idle_count == 5
                assert not any(r.at_eof() for r in (*quiet[2:], *late, streaming))
                assert (await w.client.get("/health")).status_code == 200
        stream.close()
        rest.close()
        await w.clean()
