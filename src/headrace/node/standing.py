"""What a scheduler says of one replica: its status, moved only as the table of phases allows, and kept for the next
scheduler while the process runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import structlog

from headrace.core.phase import Phase, move
from headrace.core.restart import NONE
from headrace.core.types import Load, ReplicaSpec, ReplicaStatus
from headrace.node.folder import LifeRecord, ReplicaFolder
from headrace.process import ProcessRecord

log = structlog.get_logger()


class Standing:
    """`status` is what to report. `changed(urgent)` is called after every change; urgent: more than the load."""

    def __init__(self, spec: ReplicaSpec, folder: ReplicaFolder, changed: Callable[[bool], None]) -> None:
        self.status = ReplicaStatus(
            spec.replica_id, spec.deployment, spec.revision, Phase.PENDING, gpu_indices=spec.gpu_indices
        )
        self.process: ProcessRecord | None = None
        self.failures = NONE
        self.ready_since: float | None = None  # of this process, by time.monotonic()
        self.served = False  # it has been READY, in this life or in one before
        self._unwritten = False
        self._folder = folder
        self._changed = changed

    @property
    def phase(self) -> Phase:
        return self.status.phase

    def resume(self, found: LifeRecord) -> None:
        """Take over where the last scheduler stood."""
        self.process, self.failures, self.ready_since = found.process, found.failures, found.ready_since
        self.served = found.served
        self.status = replace(
            self.status,
            phase=found.phase,
            pid=found.process.pid,
            restarts=found.restarts,
            started_at=found.started_at,
            failures=found.failures.all,
            address=self._folder.address(found.process) or "",
        )

    def started(self, process: ProcessRecord, now: float, *, again: bool) -> None:
        """A new process runs, since `now` (Unix time)."""
        self.process, self.ready_since = process, None
        restarts = self.status.restarts + again
        self.say(
            Phase.STARTING, pid=process.pid, reason="", restarts=restarts, started_at=now, cause=None, next_try=0.0
        )

    def ended(self) -> None:
        """There is no process any more. The phase stays: what comes next decides it."""
        self.process = None
        self._folder.end_life()
        self.status = replace(
            self.status, pid=0, address="", activity="", progress=-1.0, load=Load(), model=None, adapters=()
        )

    def say(self, phase: Phase, **changes: object) -> None:
        """Move to `phase` with these changes of the status. InvalidMove if the table does not allow it."""
        before = self.status.phase
        moved = move(self.status.replica_id, before, phase, str(changes.get("reason", "")))
        self.note(phase=moved, **changes)
        if moved is not before:
            s = self.status
            log.info("replica_phase", replica=s.replica_id, phase=s.phase.value, reason=s.reason, process=s.pid)
            self.served = self.served or s.phase is Phase.READY
            self._remember()

    def remember_again(self) -> None:
        """Write down for the next scheduler what the disk had no room for when it was new."""
        if self._unwritten:
            self._remember()

    def note(self, **changes: object) -> None:
        """Change the status without moving."""
        before, self.status = self.status, replace(self.status, **changes)  # type: ignore[arg-type]
        if before != self.status:
            self._changed(replace(before, load=self.status.load) != self.status)

    def _remember(self) -> None:
        if self.process is None:
            return
        s = self.status
        life = LifeRecord(self.process, s.phase, s.restarts, self.failures, s.started_at, self.ready_since, self.served)
        try:
            self._folder.write_life(life)
        except OSError as e:  # a full disk must not take a good replica down
            if not self._unwritten:
                log.error("process_file_unwritten", replica=s.replica_id, error=str(e))
            self._unwritten = True
        else:
            self._unwritten = False
