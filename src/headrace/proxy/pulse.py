"""What this proxy sees of one replica beside its tokens: who waits there, how long things take, what fails."""

from __future__ import annotations

from headrace.core.capacity import Capacity
from headrace.core.outliers import Record
from headrace.core.types import Load
from headrace.core.waits import Mean
from headrace.rpc.v1 import replica_pb2


class Pulse:
    """Kept by the session as streams come and go. Costs nothing per token."""

    def __init__(self) -> None:
        self.record = Record()
        self.held = Mean()  # seconds that a stream was there
        self.capacity = Capacity()
        self._sent: dict[int, tuple[float, float]] = {}  # streams that are there: since when, and after how much work
        self._queued: dict[int, float] = {}  # those without a first token or result: how much work each is
        self._queued_work = 0.0
        self._unseen: set[int] = set()  # those that its load does not count yet
        self._rows_at = 0.0

    @property
    def queued(self) -> int:
        return len(self._queued)

    @property
    def unseen(self) -> int:
        return len(self._unseen)

    def sent(self, number: int, now: float, work: float = 1.0) -> None:
        """`work`: what its first token takes, beside that of others; in any unit."""
        self._queued[number] = work
        self._queued_work += work
        self._sent[number] = now, self._queued_work
        self._unseen.add(number)

    def ended(self, number: int, now: float, *, failed: bool | None = None) -> None:
        """A stream is there no longer. `failed`: the replica is to blame; None: the end says nothing about it."""
        if number not in self._sent:
            return
        at, work = self._sent.pop(number)
        if failed is False and number in self._queued:
            self.record.saw_first(now - at, work)
        self._leave_queue(number)
        self._unseen.discard(number)
        self.held.add(now - at)
        if failed:
            self.record.saw_failure()
        elif failed is False:
            self.record.saw_success()
        if not self._sent:
            self._rows_at = 0.0

    def _leave_queue(self, number: int) -> None:
        self._queued_work -= self._queued.pop(number, 0.0)
        if not self._queued:
            self._queued_work = 0.0  # and not what is left of rounding

    def lost(self, *, failed: bool) -> None:
        """The session is gone with all its streams; that is one failure, however many they were."""
        if failed and self._sent:
            self.record.saw_failure()
        for what in (self._sent, self._queued, self._unseen):
            what.clear()
        self.capacity, self._rows_at, self._queued_work = Capacity(), 0.0, 0.0

    def frame(self, now: float, frame: replica_pb2.Frame, load: Load) -> None:
        """To be called with every frame, before its streams are told."""
        for s in frame.started:
            self._unseen.discard(s.stream)
        self.capacity.saw(load)
        if not frame.stream:
            return
        if self._queued:
            for number in self._queued.keys() & frame.stream:
                self._leave_queue(number)
                at, work = self._sent[number]
                self.record.saw_first(now - at, work)
        if self._rows_at and max(frame.position):  # a stream goes on, which had its last token with the last rows
            self.record.saw_gap(now - self._rows_at, max(load.running, 1), pure=not frame.took_prompts)
        self._rows_at = now
