"""Clients that wait, that do not read, and that leave: with a real replica process (simulated engine)."""

from __future__ import annotations

import asyncio
import fcntl
import json
import resource
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from integration.proxy_fixtures import World, eventually, raw_request, world
from test_proxy_replica import both

from headrace.errors import UserError
from headrace.process import raise_open_files
from headrace.proxy.app import within_open_files
from headrace.proxy.server import UNSENT_BYTES

CHAT: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "hi"}]}
STREAM = CHAT | {"stream": True}
SIOCOUTQ = 0x5411
# One prompt token a step: nearly all wait for their first token for as long as they are there.
IDLE = {"prefill_chunk": 1, "step_s": 0.2, "max_running": 600, "answer_tokens": 10**6, "kv_tokens": 10**9}


def head_and_body(body: dict[str, Any]) -> tuple[str, bytes]:
    data = json.dumps(body).encode()
    return f"POST /v1/chat/completions HTTP/1.1\nHost: localhost\nContent-Length: {len(data)}", data


async def slow_reader(w: World, body: dict[str, Any]) -> socket.socket:
    """A client with a small buffer that asks and reads nothing."""
    host, _, port = w.proxy.address.rpartition(":")
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
    head, data = head_and_body(body)
    await asyncio.get_running_loop().sock_sendall(sock, head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + data)
    return sock


def held(w: World) -> int:
    """Bytes of answers that this machine holds for clients: in the kernel, and in the server's transports."""
    total = 0
    for connection in w.proxy.server.server_state.connections:
        transport = connection.transport
        sock = transport.get_extra_info("socket")
        queued = struct.unpack("i", fcntl.ioctl(sock.fileno(), SIOCOUTQ, b"\0" * 4))[0]
        total += queued + transport.get_write_buffer_size()
    return total


async def test_what_is_held_for_a_client_that_does_not_read():
    """In the kernel, the server and the writer together: 256 KiB, and what one write was over it. Others go on."""
    async with world(texts=["x" * 1000], tokens=10**6, step_s=0.001, settings={"stall_s": 30.0}) as w:
        short = CHAT | {"max_tokens": 50}
        others = [asyncio.create_task(w.client.post("/v1/chat/completions", json=short)) for _ in range(4)]
        sock = await slow_reader(w, STREAM)
        most = 0

        def over() -> bool:
            nonlocal most
            most = max(most, held(w))
            return bool(w.replicas[0].aborts)

        await eventually(over)  # told to stop, because nobody reads
        writers = 256 * 1024 - 64 * 1024 - UNSENT_BYTES
        assert 64 * 1024 < most <= 256 * 1024 - writers + 8192  # the rest is the writer's own
        assert {r.status_code for r in await asyncio.gather(*others)} == {200}
        assert (await w.client.post("/v1/chat/completions", json=CHAT | {"max_tokens": 2})).status_code == 200
        sock.close()
        await w.clean()


async def test_a_client_that_reads_nothing_is_cut():
    async with world(texts=["x" * 1000], tokens=10**6, step_s=0.001, settings={"stall_s": 0.5}) as w:
        sock = await slow_reader(w, STREAM)
        await eventually(lambda: w.replicas[0].submits)
        await eventually(lambda: not w.proxy.server.server_state.connections)
        assert held(w) == 0
        await w.clean()
        sock.close()


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_goes_away_frees_the_engine_within_a_second(tmp_path: Path, how: str, stream: bool):
    async with both(tmp_path, answer_tokens=10**6, step_s=0.01, max_running=1) as (w, _):
        session = next(iter(w.proxy.sessions))

        async def ask() -> asyncio.StreamWriter:
            head, data = head_and_body(CHAT | {"stream": stream, "max_tokens": 8000})
            return (await raw_request(w.proxy.address, head, data))[1]

        def leave(writer: asyncio.StreamWriter) -> None:
            if how == "reset":
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

        running = await ask()
        await eventually(lambda: session.load.running == 1)
        spare = await ask()  # waits at the replica
        await eventually(lambda: session.load.waiting == 1)
        queued = await ask()  # waits in the proxy
        await eventually(lambda: w.proxy.serving.admission.waiting["demo"] == 1)
        for writer, gone in (
            (queued, lambda: w.proxy.serving.admission.waiting["demo"] == 0),
            (spare, lambda: session.load.waiting == 0),
            (running, lambda: session.load.running == 0),
        ):
            step = session.load.step
            leave(writer)
            await eventually(gone)
            assert session.load.step - step <= 100  # a second of the engine's, which is longer on a busy machine
        await w.clean()


async def test_five_hundred_idle_streams(tmp_path: Path):
    """None is refused, all are told that they wait, and all go when their clients do. The 10,000: benchmarks."""
    async with both(tmp_path, **IDLE) as (w, _):
        session = next(iter(w.proxy.sessions))
        await eventually(lambda: session.load.max_running == 600)
        head, data = head_and_body(STREAM)
        clients = []
        for _ in range(10):
            clients += await asyncio.gather(*(raw_request(w.proxy.address, head, data) for _ in range(50)))
        await eventually(lambda: session.load.running == 500)
        assert len(w.proxy.serving.active) == 500
        assert w.proxy.serving.admission.waiting["demo"] == 0
        heads = await asyncio.gather(*(reader.readuntil(b"\r\n\r\n") for reader, _ in clients))
        assert all(h.startswith(b"HTTP/1.1 200") for h in heads)
        told = await asyncio.gather(*(reader.readuntil(b"\n\n") for reader, _ in clients))
        assert sum(b": waiting for the first token of demo" in t for t in told) > 490  # a few have had it
        for _, writer in clients:
            writer.close()
        await eventually(lambda: session.load.running == 0)
        await w.clean()


def test_a_proxy_raises_its_own_limit_of_open_files():
    """In a process of its own, since a limit that was lowered cannot be raised again."""
    code = (
        "import resource; from headrace.process import raise_open_files;"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, 700)); print(raise_open_files(),"
        " resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "700 (700, 700)"
    assert raise_open_files() >= resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def test_too_few_open_files():
    assert within_open_files(16384, 10**6) == 16384
    assert within_open_files(16384, 4096) == 4096 - 128
    with pytest.raises(UserError, match="ulimit -n"):
        within_open_files(16384, 200)
