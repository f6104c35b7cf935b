"""The folder of one replica: what its scheduler and the replica leave there for each other and for the next start.

spec.json      what to run (scheduler → replica)
process.json   which process runs it (scheduler → next scheduler)
endpoint.json  where it listens (replica → this scheduler, which hears it through a pipe as well, and the next)
failure.json   why it ended (replica → scheduler)
replica.log    what it printed, with its rotated predecessors (see logs.py)
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from headrace.core.causes import Cause, named
from headrace.core.phase import Phase
from headrace.core.restart import NONE, Failures
from headrace.core.specfile import dump_spec, parse_spec
from headrace.core.types import ReplicaSpec
from headrace.process import ProcessRecord, write_atomic

_START_MARK = "--- start of replica"
_LAST_LINE_BYTES = 8192
_LAST_LINE_CHARS = 300


@dataclass(frozen=True, slots=True)
class LifeRecord:
    """What the next scheduler must know of a running replica. `ready_since`: time.monotonic(), which on one boot of a
    machine is the same for all processes. `served`: it has been READY, in this life or in one before."""

    process: ProcessRecord
    phase: Phase
    restarts: int = 0
    failures: Failures = NONE
    started_at: float = 0.0
    ready_since: float | None = None
    served: bool = False


@dataclass(frozen=True, slots=True)
class ReplicaFolder:
    path: Path

    @property
    def log(self) -> Path:
        return self.path / "replica.log"

    def prepare(self, spec: ReplicaSpec, *, host: str, cache_dir: Path, cache_limit_bytes: int = 0) -> None:
        """Write spec.json and clear away what a former life left. Takes no room on the disk where a life was before."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.end_life()
        (self.path / "failure.json").unlink(missing_ok=True)
        self.write_spec(spec, host=host, cache_dir=cache_dir, cache_limit_bytes=cache_limit_bytes)
        with contextlib.suppress(OSError), self.log.open("ab") as f:
            f.write(f"{_START_MARK} {spec.replica_id} {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC\n".encode())

    def write_spec(self, spec: ReplicaSpec, *, host: str, cache_dir: Path, cache_limit_bytes: int = 0) -> None:
        text = dump_spec(spec, host=host, cache_dir=str(cache_dir), cache_limit_bytes=cache_limit_bytes)
        path = self.path / "spec.json"
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if path.read_text() == text:
                return
        write_atomic(path, text)

    def end_life(self) -> None:
        """Forget the process; log, spec and failure stay."""
        for name in ("process.json", "endpoint.json"):
            (self.path / name).unlink(missing_ok=True)

    def spec(self) -> ReplicaSpec | None:
        """What ran here; None if that cannot be read."""
        try:
            return parse_spec((self.path / "spec.json").read_text()).spec
        except (OSError, ValueError):
            return None

    def write_life(self, life: LifeRecord) -> None:
        data = {
            "pid": life.process.pid,
            "start_time": life.process.start_time,
            "phase": life.phase.value,
            "restarts": life.restarts,
            "failures": [life.failures.all, life.failures.counted],
            "served": life.served,
            "started_at": life.started_at,
            "ready_since": life.ready_since,
            "boot": _boot(),
        }
        write_atomic(self.path / "process.json", json.dumps(data))

    def life(self) -> LifeRecord | None:
        """The process that was last started here; None if there is none, the machine has booted since, or the file is
        damaged."""
        try:
            text = (self.path / "process.json").read_text()
            process, data = ProcessRecord.from_json(text), json.loads(text)
            if data["boot"] != _boot():
                return None
            since = data["ready_since"]
            return LifeRecord(
                process,
                Phase(data["phase"]),
                int(data["restarts"]),
                Failures(*map(int, data["failures"])),
                float(data["started_at"]),
                None if since is None else float(since),
                data["served"] is True,
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def address(self, process: ProcessRecord) -> str | None:
        """Where exactly this process says it listens; None if nobody says so yet, or another process does."""
        return address_in(self._json("endpoint.json"), process)

    def failure(self) -> tuple[str, Cause] | None:
        """(reason, cause) that the replica left behind, if it did."""
        data = self._json("failure.json")
        reason = data.get("reason")
        if not isinstance(reason, str) or not reason:
            return None
        return reason, named(str(data.get("cause", ""))) or Cause.CRASH

    def last_line(self) -> str:
        """The last line that says something of what the last process printed, cut to a readable length."""
        try:
            with self.log.open("rb") as f:
                f.seek(max(0, f.seek(0, 2) - _LAST_LINE_BYTES))
                lines = f.read().decode(errors="replace").splitlines()
        except OSError:
            return ""
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return "" if last.startswith(_START_MARK) else last[:_LAST_LINE_CHARS]

    def _json(self, name: str) -> dict[str, Any]:
        try:
            data = json.loads((self.path / name).read_text())
        except (OSError, ValueError):
            return {}
        return data if isinstance(data, dict) else {}


def address_in(endpoint: Mapping[str, Any], process: ProcessRecord) -> str | None:
    """The address in what a replica says of where it listens, if it is exactly this process."""
    try:
        if (int(endpoint["pid"]), float(endpoint["start_time"])) == (process.pid, process.start_time):
            return str(endpoint["address"])
    except (ValueError, KeyError, TypeError):
        pass
    return None


def _boot() -> str:
    """Tells one boot of the machine from the next; empty where the system does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
