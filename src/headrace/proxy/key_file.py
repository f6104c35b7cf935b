"""The API keys as their file has them now: it is read again when it has changed."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import structlog

from headrace.errors import UserError
from headrace.proxy.security import Keys
from headrace.proxy.ticket import Caller

log = structlog.get_logger()

_LOOK_S = 1.0

_Seen = tuple[int, ...]


class KeyFile:
    """A key that is taken away ends nothing that runs. A file that cannot be taken leaves the keys as they were.

    `trouble`: why the file is not taken as it is, in a sentence; "" if it is.
    """

    def __init__(self, path: Path) -> None:
        """UserError if it cannot be taken: see Keys.read."""
        self.trouble = ""
        self._path = path
        self._known = self._waits = self._stat()
        self._keys = Keys.read(path)

    def check(self, authorization: bytes) -> Caller:
        """See Keys.check."""
        return self._keys.check(authorization)

    async def watch(self) -> None:
        """Follow the file until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_S)
            self.look()

    def look(self) -> None:
        """Read the file if it has changed, and then stayed as it is since the last look: it may be half written."""
        now = self._stat()
        if now == self._known:
            self._waits = now
            return
        if now != self._waits:
            self._waits = now
            return
        self._known = now
        try:
            self._keys = Keys.read(self._path)
        except UserError as e:
            self.trouble = f"{e.message} The keys that were read before it changed are still in use."
            log.error("api_keys_not_read", error=self.trouble)
            return
        self.trouble = ""
        log.info("api_keys_read", path=str(self._path))

    def _stat(self) -> _Seen:
        """What tells one state of the file from another; empty if there is none."""
        try:
            s = os.stat(self._path)
        except OSError:
            return ()
        return s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns
