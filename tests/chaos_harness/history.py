"""The logs of a run: one JSON object a line, in one file for each kind of witness."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

Event = dict[str, Any]
WITNESSES = ("clients", "faults", "admin", "processes", "queues", "commands")


class Recorder:
    """Appends events, each with its time `t` in seconds since the begin of the run."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._begin = time.monotonic()
        self._files: dict[str, TextIO] = {w: (folder / f"{w}.jsonl").open("w", buffering=1) for w in WITNESSES}

    def now(self) -> float:
        return time.monotonic() - self._begin

    def write(self, witness: str, ev: str, **more: Any) -> None:
        self._files[witness].write(json.dumps({"ev": ev, "t": round(self.now(), 3), **more}) + "\n")

    def close(self) -> None:
        for f in self._files.values():
            f.close()


@dataclass(frozen=True)
class History:
    """Everything that the witnesses of one run said, by witness, in order."""

    clients: list[Event] = field(default_factory=list)
    faults: list[Event] = field(default_factory=list)
    admin: list[Event] = field(default_factory=list)
    processes: list[Event] = field(default_factory=list)
    queues: list[Event] = field(default_factory=list)
    commands: list[Event] = field(default_factory=list)

    @staticmethod
    def read(folder: Path) -> History:
        """The history in a folder. A last line that was cut off (the run was killed) is left out."""
        return History(**{w: _lines(folder / f"{w}.jsonl") for w in WITNESSES})


def _lines(path: Path) -> list[Event]:
    found: list[Event] = []
    text = path.read_text() if path.exists() else ""
    for line in text.splitlines(keepends=True):
        if line.endswith("\n"):
            found.append(json.loads(line))
    return found


@dataclass(frozen=True)
class Violation:
    """An invariant that did not hold, where, and the events that show it."""

    invariant: str
    kind: str
    what: str
    t: float = 0.0
    shown_by: tuple[Event, ...] = ()
