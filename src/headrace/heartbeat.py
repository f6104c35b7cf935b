"""How a process lets whoever keeps it alive hear that its event loop goes round: a line a second on a Unix socket.

The socket is a file, so that the next keeper hears it too.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import structlog

from headrace.core.heartbeat import BEAT_S

log = structlog.get_logger()

_UNREAD_BYTES = 4096  # of one that listens and does not read


@dataclass(frozen=True, slots=True)
class Beat:
    """What is said. `trouble`: in a sentence, of a process that works all the same."""

    requests: int = 0
    trouble: str = ""

    def line(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"

    @staticmethod
    def read(line: bytes) -> Beat:
        """What `line` made; an empty one of anything else, which is a word too."""
        try:
            said = json.loads(line)
            return Beat(int(said["requests"]), str(said["trouble"]))
        except (ValueError, KeyError, TypeError):
            return Beat()


@contextmanager
def _short(path: Path) -> Iterator[str]:
    """A name for the path that fits into a socket's address, which holds about a hundred bytes."""
    if sys.platform != "linux":
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def _unlink(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)


def _bind(path: Path) -> socket.socket:
    _unlink(path)
    sock = socket.socket(socket.AF_UNIX)
    try:
        with _short(path) as name:
            sock.bind(name)
    except OSError:
        sock.close()
        raise
    return sock


class _Listener(asyncio.Protocol):
    def __init__(self, listeners: set[Any]) -> None:
        self._listeners = listeners

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport  # uvloop's is no asyncio.Transport
        self._listeners.add(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._listeners.discard(self._transport)


async def beat(path: Path, say: Callable[[], Beat]) -> None:
    """Say it to all who listen at `path`, until cancelled. Without the socket (a full disk) nobody hears us."""
    try:
        sock = _bind(path)
    except OSError as e:
        log.warning("no_heartbeat", path=str(path), error=str(e))
        return
    listeners: set[Any] = set()
    server = await asyncio.get_running_loop().create_unix_server(lambda: _Listener(listeners), sock=sock)
    try:
        while True:
            line = say().line()
            for one in list(listeners):
                if one.get_write_buffer_size() > _UNREAD_BYTES:
                    one.abort()
                else:
                    one.write(line)
            await asyncio.sleep(BEAT_S)
    finally:
        server.close()
        for one in list(listeners):
            one.abort()
        _unlink(path)


async def listen(path: Path) -> AsyncGenerator[Beat | None, None]:
    """What is said at `path` until that ends; None first, once it can be heard. OSError if it cannot be."""
    sock = socket.socket(socket.AF_UNIX)
    sock.setblocking(False)
    try:
        with _short(path) as name:
            await asyncio.get_running_loop().sock_connect(sock, name)
        reader, writer = await asyncio.open_unix_connection(sock=sock)
    except BaseException:
        sock.close()
        raise
    try:
        yield None
        while line := await reader.readline():
            yield Beat.read(line)
    finally:
        writer.transport.abort()
