"""What must be true of the system after thousands of bad requests: the same processes, no larger, nothing to tell."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from contextlib import suppress
from pathlib import Path

from chaos_harness.processes import Row
from chaos_harness.system import System

_GROWN_BYTES = 96 * 2**20  # of a process
_LOG_BYTES = 2 * 2**20  # of all logs together
_CHILDREN = 3  # of one replica: a process to try forms in, and such
_FILES = 40  # more open files than before
_PATIENCE_S = 30.0
_NUMBER = re.compile(r"0x[0-9a-f]+|\d+")  # which would make two of one


class Watch:
    """From now until `complaints`."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._before = self._rows()
        self._files = {pid: _open_files(pid) for pid in self._before}
        self._logs = {p: p.stat().st_size for p in system.logs()}

    def _rows(self) -> dict[int, Row]:
        return {r.pid: r for r in self._system.processes()}

    async def complaints(self) -> list[str]:
        """What is wrong, after a while in which connections may be closed."""
        for _ in range(int(_PATIENCE_S * 2)):
            if not (found := self._of_processes()):
                break
            await asyncio.sleep(0.5)
        return found + self._of_logs()

    def _of_processes(self) -> list[str]:
        rows = self._rows()
        found = []
        for pid, before in self._before.items():
            now = rows.get(pid)
            who = f"the {before.role} {before.replica or before.proxy} (process {pid})"
            if now is None or now.started != before.started:
                if before.role != "child":  # a replica may start and end processes to try things in
                    found.append(f"{who} is gone")
                continue
            if now.rss > before.rss + _GROWN_BYTES:
                found.append(f"{who} grew from {before.rss >> 20} to {now.rss >> 20} MiB")
            if (files := _open_files(pid)) > self._files[pid] + _FILES:
                found.append(f"{who} has {files} open files, and had {self._files[pid]}")
        new = [r for pid, r in rows.items() if pid not in self._before]
        found += [f"there is a new {r.role}, process {r.pid}" for r in new if r.role != "child"]
        children = Counter(r.leader for r in new if r.role == "child")
        found += [f"process {pid} has {n} new children" for pid, n in children.items() if n > _CHILDREN]
        return found

    def _of_logs(self) -> list[str]:
        found: Counter[str] = Counter()
        size = 0
        for path in self._system.logs():
            with path.open("rb") as file:
                file.seek(self._logs.get(path, 0))
                data = file.read()
            size += len(data)
            for trace in _tracebacks(data.decode("utf-8", "replace").splitlines()):
                found[f"a traceback in {path.name}: {trace}"] += 1
        told = [f"{text} ({n} times)" for text, n in found.most_common()]
        return told + ([f"the logs grew by {size >> 10} KiB"] if size > _LOG_BYTES else [])


def _tracebacks(lines: list[str]) -> list[str]:
    """The last line of each traceback: plain, or in a field of a line of JSON."""
    found = []
    for i, line in enumerate(lines):
        if "Traceback (most recent call last)" not in line:
            continue
        if line.startswith("{"):
            with suppress(ValueError):
                told = json.loads(line)
                trace = str(told.get("exception") or told.get("event"))
                found.append(f"{str(told.get('event')).splitlines()[0][:80]!r}: {trace.strip().splitlines()[-1]}")
                continue
        rest = lines[i + 1 : i + 200]
        found.append(next((x for x in rest if x and not x[0].isspace()), line))
    return [_NUMBER.sub("N", trace)[:250] for trace in found]


def _open_files(pid: int) -> int:
    try:
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))
    except OSError:
        return 0
