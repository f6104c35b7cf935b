"""Where a replica says first where it listens: a pipe, which needs no room on a disk."""

from __future__ import annotations

import json
import os
from typing import Any

from headrace.node.folder import address_in
from headrace.process import ProcessRecord

_MAX_BYTES = 4096


class Announcement:
    """A pipe of which a replica inherits the end `writes`. Close both ends; that one once the replica has it."""

    def __init__(self) -> None:
        """OSError if no descriptor is left."""
        self._reads, self.writes = os.pipe()
        os.set_blocking(self._reads, False)
        self._heard = b""

    def address(self, process: ProcessRecord) -> str | None:
        """The address that exactly this process has announced; None: none so far."""
        if self._reads >= 0 and len(self._heard) < _MAX_BYTES:
            try:
                self._heard += os.read(self._reads, _MAX_BYTES)
            except BlockingIOError:
                pass
        line, end, _ = self._heard.partition(b"\n")
        try:
            said: Any = json.loads(line) if end else None
        except ValueError:
            return None
        return address_in(said, process) if isinstance(said, dict) else None

    def close_writes(self) -> None:
        if self.writes >= 0:
            os.close(self.writes)
            self.writes = -1

    def close(self) -> None:
        self.close_writes()
        if self._reads >= 0:
            os.close(self._reads)
            self._reads = -1
