"""Clients that leave, stop reading or read slowly."""

from __future__ import annotations

import asyncio
import json
import socket

from integration.proxy_fixtures import World, eventually, world
from integration.proxy_requests import CHAT, LONG, STREAM, content


async def test_client_leaves_a_stream():
    async with world(**LONG) as w:
        for path, body in (("/v1/chat/completions", STREAM), ("/v1/completions", {"model": "demo", "prompt": "a"})):
            before = len(w.replicas[0].aborts)
            more = {"n": 3, "max_tokens": 1_000_000}
            request = asyncio.create_task(w.client.post(path, json=body | more))
            await eventually(lambda: len(w.replicas[0].live) == 3)
            request.cancel()
            await asyncio.gather(request, return_exceptions=True)
            await eventually(lambda n=before: len(w.replicas[0].aborts) == n + 3)
            await w.clean()


async def test_client_leaves_while_it_waits():
    async with world(hold=True) as w:
        request = asyncio.create_task(w.client.post("/v1/chat/completions", json=CHAT))
        await eventually(lambda: w.replicas[0].live)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        await w.clean()
        assert len(w.replicas[0].aborts) == 1
        await w.replicas[0].die()
        await eventually(lambda: not any(s.ready for s in w.proxy.sessions))
        request = asyncio.create_task(w.client.post("/v1/chat/completions", json=STREAM))
        await eventually(lambda: w.proxy.serving.admission.waiting["demo"] == 1)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        await eventually(lambda: w.proxy.serving.admission.waiting["demo"] == 0)
        await w.clean()


async def slow_reader(w: World, tokens: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A client that asks for much and reads nothing."""
    host, _, port = w.proxy.address.rpartition(":")
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
    reader, writer = await asyncio.open_connection(sock=sock, limit=2**10)
    body = json.dumps(STREAM | {"max_tokens": tokens}).encode()
    fields = f"Host: localhost\r\nContent-Length: {len(body)}\r\nConnection: close"
    head = f"POST /v1/chat/completions HTTP/1.1\r\n{fields}\r\n\r\n"
    writer.write(head.encode() + body)
    return reader, writer


async def test_slow_reader_overflows_and_gets_an_error():
    big = {"texts": ["x" * 50_000], "tokens": 100_000}
    async with world(**big, settings={"stream_buffer_bytes": 100_000, "stall_s": 15.0}) as w:
        reader, writer = await slow_reader(w, 100_000)
        await eventually(lambda: w.replicas[0].aborts)  # nobody read: the replica is told to stop
        assert (await w.client.post("/v1/chat/completions", json=CHAT | {"max_tokens": 2})).status_code == 200
        everything = await reader.read()
        assert b"client_too_slow" in everything
        assert b"[DONE]" not in everything
        writer.close()
        await w.clean()


async def test_reader_that_stops_is_cut():
    big = {"texts": ["x" * 50_000], "tokens": 100_000}
    async with world(**big, settings={"stream_buffer_bytes": 100_000, "stall_s": 0.2}) as w:
        _, writer = await slow_reader(w, 100_000)
        await eventually(lambda: w.replicas[0].submits)
        await w.clean()
        await eventually(lambda: not w.proxy.server.server_state.connections)
        writer.close()


async def test_slow_reader_that_catches_up_misses_nothing():
    async with world(texts=["y" * 20_000], tokens=100, settings={"stream_buffer_bytes": 4_000_000}) as w:
        reader, writer = await slow_reader(w, 100)
        await eventually(lambda: w.replicas[0].submits)
        await eventually(lambda: not w.replicas[0].live)
        body = (await reader.read()).partition(b"\r\n\r\n")[2]
        text = b""
        while body:  # undo the chunks
            size, _, body = body.partition(b"\r\n")
            text += body[: int(size, 16)]
            body = body[int(size, 16) + 2 :]
        assert content(text.decode()) == ("y" * 2_000_000, [], True)
        writer.close()
        await w.clean()
