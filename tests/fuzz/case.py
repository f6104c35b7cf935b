"""One case: what is sent on one connection; and what came back."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

KEPT = 256 * 1024  # bytes of an answer


@dataclass(frozen=True)
class Case:
    """`parts` are sent with `pause_s` between them; then comes `after`:

    "answer": the request is whole, and is answered; "close": what was sent may be half a request, so we say that there
    is no more, and the server has to end; "reset" and "leave": go away after `pause_s`, with or without a farewell.
    `edits`: how many changes it was made of, each of which can be left out. `must`: statuses of which it has to have
    one, and `what` says why.
    """

    parts: tuple[bytes, ...]
    after: str = "answer"
    pause_s: float = 0.0
    edits: int = 0
    must: tuple[int, ...] = ()
    what: str = ""

    def sent(self) -> bytes:
        return b"".join(self.parts)


@dataclass
class Outcome:
    """`ended`: "closed" by the server, "left" by us, "silent": nothing for too long, "refused": no connection."""

    data: bytearray = field(default_factory=bytearray)
    size: int = 0
    ended: str = "closed"
    took_s: float = 0.0


Make = Callable[[int, int, frozenset[int]], Case]  # of a seed, a number, and the edits that are left out


def rng(seed: int, kind: str, number: int, edit: int = -1) -> random.Random:
    return random.Random(f"{seed} {kind} {number} {edit}")


async def send(address: tuple[str, int], case: Case, silence_s: float = 60.0) -> Outcome:
    """Do what the case says. `silence_s`: so long without a byte where one is due is too long."""
    outcome = Outcome()
    began = time.monotonic()
    try:
        reader, writer = await asyncio.open_connection(*address)
    except OSError as e:
        outcome.ended, outcome.data = "refused", bytearray(str(e).encode())
        return outcome
    reading = asyncio.create_task(_read(reader, outcome))
    try:
        with suppress(OSError):  # the server may have answered and closed before it read all
            for i, part in enumerate(case.parts):
                if i and case.pause_s:
                    await asyncio.sleep(case.pause_s)
                writer.write(part)
                await asyncio.wait_for(writer.drain(), silence_s)
        if case.after in ("reset", "leave"):
            await asyncio.sleep(case.pause_s)
            if case.after == "reset":
                _reset_on_close(writer)
            outcome.ended = "left"
            return outcome
        if case.after == "close":
            await asyncio.wait({reading}, timeout=0.2)
            with suppress(OSError):
                writer.write_eof()
        while not reading.done():
            before = outcome.size
            await asyncio.wait({reading}, timeout=silence_s)
            if not reading.done() and outcome.size == before:
                outcome.ended = "silent"
                return outcome
        return outcome
    except TimeoutError:
        outcome.ended = "silent"
        return outcome
    finally:
        outcome.took_s = time.monotonic() - began
        reading.cancel()
        writer.transport.abort()


def _reset_on_close(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def _read(reader: asyncio.StreamReader, outcome: Outcome) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            outcome.size += len(data)
            if len(outcome.data) < KEPT:
                outcome.data += data
