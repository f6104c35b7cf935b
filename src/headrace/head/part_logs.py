"""Where the logs of the parts on the head's machine are: what `headrace up` and the head itself write to files."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from headrace.errors import Unavailable

_OF_UP = ("head", "scheduler")


class PartLogs:
    """Finds logs under a state directory. A part is "head", "scheduler", or a proxy by its id."""

    def __init__(self, state_dir: Path) -> None:
        self._of_up = state_dir / "logs"
        self._of_proxies = state_dir / "head" / "proxies"

    def names(self, proxies: Iterable[str]) -> list[str]:
        """Parts that can be asked for, where `proxies` are there."""
        return [*_OF_UP, *sorted({*proxies, *self._files()})]

    def find(self, name: str, proxies: Iterable[str]) -> Path | None:
        """The log of the part called `name`; None if there is none. Unavailable if it writes to no file of ours."""
        if name in _OF_UP:
            if self._under_up():
                return self._of_up / f"{name}.log"
            raise Unavailable(
                f"The {name} writes its log to its standard error: look where it was started, or in the journal of "
                "what starts it. Only `headrace up` keeps it in a file."
            )
        if path := self._files().get(name):
            return path
        if name in proxies:
            raise Unavailable(
                f"The proxy {name} was not started by this head: its log is where it was started, at its standard "
                "error."
            )
        return None

    def _files(self) -> dict[str, Path]:
        # What is asked for is looked up among the files that there are, and never becomes a path.
        return {p.stem: p for p in self._of_proxies.glob("*.log") if p.stem != "spare"}

    def _under_up(self) -> bool:
        """Whether our own standard error is the file; one of an earlier `headrace up` may lie there."""
        try:
            return os.path.samestat(os.fstat(2), (self._of_up / "head.log").stat())
        except OSError:
            return False
