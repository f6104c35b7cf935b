"""Numbers that must only grow, kept over restarts: the highest epoch that this node has obeyed (an older leader's
commands are refused), and the incarnation of its scheduler (of two the newer wins)."""

from __future__ import annotations

from pathlib import Path

import structlog

from headrace.errors import UserError
from headrace.process import write_atomic

log = structlog.get_logger()


class EpochFile:
    def __init__(self, path: Path) -> None:
        """UserError if the file is there and damaged: to guess would be to obey anybody."""
        self.path = path
        try:
            self.highest = self._written = int(path.read_text())
        except FileNotFoundError:
            self.highest = self._written = 0
        except (ValueError, OSError) as e:
            raise UserError(
                f"{path} cannot be read ({e}). If only one head controller is running, delete the file and start again."
            ) from e

    def accept(self, epoch: int) -> bool:
        """Whether to obey a command of this epoch. A higher one is on disk before this returns (if the
        disk can; else with a later command)."""
        if epoch < self.highest:
            return False
        if epoch > self._written:
            self.highest = epoch
            try:
                write_atomic(self.path, f"{epoch}\n")
                self._written = epoch
            except OSError as e:  # a full disk must not cut us off from the head
                log.error("epoch_unwritten", epoch=epoch, error=str(e))
        return True


def next_incarnation(path: Path, now_ns: int) -> int:
    """The number of this start of a scheduler: the time, or one more than last time if the clock was set back."""
    try:
        last = int(path.read_text())
    except (OSError, ValueError):
        last = 0
    incarnation = max(now_ns, last + 1)
    try:
        write_atomic(path, f"{incarnation}\n")
    except OSError as e:
        log.error("incarnation_unwritten", error=str(e))
    return incarnation
