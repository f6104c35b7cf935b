"""The writer keeps order and loses nothing, however slow its reader is, up to its limit."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.proxy.writer import Writer


class Server:
    """An ASGI server's send, and a connection, under our control."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.messages: list[Any] = []
        self.aborted = False
        self.closed = False

    async def send(self, message: Any) -> None:
        await self.open.wait()
        self.messages.append(message)

    def chunk(self, data: bytes) -> bool:
        if not self.open.is_set():
            return False
        self.messages.append({"type": "http.response.body", "body": data, "more_body": True})
        return True

    def abort(self) -> None:
        self.aborted = True
        self.open.set()

    def close(self) -> None:
        self.closed = True

    @property
    def body(self) -> bytes:
        return b"".join(m.get("body", b"") for m in self.messages)

    @property
    def complete(self) -> bool:
        return bool(self.messages) and self.messages[-1].get("more_body") is False


def writer(server: Server, limit_bytes: int = 10**9) -> Writer:
    return Writer(server.send, server, limit_bytes=limit_bytes)


steps = st.lists(st.sampled_from(["write", "write", "stop", "go", "turn"]), max_size=30)


@settings(max_examples=60, deadline=None)
@given(steps, st.booleans())
def test_bytes_come_out_as_they_went_in(script, start_blocked):
    async def main() -> None:
        server = Server()
        w = writer(server)
        if start_blocked:
            server.open.clear()
        w.start(200, [])
        expected = b""
        for i, step in enumerate(script):
            if step == "write":
                expected += f"<{i}>".encode()
                w.write(f"<{i}>".encode())
            elif step == "stop":
                server.open.clear()
            elif step == "go":
                server.open.set()
            else:
                await asyncio.sleep(0)
        w.end(b"end")
        w.end(b"twice")
        w.write(b"late")
        server.open.set()
        async with asyncio.timeout(10):
            await w.ended()
        assert server.body == expected + b"end"
        assert server.complete
        assert server.messages[0]["type"] == "http.response.start"
        assert [m.get("more_body") for m in server.messages].count(False) == 1

    asyncio.run(main())


async def test_ready_reader_gets_each_write_at_once():
    server = Server()
    w = writer(server)
    w.start(200, [])
    for i in range(3):
        w.write(b"x")
        assert len(server.messages) == 2 + i  # no turn of the loop in between


async def test_overflow_drops_and_tells_once_but_keeps_the_last_word():
    server = Server()
    w = writer(server, limit_bytes=100_000)
    told: list[int] = []

    def overflow() -> None:
        told.append(1)
        w.end(b"!")

    w.on_overflow = overflow
    w.start(200, [])
    server.open.clear()
    for _ in range(50):
        w.write(b"x" * 10_000)
    assert told == [1]
    server.open.set()
    await w.ended()
    assert server.complete
    assert server.body.endswith(b"!")
    assert len(server.body) <= 100_000


async def test_nothing_is_written_after_a_gap():
    server = Server()
    w = writer(server, limit_bytes=100_000)
    w.start(200, [])
    server.open.clear()
    for i in range(10):
        w.write(bytes([i]) * 10_000)
    assert w.overflowed
    server.open.set()
    await asyncio.sleep(0.01)
    before = server.body
    w.write(b"later")
    w.end(b"!")
    await w.ended()
    assert server.body == before + b"!"
    assert list(dict.fromkeys(before)) == list(range(len(before) // 10_000))


async def test_broken_off_answers_are_not_complete():
    server = Server()
    w = writer(server)
    w.start(200, [])
    w.write(b"a")
    w.break_off()
    await w.ended()
    assert server.closed
    assert not server.complete
    blocked = Server()
    w = writer(blocked)
    w.start(200, [])
    blocked.open.clear()
    w.write(b"a")
    w.break_off()
    assert blocked.aborted
