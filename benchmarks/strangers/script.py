"""What one stranger sends, as values; and the process that sends it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

_TOLD = 300  # bytes of an answer that are kept


@dataclass(frozen=True)
class Where:
    """The port that is attacked, and a key that may use it."""

    host: str
    port: int
    key: str

    def head(self, path: str, *fields: str, method: str = "POST", key: bool = True, close: bool = True) -> bytes:
        """A request's head; `fields` are whole lines."""
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self.host}:{self.port}", *fields]
        lines += [f"Authorization: Bearer {self.key}"] if key else []
        lines += ["Connection: close"] if close else []
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def post(self, path: str, body: bytes, *fields: str, media: str = "application/json", key: bool = True) -> bytes:
        """A whole request with a body."""
        return self.head(path, f"Content-Type: {media}", f"Content-Length: {len(body)}", *fields, key=key) + body


@dataclass(frozen=True)
class Talk:
    """One connection: `parts` with `pause_s` between them, then the answer until it ends.

    `leave_s`: go away rudely so many seconds after all was sent. `stay_s`: read nothing, hold the connection so long.
    """

    parts: tuple[bytes, ...]
    pause_s: float = 0.0
    leave_s: float | None = None
    stay_s: float | None = None


@dataclass(frozen=True)
class Script:
    """What a stranger does, `at_once` connections at a time. `body_bytes`: what memory is compared with."""

    talks: tuple[Talk, ...]
    body_bytes: int
    at_once: int = 64
    limit_s: float = 15.0

    @staticmethod
    def of(*requests: bytes, at_once: int = 1, limit_s: float = 15.0) -> Script:
        """Requests that wait for their answers, one after the other unless told."""
        size = max(map(len, requests)) * min(at_once, len(requests))
        return Script(tuple(Talk((r,)) for r in requests), size, at_once, limit_s)


@dataclass(frozen=True)
class Hostile:
    """One kind of input. `origin`: what it is. `model`: which replica it is for. `quick`: part of the short list."""

    name: str
    origin: str
    make: Callable[[Where], Script]
    model: str = "demo"
    quick: bool = False


@dataclass
class Told:
    """What came of a script. `statuses`: by HTTP status, or "no answer", "cut", "left", "late", "refused"."""

    statuses: Counter[str] = field(default_factory=Counter)
    took_s: float = 0.0
    first: str = ""


async def _talk(where: Where, talk: Talk, told: Told) -> str:
    try:
        reader, writer = await asyncio.open_connection(where.host, where.port)
    except OSError:
        return "refused"

    async def send() -> None:
        with suppress(OSError):  # who answers early need not read to the end
            for i, part in enumerate(talk.parts):
                if i and talk.pause_s:
                    await asyncio.sleep(talk.pause_s)
                writer.write(part)
                await writer.drain()

    sending = asyncio.create_task(send())
    try:
        if talk.leave_s is not None or talk.stay_s is not None:
            await sending
            await asyncio.sleep(talk.leave_s or talk.stay_s or 0.0)
            return "left"
        seen = b""
        size = 0
        try:
            while data := await reader.read(65536):
                size += len(data)
                seen = (seen + data)[:_TOLD] if len(seen) < _TOLD else seen
        except OSError:
            if not size:
                return "cut"
        if not seen.startswith(b"HTTP/1."):
            return "no answer" if not seen else "no HTTP"
        told.first = told.first or seen.decode("latin-1")
        return seen[9:12].decode("latin-1")
    finally:
        sending.cancel()
        writer.transport.abort()


async def play(where: Where, script: Script) -> Told:
    """Do all of it, or what can be done within its limit."""
    told = Told()
    gate = asyncio.Semaphore(script.at_once)
    began = time.monotonic()

    async def one(talk: Talk) -> None:
        async with gate:
            left = began + script.limit_s - time.monotonic()
            try:
                told.statuses[await asyncio.wait_for(_talk(where, talk, told), max(left, 0.0))] += 1
            except TimeoutError:
                told.statuses["late"] += 1

    await asyncio.gather(*(one(t) for t in script.talks))
    told.took_s = time.monotonic() - began
    return told


def stranger(pipe: Connection, name: str, where: Where) -> None:
    """A process: makes the input of this name, tells its size, waits for a word, and tells what came of it."""
    from strangers.inputs import INPUTS

    script = next(i for i in INPUTS if i.name == name).make(where)
    pipe.send(script.body_bytes)
    pipe.recv()
    pipe.send(asyncio.run(play(where, script)))
