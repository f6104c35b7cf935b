"""I2 and I3, from what the clients saw: each answer is what one uninterrupted replica makes, and ends once."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from chaos_harness.faults import HITS_STREAMS
from chaos_harness.history import Event, Violation
from chaos_harness.oracle import Answer, Oracle, chat_text

_EXCUSES_S = 12.0  # after a proxy was killed, how long connections that it had may take to show it
_UPDATE_S = 45.0  # how long an update may take until its last old replica is gone
# All requests of the load can go on elsewhere, so these are not for them; but where a replica dies in the middle of an
# update, the last that could go on with its streams may be gone.
_QUARANTINED, _INEXACT = "request_quarantined", "stream_cannot_continue"
_NEVER = ("replica_gone", "model_failed")
Expected = Callable[[Event], Answer | None]


def simulated(ends: Mapping[str, int]) -> Expected:
    """What the simulated engine answers to a start event."""

    def expected(start: Event) -> Answer:
        prompt = chat_text(start["prompt"]) if start["api"] == "chat" else start["prompt"]
        return Oracle(prompt, start["seed"], ends[start["model"]]).answer(start["max_tokens"])

    return expected


@dataclass
class Streams:
    """What became of the requests."""

    violations: list[Violation] = field(default_factory=list)
    states: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    admitted: int = 0
    streaming: int = 0
    tokens: int = 0
    failed_over: int = 0
    gaps: list[float] = field(default_factory=list)  # of streams that moved
    firsts: list[tuple[float, float]] = field(default_factory=list)  # (time, seconds to the first piece)
    lost: int = 0
    corrupted: int = 0
    duplicate: int = 0
    missing: int = 0


def check_streams(clients: list[Event], faults: list[Event], expected: Expected) -> Streams:
    """`expected`: the answer to a start event; None where nobody can know it."""
    found = Streams()
    starts: dict[str, Event] = {}
    ends: dict[str, list[Event]] = {}
    for e in clients:
        if e["ev"] == "start":
            starts[e["id"]] = e
        else:
            ends.setdefault(e["id"], []).append(e)
    begun = [f for f in faults if f["ev"] == "begin"]
    kills = [f["t"] for f in begun if f["kind"] == "proxy_kill"]
    deaths = [f["t"] for f in begun if f["kind"] in HITS_STREAMS]
    updates = [(f["t"], f.get("model")) for f in begun if f["kind"] == "rolling_update"]
    for request_id, start in starts.items():
        _check_one(found, start, ends.get(request_id, []), kills, deaths, updates, expected)
    for request_id in ends.keys() - starts.keys():
        found.violations.append(Violation("I3", "unasked", f"{request_id} ended but never began"))
    return found


def _check_one(
    found: Streams,
    start: Event,
    ends: list[Event],
    kills: list[float],
    deaths: list[float],
    updates: list[tuple[float, str | None]],
    expected: Expected,
) -> None:
    def wrong(invariant: str, kind: str, what: str) -> None:
        shown = (start, *ends)
        found.violations.append(Violation(invariant, kind, f"{start['id']}: {what}", start["t"], shown))

    found.admitted += 1
    found.streaming += start["stream"]
    if len(ends) != 1:
        found.lost += not ends
        wrong("I3", "ends", f"{len(ends)} terminal states")
        return
    end = ends[0]
    status = end["status"]
    if status in ("broken", "refused") and any(k - 1.0 <= end["t"] <= k + _EXCUSES_S for k in kills):
        status = "proxy_lost"  # its own connections only; the one end that a proxy's death may have
    found.states[status] += 1
    if status in ("broken", "refused", "stalled"):
        found.lost += 1
        wrong("I3", "lost", f"{status}: {end['why']}")
        return
    if status == "error":
        error = end.get("error") or {}
        if not error.get("type") or not error.get("message"):
            wrong("I3", "untyped", f"an error without type or message: {end.get('why')}")
        found.errors[str(error.get("code") or error.get("type"))] += 1
        # A bystander of two deaths cannot be told from their cause.
        hit = sum(start["t"] - 1 <= d <= end["t"] for d in deaths)
        unlucky = error.get("code") == _QUARANTINED and hit > 1
        updated = any(m == start["model"] and start["t"] - _UPDATE_S <= t <= end["t"] for t, m in updates)
        wrong_type = error.get("type") in ("server_error", "invalid_request_error") and not unlucky
        inexact = error.get("code") == _INEXACT and not (hit and updated)
        if wrong_type or inexact or error.get("code") in _NEVER:
            wrong("I3", "error", f"ended with {error}")
    if end["after_end"] or end["done"] > 1 or len(end["finishes"]) > 1:
        wrong("I2", "ends twice", f"finishes {end['finishes']}, {end['done']} end markers, {end['after_end']} after")
    if not end.get("in_order", True):
        wrong("I2", "ids", "the ids of its events go backwards")
    if end["pieces"]:
        found.firsts.append((start["t"], end["pieces"][0][0] - start["t"]))
        _count_moves(found, end)
    if (answer := expected(start)) is not None:
        _compare(found, end, status, answer, wrong)


def _count_moves(found: Streams, end: Event) -> None:
    """Those that had text before and after a move went on in mid-stream."""
    pieces = end["pieces"]
    moved = [(b[0] - a[0]) for a, b in itertools.pairwise(pieces) if b[2] > a[2]]
    if moved:
        found.failed_over += 1
        found.gaps.append(max(moved))


def _compare(found: Streams, end: Event, status: str, answer: Answer, wrong: Callable[[str, str, str], None]) -> None:
    text = end["text"]
    if status == "completed":
        found.tokens += answer.tokens
        if end["finishes"] != [answer.reason]:
            wrong("I2", "finish", f"finished with {end['finishes']}, not {answer.reason!r}")
        if end["tokens"] not in (None, answer.tokens):
            wrong("I2", "usage", f"says {end['tokens']} tokens, and there are {answer.tokens}")
        if text != answer.text:
            _differs(found, text, answer.text, wrong)
    elif not answer.text.startswith(text):
        _differs(found, text, answer.text, wrong)


def _differs(found: Streams, text: str, right: str, wrong: Callable[[str, str, str], None]) -> None:
    """Tell what is missing or doubled from what is wrong altogether."""
    at = next((i for i, (a, b) in enumerate(zip(text, right, strict=False)) if a != b), min(len(text), len(right)))
    rest = text[at : at + 12]
    kind = "corrupted"
    if not rest or (len(rest) > 3 and rest in right[at : at + 400]):
        kind = "missing"
        found.missing += 1
    elif len(rest) > 3 and rest in right[max(0, at - 400) : at + len(rest)]:
        kind = "duplicate"
        found.duplicate += 1
    found.corrupted += 1
    wrong("I2", kind, f"differs at character {at}: {text[at : at + 30]!r} is not {right[at : at + 30]!r}")


def uninterrupted(clients: list[Event]) -> Expected:
    """For engines that nobody can compute: the same requests, as they were answered before anything was broken."""
    asked = {e["id"]: e for e in clients if e["ev"] == "start" and e["mood"] == "baseline"}
    answers: dict[tuple[str, ...], Answer] = {}
    for e in clients:
        if e["ev"] == "end" and e["id"] in asked and e["status"] == "completed":
            answers[_request(asked[e["id"]])] = Answer(e["text"], e["tokens"], e["finishes"][0])
    return lambda start: answers.get(_request(start))


def _request(start: Event) -> tuple[str, ...]:
    return tuple(str(start[k]) for k in ("model", "api", "prompt", "max_tokens"))


def unknown(start: Event) -> None:
    """For engines whose answers are not the same each time: only how they come and end is checked."""
    return None
