"""What bodies can do to a proxy: over HTTP, beside a stream of somebody else."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
import zlib
from contextlib import suppress

import pytest
from proxy_fixtures import eventually, raw_request, world
from proxy_requests import CHAT, error

PATH = "/v1/chat/completions"
UNFINISHED = f"POST {PATH} HTTP/1.1\nHost: localhost\nContent-Type: application/json\nContent-Length: 8000000\n"
BODIES = {
    "fields": json.dumps(CHAT | {f"u{i}": i for i in range(600_000)})[:8_000_000].encode(),
    "numbers": json.dumps(CHAT | {"metadata": list(range(1_000_000))}).encode(),
    "lists": b'{"model":"demo","messages":' + b"[[]]," * 1_500_000,
    "fields of messages": json.dumps(
        CHAT | {"messages": [CHAT["messages"][0] | {f"u{i}": 1 for i in range(190)}] * 4096}
    ).encode()[:8_000_000],
    "a long prompt": json.dumps(CHAT | {"messages": [{"role": "user", "content": "words " * 80_000}]}).encode(),
}


@pytest.mark.parametrize("name", BODIES)
async def test_no_body_holds_the_loop(name: str):
    async with world() as w:
        worst = 0.0

        async def others() -> None:
            """All of one thread: what one turn of the loop takes of it, whoever else the machine works for."""
            nonlocal worst
            last = time.thread_time()
            while True:
                await asyncio.sleep(0)
                now = time.thread_time()
                worst, last = max(worst, now - last), now

        watch = asyncio.create_task(others())
        r = await w.client.post(PATH, content=BODIES[name], headers={"Content-Type": "application/json"})
        watch.cancel()
        assert r.status_code == 200 if name == "a long prompt" else r.status_code in (400, 413)
        assert worst < 0.25
        await w.clean()
        assert w.proxy.serving.bodies.held_bytes == 0


async def test_unfinished_bodies_are_bounded_in_sum():
    async with world(settings={"max_held_bytes": 4_000_000}) as w:
        bodies, opened = w.proxy.serving.bodies, []
        for _ in range(6):
            reader, writer = await raw_request(w.proxy.address, UNFINISHED, b" " * 1_000_000)
            opened.append((reader, writer))
        async with asyncio.timeout(20):
            answers = [asyncio.create_task(r.read(400)) for r, _ in opened]
            done, waiting = await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED)
            head = done.pop().result().decode()
        assert "429" in head.split("\r\n")[0]
        assert "retry-after: 1" in head
        assert bodies.held_bytes <= 4_000_000
        assert (await w.client.post(PATH, json=CHAT)).status_code == 200, "what is small goes on"
        for task in waiting:
            task.cancel()
        for _, writer in opened:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
        await eventually(lambda: bodies.held_bytes == 0)


async def test_compressed_bodies():
    async with world() as w:
        plain = json.dumps(CHAT).encode()
        for name, data in (("gzip", gzip.compress(plain)), ("deflate", zlib.compress(plain)), ("identity", plain)):
            head = {"Content-Type": "application/json", "Content-Encoding": name}
            assert (await w.client.post(PATH, content=data, headers=head)).status_code == 200, name
        text = {"Content-Type": "text/plain", "Content-Encoding": "gzip"}
        r = await w.client.post("/v1/chat/demo", content=gzip.compress(b"hello"), headers=text)
        assert r.status_code == 200
        assert w.replicas[0].submits[-1].prompt.messages_json == b'[{"role":"user","content":"hello"}]'
        bomb = gzip.compress(bytes(100_000_000))
        error(await w.client.post("/v1/chat/demo", content=bomb, headers=text), 413, code="request_too_large")
        error(await w.client.post("/v1/chat/demo", content=b"hello", headers=text), 400)
        br = await w.client.post(PATH, content=plain, headers={"Content-Encoding": "br"})
        assert "br is not taken" in error(br, 415)


async def test_charsets_that_are_none():
    async with world() as w:
        for charset in ("punycode", "idna", "undefined", '"unicode_escape"', "x" * 5000, "*=utf-8''x"):
            head = {"Content-Type": f"text/plain; charset={charset}"}
            r = await w.client.post("/v1/chat/demo", content=b"zaaaaaaa" * 40_000, headers=head)
            assert r.status_code in (200, 415) if charset.startswith("*") else r.status_code == 415, charset
        r = await w.client.post(
            "/v1/chat/demo", content="grüße".encode("latin-1"), headers={"Content-Type": 'text/plain; Charset="LATIN1"'}
        )
        assert r.status_code == 200


async def test_a_query_beside_json():
    async with world() as w:
        body = {"messages": CHAT["messages"]}
        r = await w.client.post("/v1/chat/demo?max_tokens=2", json=body)
        assert r.json()["usage"]["completion_tokens"] == 2
        error(await w.client.post("/v1/chat/demo?max_tokens=2", json=body | {"max_tokens": 3}), 400, "max_tokens")
        error(await w.client.post("/v1/chat/demo?nonsense=2", json=body), 400, "nonsense")


async def test_names_with_an_organisation():
    async with world(model="org/name") as w:
        assert (await w.client.get("/v1/models/org/name")).json()["id"] == "org/name"
        assert (await w.client.post("/v1/chat/org/name", json={"prompt": "x"})).status_code == 200
        assert (await w.client.post("/v1/chat/org%2Fname", json={"prompt": "x"})).status_code == 200
        assert (await w.client.post(PATH, json=CHAT | {"model": "org/name"})).status_code == 200
