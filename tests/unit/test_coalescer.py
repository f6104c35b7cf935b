"""Held texts lose nothing, keep their order, and every event's id says what the client has with it."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from headrace.core.pressure import Pressure
from headrace.core.streams import Parsed
from headrace.proxy.chat_shape import ChatShape
from headrace.proxy.coalescer import Coalescer, Held
from headrace.proxy.generation import Usage
from headrace.proxy.place import Place, new_nonce
from headrace.proxy.sinks import Events
from headrace.proxy.writer import Writer


class Page:
    """A writer that keeps what is written."""

    started = False

    def __init__(self) -> None:
        self.writes: list[bytes] = []

    def start(self, status: int, headers: Any) -> None:
        self.started = True

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    end = write


class ByHand(Coalescer):
    """Flushes when it is told to."""

    def __init__(self) -> None:
        super().__init__(0.02)
        self.waiting: list[Held] = []

    def hold(self, what: Held) -> None:
        self.waiting.append(what)

    def flush(self) -> None:
        waiting, self.waiting = self.waiting, []
        for what in waiting:
            what.flush()


def events(page: Page) -> list[tuple[str, dict[str, Any]]]:
    """(id, object) of each event but [DONE]."""
    found = []
    for block in b"".join(page.writes).decode().split("\n\n"):
        at = re.search(r"^id: (.*)$", block, re.M)
        data = re.search(r"^data: (.*)$", block, re.M)
        if data and data[1] != "[DONE]":
            found.append((at[1] if at else "", json.loads(data[1])))
    return found


STEPS = st.lists(st.sampled_from(["text", "text", "text", "flush", "on", "off", "think"]), max_size=80)


@given(STEPS, st.booleans())
def test_held_texts_come_in_order_with_true_ids(steps, fails):
    page, hold, nonce = Page(), ByHand(), new_nonce()
    sink = Events(cast("Writer", page), ChatShape("c", "m", 1, 1), 1, False, [], coalescer=hold, nonce=nonce)
    text = thought = ""
    tokens = 0
    for step in steps:
        match step:
            case "text":
                tokens += 1
                text += f"{tokens},"
                sink.delta(0, f"{tokens},", None, Place(0, tokens, len(text), len(thought)))
            case "think":
                tokens += 1
                thought += f"{tokens};"
                sink.extra(0, Parsed(0, f"{tokens};"), Place(0, tokens, len(text), len(thought)))
            case "flush":
                hold.flush()
            case _:
                hold.active = step == "on"
    sink.choice_done(0, "stop")
    asyncio.run(sink.complete(Usage(1, tokens, 0)))
    hold.flush()
    seen = thought_seen = ""
    for at, chunk in events(page):
        delta = chunk["choices"][0]["delta"]
        seen += delta.get("content") or ""
        thought_seen += delta.get("reasoning") or ""
        if at:
            place, said = Place.read(at)
            assert said == nonce
            assert (place.chars, place.reasoning_chars) == (len(seen), len(thought_seen))
            last = re.findall(r"\d+", seen) + re.findall(r"\d+", thought_seen)
            assert place.tokens == max(map(int, last))
    assert (seen, thought_seen) == (text, thought)
    assert page.writes[-1].endswith(b"data: [DONE]\n\n")


def test_two_texts_travel_in_one_event_and_lone_ones_wait_no_more():
    page, hold = Page(), ByHand()
    sink = Events(cast("Writer", page), ChatShape("c", "m", 1, 1), 1, False, [], coalescer=hold)
    hold.active = True
    for _ in range(8):
        sink.delta(0, "a", None)
    assert len(page.writes) == 8  # the first ones never wait
    sink.delta(0, "b", None)
    sink.delta(0, "c", None)
    assert len(page.writes) == 8
    hold.flush()
    assert len(page.writes) == 9
    assert events(page)[-1][1]["choices"][0]["delta"]["content"] == "bc"
    sink.delta(0, "d", None)
    hold.flush()  # nothing joined it
    before = len(page.writes)
    sink.delta(0, "e", None)
    assert len(page.writes) == before + 1


def test_what_is_held_is_bounded():
    page, hold = Page(), ByHand()
    sink = Events(cast("Writer", page), ChatShape("c", "m", 1, 1), 1, False, [], coalescer=hold)
    hold.active = True
    for _ in range(100):
        sink.delta(0, "x" * 1000, None)
    assert max(map(len, page.writes)) < 5000
    assert "".join(c["choices"][0]["delta"]["content"] for _, c in events(page)) == "x" * (100_000 - len(sink._held))


def test_several_choices_are_never_held():
    page, hold = Page(), ByHand()
    sink = Events(cast("Writer", page), ChatShape("c", "m", 1, 2), 2, False, [], coalescer=hold)
    hold.active = True
    for i in range(40):
        sink.delta(i % 2, "a", None)
    assert len(page.writes) == 40


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_pressure_is_the_share_of_wanted_time(shares):
    pressure, wanted = Pressure(), 0.0
    assert not pressure.saw(0.0, 0.0)
    for n, share in enumerate(shares, 1):
        wanted += share
        on = pressure.saw(float(n), wanted)
        if share > 0.51:
            assert on
        if share < 0.19:
            assert not on


def test_pressure_does_not_flicker():
    pressure = Pressure()
    seen = [pressure.saw(float(n), w) for n, w in enumerate((0.0, 0.6, 0.9, 1.2, 1.3))]
    assert seen == [False, True, True, True, False]
