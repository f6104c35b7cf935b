"""I2 and I3, from what the clients saw: each answer is what one uninterrupted replica makes, and ends once."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from chaos_harness.check_moves import model_of
from chaos_harness.faults import HITS_STREAMS
from chaos_harness.history import Event, Violation
from chaos_harness.oracle import Answer, Oracle, chat_text

_EXCUSES_S = 12.0  # how long connections and streams may take to show that a proxy or a replica is gone
_STOPPED_S = 30.0  # the same of a proxy that stands still, which the head ends; a head may have to come back first
_UPDATE_S = 45.0  # how long an update may take until its last old replica is gone
Expected = Callable[[Event], Answer | None]
Judge = Callable[[Event, Event, Answer], str]
"""What is wrong with the text of an end that is not the answer's: a kind of violation; "" if it went on otherwise."""


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
    firsts: list[tuple[float, float]] = field(default_factory=list)  # (time, seconds to the first piece)
    lost: int = 0
    corrupted: int = 0
    duplicate: int = 0
    missing: int = 0
    compared: Counter[str] = field(default_factory=Counter)  # answers that were known, by "moved" and "not moved"
    otherwise: Counter[str] = field(default_factory=Counter)  # those of them that a judge let go on otherwise


def check_streams(clients: list[Event], faults: list[Event], expected: Expected, judge: Judge | None = None) -> Streams:
    """`expected`: the answer to a start event; None where nobody can know it. Without a judge it must be just that."""
    found = Streams()
    starts: dict[str, Event] = {}
    ends: dict[str, list[Event]] = {}
    for e in clients:
        if e["ev"] == "start":
            starts[e["id"]] = e
        else:
            ends.setdefault(e["id"], []).append(e)
    excuses = _Excuses([f for f in faults if f["ev"] == "begin"])
    for request_id, start in starts.items():
        _check_one(found, start, ends.get(request_id, []), excuses, expected, judge or _told_apart)
    for request_id in ends.keys() - starts.keys():
        found.violations.append(Violation("I3", "unasked", f"{request_id} ended but never began"))
    return found


class _Excuses:
    """What the faults of a run allow for."""

    def __init__(self, begun: list[Event]) -> None:
        lasts = {"proxy_kill": _EXCUSES_S, "proxy_stopped": _STOPPED_S}
        self._kills = [(f["t"], lasts[f["kind"]]) for f in begun if f["kind"] in lasts]
        self._deaths = [(f["t"], model_of(f)) for f in begun if f["kind"] in HITS_STREAMS]
        self._updates = [(f["t"], f.get("model")) for f in begun if f["kind"] == "rolling_update"]
        self._scalings = [(f["t"], f.get("model")) for f in begun if f["kind"] == "scale"]

    def proxy_lost(self, start: Event, end: Event) -> bool:
        """Its own connections only; the one end that a proxy's death may have. Who comes back must not see it."""
        came_back = start["mood"] == "returns" and end["pieces"]
        return not came_back and any(k - 1.0 <= end["t"] <= k + lasts for k, lasts in self._kills)

    def quarantined(self, start: Event, end: Event) -> bool:
        """A bystander of two deaths cannot be told from their cause."""
        return sum(start["t"] - 1 <= t <= end["t"] for t, _ in self._deaths) > 1

    def inexact(self, start: Event, end: Event) -> bool:
        """Where a replica dies in the middle of an update, the last that could go on with its streams may be gone."""
        hit = any(start["t"] - 1 <= t <= end["t"] for t, _ in self._deaths)
        return hit and self._near(self._updates, start["model"], start["t"] - _UPDATE_S, end["t"])

    def gone(self, start: Event, end: Event) -> bool:
        """Both are lost: the proxy, and the replica that kept the stream for who comes back."""
        if start["mood"] != "returns" or not end["pieces"]:
            return False
        model, last = start["model"], end["pieces"][-1][0]
        moves = [*self._updates, *self._scalings]
        return self._near(self._deaths, model, last - _EXCUSES_S, end["t"]) or self._near(
            moves, model, last - _UPDATE_S, end["t"]
        )

    def _near(self, faults: list[tuple[float, str | None]], model: str, since: float, until: float) -> bool:
        return any(m == model and since <= t <= until for t, m in faults)


def _check_one(
    found: Streams, start: Event, ends: list[Event], excuses: _Excuses, expected: Expected, judge: Judge
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
    if status in ("broken", "refused") and excuses.proxy_lost(start, end):
        status = "proxy_lost"
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
        if not _may_end_with(error, excuses, start, end):
            wrong("I3", "error", f"ended with {error}")
    if end["after_end"] or end["done"] > 1 or len(end["finishes"]) > 1:
        wrong("I2", "ends twice", f"finishes {end['finishes']}, {end['done']} end markers, {end['after_end']} after")
    if not end.get("in_order", True):
        wrong("I2", "ids", "the ids of its events go backwards")
    if end["pieces"]:
        found.firsts.append((start["t"], end["pieces"][0][0] - start["t"]))
    if (answer := expected(start)) is not None:
        _compare(found, start, end, status, answer, judge, wrong)


def _may_end_with(error: Mapping[str, str], excuses: _Excuses, start: Event, end: Event) -> bool:
    match error.get("code"):
        case "request_quarantined":
            return excuses.quarantined(start, end)
        case "stream_cannot_continue":
            return excuses.inexact(start, end)
        case "stream_gone":
            return excuses.gone(start, end)
        case "replica_gone" | "model_failed":
            return False
        case _:
            return error.get("type") not in ("server_error", "invalid_request_error")


def _compare(
    found: Streams, start: Event, end: Event, status: str, answer: Answer, judge: Judge,
    wrong: Callable[[str, str, str], None],
) -> None:  # fmt: skip
    text, right = end["text"], answer.text
    at = parts_at(text, right)
    whole = status == "completed"
    moved = any(a[1] <= at and b[2] > a[2] for a, b in itertools.pairwise(end["pieces"]))
    after = "moved" if moved else "not moved"
    found.compared[after] += 1
    found.tokens += answer.tokens if whole else 0
    if text != right and (whole or at < len(text)):
        kind = judge(start, end, answer)
        if not kind:
            found.otherwise[after] += 1
            return
        found.missing += kind == "missing"
        found.duplicate += kind == "duplicate"
        found.corrupted += 1
        wrong("I2", kind, f"differs at character {at}: {text[at : at + 30]!r} is not {right[at : at + 30]!r}")
    if whole and end["finishes"] != [answer.reason]:
        wrong("I2", "finish", f"finished with {end['finishes']}, not {answer.reason!r}")
    if whole and end["tokens"] not in (None, answer.tokens):
        wrong("I2", "usage", f"says {end['tokens']} tokens, and there are {answer.tokens}")


def parts_at(text: str, right: str) -> int:
    """The first character that is not the same; where one of the two begins with the other, the length of that."""
    either = min(len(text), len(right))
    return next((i for i in range(either) if text[i] != right[i]), either)


def _told_apart(_: Event, end: Event, answer: Answer) -> str:
    return kind_of(end["text"], answer.text)


def kind_of(text: str, right: str) -> str:
    """Tell what is missing or doubled from what is wrong altogether."""
    at = parts_at(text, right)
    rest = text[at : at + 12]
    if not rest or (len(rest) > 3 and rest in right[at : at + 400]):
        return "missing"
    if len(rest) > 3 and rest in right[max(0, at - 400) : at + len(rest)]:
        return "duplicate"
    return "corrupted"


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
