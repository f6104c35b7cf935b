"""A command in a terminal of its own: Ctrl-C, and closing the window, do what they do for people."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping, Sequence

_LEAD = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
_STEERING = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07|\r")


class Terminal:
    """An async context manager. `text` is all that was shown, without control sequences."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str]) -> None:
        self._argv, self._env = argv, env
        self._raw = b""
        self._more = asyncio.Event()
        self._open = True

    async def __aenter__(self) -> Terminal:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        self.process = subprocess.Popen(  # noqa: ASYNC220 - asyncio's own would reap it behind our back
            [sys.executable, "-c", _LEAD, *self._argv],
            stdin=slave, stdout=slave, stderr=slave, env={**self._env, "TERM": "xterm"}, start_new_session=True,
        )  # fmt: skip
        os.close(slave)
        os.set_blocking(self._master, False)
        asyncio.get_running_loop().add_reader(self._master, self._read)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def _read(self) -> None:
        try:
            data = os.read(self._master, 65536)
        except OSError:  # EIO: the other side is closed
            data = b""
        if data:
            self._raw += data
        else:
            asyncio.get_running_loop().remove_reader(self._master)
        self._more.set()

    @property
    def text(self) -> str:
        return _STEERING.sub("", self._raw.decode(errors="replace"))

    async def until(self, words: str, after: int = 0, patience_s: float = 60.0) -> int:
        """Wait until `words` are shown past position `after`; the position behind them."""
        try:
            async with asyncio.timeout(patience_s):
                while (at := self.text.find(words, after)) < 0:
                    self._more.clear()
                    await self._more.wait()
        except TimeoutError:
            raise AssertionError(f"never saw {words!r} in:\n{self.text[after:]}") from None
        return at + len(words)

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def close(self) -> None:
        """What closing the window does: SIGHUP to the foreground processes."""
        if self._open:
            self._open = False
            asyncio.get_running_loop().remove_reader(self._master)
            os.close(self._master)

    async def ended(self, patience_s: float = 60.0) -> int:
        """Wait for the command's end; its exit code."""
        return await asyncio.wait_for(asyncio.to_thread(self.process.wait), patience_s)
