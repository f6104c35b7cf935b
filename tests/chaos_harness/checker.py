"""The verdict on one run, from its logs alone."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from chaos_harness.check_moves import Moves, check_moves
from chaos_harness.check_processes import Processes, check_processes, check_queues
from chaos_harness.check_state import State, check_commands, check_state
from chaos_harness.check_streams import Expected, Judge, Streams, check_streams
from chaos_harness.faults import HITS_STREAMS
from chaos_harness.history import History, Violation


@dataclass
class Verdict:
    streams: Streams
    state: State
    processes: Processes
    moves: Moves
    faults: Counter[str] = field(default_factory=Counter)
    replaced: list[float] = field(default_factory=list[float])  # seconds until another ran in a dead proxy's place
    load_s: float = 0.0
    asked: int = 0  # requests while the load was on
    wanted_rate: float = 0.0
    seed: int = 0
    void: list[str] = field(default_factory=list)  # reasons why the run shows nothing

    @property
    def violations(self) -> list[Violation]:
        every = [*self.streams.violations, *self.state.violations, *self.processes.violations]
        return sorted(every, key=lambda v: v.t)

    @property
    def rate(self) -> float:
        return self.asked / self.load_s if self.load_s else 0.0


def check(history: History, expected: Expected, judge: Judge | None = None) -> Verdict:
    """Asserts I1 to I6, and that the run was what it was meant to be."""
    streams = check_streams(history.clients, history.faults, expected, judge)
    state = check_state(history.admin)
    check_commands(state, history.commands)
    processes = check_processes(history.processes, history.faults)
    marks = {e["ev"]: e for e in history.faults if e["ev"] in ("plan", "load_begins", "load_ends", "quiet_begins")}
    check_queues(processes, history.queues, marks.get("quiet_begins", {"t": 1e9})["t"])
    verdict = Verdict(streams, state, processes, check_moves(history.clients, history.faults))
    verdict.faults.update(e["kind"] for e in history.faults if e["ev"] == "begin")
    verdict.replaced += [e["after_s"] for e in history.faults if e["ev"] == "replaced"]
    if "load_ends" not in marks:
        verdict.void.append("it did not come to its end")
        return verdict
    verdict.asked = marks["load_ends"].get("started", streams.admitted)
    verdict.load_s = marks["load_ends"]["t"] - marks["load_begins"]["t"]
    verdict.wanted_rate, verdict.seed = marks["plan"]["rate"], marks["plan"]["seed"]
    if verdict.rate < 0.85 * verdict.wanted_rate:
        verdict.void.append(f"{verdict.rate:.1f} requests a second came, and {verdict.wanted_rate:g} were to")
    _judge_hits(verdict, history)
    return verdict


def _judge_hits(verdict: Verdict, history: History) -> None:
    """Faults that are meant to hit streams must, by the moves and ends that clients saw after them."""
    begun = [f["t"] for f in history.faults if f["ev"] == "begin" and f["kind"] in HITS_STREAMS]
    ends = [e["t"] for e in history.clients if e["ev"] == "end" and e["status"] in ("error", "broken")]
    hit = any(verdict.moves.hits.values()) or any(t <= e <= t + 12 for t in begun for e in ends)
    if begun and not hit:
        verdict.void.append("no fault hit a stream")
