"""`headrace head`, killed by itself at one point of its work with the store, of which it knows nothing.

The points are the moment before and the moment after each COMMIT; argv[1] says at which, counted from 1, and argv[2] is
a file from whose existence on they count.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
from typing import Any

_left, _armed = int(sys.argv.pop(1)), sys.argv.pop(1)
_connect = sqlite3.connect


def _point() -> None:
    global _left
    if os.path.exists(_armed):
        _left -= 1
        if _left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


class _Connection(sqlite3.Connection):
    def commit(self) -> None:
        if self.in_transaction:
            _point()
            super().commit()
            _point()


def _dying(*args: Any, **more: Any) -> sqlite3.Connection:
    return _connect(*args, factory=_Connection, **more)


if __name__ == "__main__":
    sqlite3.connect = _dying  # type: ignore[assignment]
    from headrace.cli import main

    main()
