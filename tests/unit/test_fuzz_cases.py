"""The fuzzers themselves: a case is the same each time, and what is wrong with an answer is seen."""

from __future__ import annotations

import json

import pytest
from fuzz import bodies, raw, short
from fuzz.case import Case, Make, Outcome
from fuzz.rules import SMUGGLED, complaint
from fuzz.watch import _tracebacks
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize("make", [bodies.make, raw.make, short.make])
def test_a_case_follows_from_its_seed_and_number(make: Make) -> None:
    made = [make(7, n, frozenset()) for n in range(200)]
    assert made == [make(7, n, frozenset()) for n in reversed(range(200))][::-1]
    assert made != [make(8, n, frozenset()) for n in range(200)]
    assert len({c.sent() for c in made}) > 100


@pytest.mark.parametrize("make", [bodies.make, raw.make, short.make])
def test_any_case_can_be_made(make: Make) -> None:
    for number in range(3_000):
        make(7, number, frozenset())


@given(number=st.integers(0, 10**6))
def test_a_body_without_its_changes_is_json(number: int) -> None:
    case = bodies.make(1, number, frozenset(range(4)))
    head, _, body = case.sent().partition(b"\r\n\r\n")
    assert b"\r\nContent-Length: %d" % len(body) in head
    assert isinstance(json.loads(body), dict)


def _answer(status: int, body: str, more: str = "") -> Outcome:
    head = f"HTTP/1.1 {status} A\r\ncontent-length: {len(body)}\r\n{more}\r\n"
    data = bytearray(head.encode() + body.encode())
    return Outcome(data, len(data))


_CASE = Case((b"GET / HTTP/1.1\r\n\r\n",))
_STREAMS = "content-type: text/event-stream\r\nconnection: close\r\n"


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        (_answer(500, '{"error":{"message":"Internal error."}}'), "500"),
        (_answer(503, '{"error":{"message":"Busy."}}'), "503"),
        (_answer(400, '{"error":{"message":"Traceback (most recent call last)"}}'), "insides"),
        (_answer(400, '{"error":{"message":"<A object at 0x7f00>"}}'), "insides"),
        (_answer(400, '{"detail":"wrong"}'), "without an error's object"),
        (_answer(400, '{"error":{"message":" "}}'), "without a message"),
        (_answer(404, f'{{"error":{{"message":"{SMUGGLED.decode()}"}}}}'), "taken for a request"),
        (_answer(200, 'data: {"choices":[]}\n\n', _STREAMS), "without an end"),
        (Outcome(), "without an answer"),
        (Outcome(ended="silent"), "too long"),
        (Outcome(bytearray(b"nonsense"), 8), "no HTTP"),
    ],
)
def test_what_is_wrong_with_an_answer_is_seen(outcome: Outcome, said: str) -> None:
    assert said in complaint(_CASE, outcome)


@pytest.mark.parametrize(
    "outcome",
    [
        _answer(200, "{}"),
        _answer(400, '{"error":{"message":"\'n\' must be 1."}}'),
        _answer(503, '{"error":{"message":"Busy.","type":"service_unavailable_error"}}'),
        _answer(200, "data: [DONE]\n\n", _STREAMS),
        _answer(200, 'data: {"error":{"message":"gone"}}\n\n', _STREAMS),
    ],
)
def test_what_is_right_is_no_complaint(outcome: Outcome) -> None:
    assert complaint(_CASE, outcome) == ""


def test_a_status_that_is_due_is_asked_for() -> None:
    case = Case((b"GET / HTTP/1.1\r\n\r\n",), must=(400,), what="without Host")
    assert "without Host" in complaint(case, _answer(200, "{}"))


def test_chunks_are_not_for_old_clients() -> None:
    case = Case((b"GET / HTTP/1.0\r\n\r\n",))
    assert "HTTP/1.0" in complaint(case, Outcome(bytearray(b"HTTP/1.1 200 A\r\nTransfer-Encoding: chunked\r\n\r\n"), 9))


def test_tracebacks_are_found_in_plain_logs_and_in_json() -> None:
    plain = ["Traceback (most recent call last):", '  File "a.py", line 7, in f', "ValueError: at 0x7fab 12"]
    trace = "Traceback (most recent call last):\n  File\nKeyError: 'a'"
    told = _tracebacks(["fine", *plain, json.dumps({"event": "failed\n", "exception": trace}), "fine"])
    assert told == ["ValueError: at N N", "'failed': KeyError: 'a'"]
