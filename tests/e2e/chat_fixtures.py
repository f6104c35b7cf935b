"""A double of the HTTP API for those who chat."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any


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


@asynccontextmanager
async def fake_api() -> AsyncIterator[tuple[FakeApi, int]]:
    """A FakeApi that listens, and its port."""
    fake = FakeApi()
    async with await asyncio.start_server(fake.serve, "127.0.0.1", 0) as server:
        yield fake, server.sockets[0].getsockname()[1]
