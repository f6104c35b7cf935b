"""The bugs. Each function gets the name of the part that is starting ("head", "scheduler", "proxy", "replica") and
plants its bug into that process, if it belongs there. Run by part.py; no product code knows of this."""

# pyright: reportPrivateUsage=false, reportAttributeAccessIssue=false
from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any


def skip_token(part: str) -> None:
    """The engine leaves a token out, deep in an answer."""
    _shift_tokens(part, +1)


def repeat_token(part: str) -> None:
    """The engine says a token twice."""
    _shift_tokens(part, -1)


def _shift_tokens(part: str, by: int) -> None:
    if part == "replica":
        from headrace.core import simulated

        right = simulated.token_at
        simulated.token_at = lambda key, index: right(key, index + by if index >= 30 else index)


def drop_commit(part: str) -> None:
    """The store acknowledges every fifth write and forgets it."""
    if part == "head":
        from headrace.head.store import SqliteStore

        right, count = SqliteStore.commit, itertools.count(1)

        async def commit(self: Any, changes: Any) -> None:
            ledger = any("ledger" in repr(c) for c in changes)
            if not ledger or next(count) % 5:
                await right(self, changes)

        SqliteStore.commit = commit


def ignore_epoch_node(part: str) -> None:
    """A node obeys any head."""
    if part == "scheduler":
        from headrace.node.epoch import EpochFile

        EpochFile.accept = lambda self, epoch: True


def ignore_epoch_proxy(part: str) -> None:
    """A proxy takes any route table."""
    if part == "proxy":
        from headrace.proxy.routes import Routes

        right = Routes.accept

        def accept(self: Any, table: Any) -> bool:
            self._highest_epoch = 0
            return right(self, table)

        Routes.accept = accept


def leak_slot(part: str) -> None:
    """A replica keeps the slot of every request that was aborted."""
    if part == "replica":
        from headrace.replica.engines.simulated import SimulatedEngine

        SimulatedEngine._abort = lambda self, request_id: []
        right = SimulatedEngine._take_in

        def take_in(self: Any, inbox: Any, rows: Any) -> None:
            for request_id in inbox.aborted:
                if request_id in self._running:
                    self._running[request_id].end = 2**62
                    object.__setattr__(self._running[request_id].request, "max_tokens", 2**62)
            right(self, inbox, rows)

        SimulatedEngine._take_in = take_in


def leak_load(part: str) -> None:
    """A proxy never gives back the load of clients that left."""
    if part == "proxy":
        from headrace.metrics import Metrics

        count = itertools.count(1)

        def put(self: Any, name: str, value: Any) -> None:
            less = name == "running_now" and value < getattr(self, name, 0)
            if not (less and next(count) % 10 == 0):
                object.__setattr__(self, name, value)

        Metrics.__setattr__ = put


def leave_orphan(part: str) -> None:
    """A scheduler says that a replica has stopped, and lets it run."""
    if part == "scheduler":
        from headrace.node.runner import Runner

        right = Runner.go

        def go(self: Any, drain_s: float, term_s: float | None = None) -> None:
            if self.spec.deployment.startswith("sim"):
                self.told_to_go = True
                self._going = True
                self._standing.say(type(self.status.phase).DRAINING, reason="")
                self.leave()
            else:
                right(self, drain_s, term_s)

        async def run(self: Any) -> None:
            await run_right(self)
            if self.told_to_go:
                self._standing.say(type(self.status.phase).STOPPED, reason="")

        run_right = Runner.run
        Runner.go, Runner.run = go, run


def double_placement(part: str) -> None:
    """A scheduler that comes back does not look for its replicas, and starts them again."""
    if part == "scheduler":
        from headrace.node.node import Node

        async def adopt(self: Any) -> None:
            return None

        Node.adopt = adopt


def wrong_position(part: str) -> None:
    """A stream goes on elsewhere two tokens too early, and the proxy takes whatever position comes."""
    if part == "proxy":
        from headrace.proxy.stream import Stream

        right, submit = Stream.delta, Stream._to_submit

        def to_submit(self: Any, adapter: str) -> Any:
            if len(self._ids) > 2 and not self.taking_over:
                del self._ids[-2:]
                self.chars = max(0, self.chars - 6)
            return submit(self, adapter)

        def delta(self: Any, now: float, position: int, *rest: Any) -> None:
            self.tokens = position
            right(self, now, position, *rest)

        Stream.delta, Stream._to_submit = delta, to_submit


def resume_one_missing(part: str) -> None:
    """The continuing replica is told one token less than the client has."""
    if part == "proxy":
        from headrace.proxy.stream import Stream

        right = Stream._to_submit

        def to_submit(self: Any, adapter: str) -> Any:
            if len(self._ids) > 1 and not self.taking_over:
                del self._ids[0]
            return right(self, adapter)

        Stream._to_submit = to_submit


def two_end_markers(part: str) -> None:
    if part == "proxy":
        from headrace.proxy import sinks

        sinks.DONE = sinks.DONE * 2


def swap_streams(part: str) -> None:
    """Two rows of a frame change their streams now and then."""
    if part == "replica":
        from headrace.replica.session import Session

        right, count = Session.send, itertools.count(1)

        def send(self: Any, *args: Any) -> None:
            texts = self.columns.texts
            if len(texts) > 1 and next(count) % 20 == 0:
                texts[0], texts[1] = texts[1], texts[0]
            right(self, *args)

        Session.send = send


def lose_last_delta(part: str) -> None:
    """What comes together with the end of a stream is forgotten."""
    if part == "proxy":
        from headrace.proxy.session import Session

        right = Session._on_frame

        def on_frame(self: Any, frame: Any) -> None:
            over = {f.stream for f in frame.finished}
            for i, number in enumerate(frame.stream):
                if number in over:
                    frame.text[i] = ""
            right(self, frame)

        Session._on_frame = on_frame


def no_cap(part: str) -> None:
    """The queue of those who wait for a replica has no end."""
    if part == "proxy":
        from headrace.proxy.admission import Admission

        right = Admission.__init__

        def init(self: Any, *args: Any, **kwargs: Any) -> None:
            right(self, *args, **kwargs)
            self._max_waiting = 10**9

        Admission.__init__ = init


def misroute(part: str) -> None:
    """A replica's address is another model's, as after a port was stolen, and nobody asks who answers."""
    if part == "proxy":
        from headrace.proxy.sessions import Sessions

        right, count = Sessions.pick, itertools.count(1)

        def pick(self: Any, route: Any, *args: Any, **kwargs: Any) -> Any:
            picked = right(self, route, *args, **kwargs)
            others = [s for s in self._live.values() if s.ready]
            return picked._replace(session=others[0]) if picked and others and next(count) % 3 == 0 else picked

        Sessions.pick = pick


def forget_moved(part: str) -> None:
    """A stream whose replica died is never placed again."""
    if part == "proxy":
        from headrace.proxy.stream import Stream

        Stream.gone = lambda self, error: None


def lose_at_takeover(part: str) -> None:
    """A replica forgets the last token that its lost proxy had from it."""
    if part == "replica":
        from headrace.replica.kept import Kept

        right = Kept.detach

        def detach(self: Any, stream: Any) -> bool:
            if stream.ids:
                stream.ids.pop()
            return right(self, stream)

        Kept.detach = detach


PLANT: dict[str, Callable[[str], None]] = {
    f.__name__: f
    for f in (
        skip_token, repeat_token, drop_commit, ignore_epoch_node, ignore_epoch_proxy, leak_slot, leak_load,
        leave_orphan, double_placement, wrong_position, resume_one_missing, two_end_markers, swap_streams,
        lose_last_delta, no_cap, misroute, forget_moved, lose_at_takeover,
    )
}  # fmt: skip
