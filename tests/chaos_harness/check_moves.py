"""Which fault each move of a stream was due to, how long the client waited for the next token, and who came back."""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import dataclass, field

from chaos_harness.faults import HITS_STREAMS
from chaos_harness.history import Event

_BEFORE_S = 1.0  # text waits for the rest of a character, and a fault is written down a moment before it is done
_AFTER_S = 12.0
ALONE_S = 15.0
_Piece = list[float]  # time, characters, moves


@dataclass
class Moves:
    """`gaps`, `detections`: seconds without text at a client, and since the fault; by what the fault was.
    `alone`: the gaps of faults that had no other at the same model within ALONE_S.

    That is one of the values of HITS_STREAMS or, where no fault is near, "other" (drained, slow, full).
    """

    failed_over: int = 0  # streams
    gaps: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list[float]))
    alone: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list[float]))
    detections: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list[float]))
    hits: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))  # moves by kind of fault
    taken_over: int = 0  # streams whose clients went on at another proxy
    gone: int = 0  # that nobody kept any more
    returns: list[float] = field(default_factory=list[float])  # seconds without text of those taken over


def model_of(fault: Event) -> str:
    """The model that a fault is about; "" for those that are about none."""
    return fault.get("model") or str(fault.get("replica", "")).rsplit("-", 2)[0]


def check_moves(clients: list[Event], faults: list[Event]) -> Moves:
    found = Moves()
    models = {e["id"]: e["model"] for e in clients if e["ev"] == "start"}
    begun = [f for f in faults if f["ev"] == "begin" and f["kind"] in HITS_STREAMS]
    for e in clients:
        if e["ev"] == "end":
            mine = [f for f in begun if model_of(f) in ("", models.get(e["id"], ""))]
            moved = [(a, b) for a, b in itertools.pairwise(e["pieces"]) if b[2] > a[2]]
            found.failed_over += bool(moved)
            for before, after in moved:
                _count_move(found, before, after, mine)
            _count_returns(found, e)
    return found


def _count_move(found: Moves, before: _Piece, after: _Piece, faults: list[Event]) -> None:
    near = [f for f in faults if before[0] - _BEFORE_S <= f["t"] <= min(after[0], before[0] + _AFTER_S)]
    fault = min(near, key=lambda f: abs(f["t"] - before[0]), default=None)
    name = HITS_STREAMS[fault["kind"]] if fault else "other"
    found.gaps[name].append(after[0] - before[0])
    if fault:
        found.hits[fault["kind"]] += 1
        found.detections[name].append(after[0] - fault["t"])
        if all(f is fault or abs(f["t"] - fault["t"]) > ALONE_S for f in faults):
            found.alone[name].append(after[0] - before[0])


def _count_returns(found: Moves, end: Event) -> None:
    returns = end.get("returns", ())
    found.taken_over += any(status == 200 for _, status in returns)
    found.gone += any(status == 410 for _, status in returns)
    for t, status in returns:
        before = [p[0] for p in end["pieces"] if p[0] <= t]
        after = [p[0] for p in end["pieces"] if p[0] > t]
        if status == 200 and before and after:
            found.returns.append(after[0] - before[-1])
