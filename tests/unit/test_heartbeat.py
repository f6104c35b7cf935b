"""When a silent process has come to a stand."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.heartbeat import BEAT_S, LIMIT_S, Heartbeat
from headrace.heartbeat import Beat, beat, listen


def test_silence_counts_from_the_last_word() -> None:
    h = Heartbeat()
    assert h.silent_s(1000.0) == 0.0, "what cannot be heard is not silent"
    h.heard(10.0)
    assert h.silent_s(10.0 + LIMIT_S) == LIMIT_S
    h.heard(20.0)
    assert h.silent_s(21.0) == 1.0
    h.unheard()
    assert h.silent_s(1000.0) == 0.0


def test_what_explains_silence_does_not_count() -> None:
    h = Heartbeat()
    h.heard(0.0, waited_s=3.0)
    h.we_stood_still(4.0)
    assert h.silent_s(6.0, waited_s=4.0) == 1.0
    h.unheard()
    h.we_stood_still(4.0)
    assert h.silent_s(1e6) == 0.0


def test_who_ran_all_the_while_had_its_chance() -> None:
    h = Heartbeat()
    h.heard(0.0, ran_s=7.0, waited_s=0.0)
    assert h.silent_s(6.0, ran_s=7.1, waited_s=5.0) == 1.0
    assert h.silent_s(6.0, ran_s=9.0, waited_s=4.0) == 6.0


def test_nothing_explains_it_for_ever() -> None:
    h = Heartbeat()
    h.heard(0.0)
    assert h.silent_s(6 * LIMIT_S, waited_s=6 * LIMIT_S) >= LIMIT_S


@given(st.lists(st.tuples(st.floats(0, 3), st.floats(0, 3)), min_size=1, max_size=30))
def test_who_speaks_between_the_listeners_pauses_is_never_given_up(rounds: list[tuple[float, float]]) -> None:
    """A word comes at least every BEAT_S of the time in which the listener and the machine do not stand still."""
    h, now, waited = Heartbeat(), 0.0, 0.0
    h.heard(now, 0.0, waited)
    for ours, theirs in rounds:
        now += ours
        h.we_stood_still(ours)
        now += theirs + BEAT_S
        waited += theirs
        assert h.silent_s(now, 0.0, waited) < LIMIT_S
        h.heard(now, 0.0, waited)


async def test_what_is_said_is_heard_by_all_also_where_the_path_is_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.heartbeat.BEAT_S", 0.01)
    folder = tmp_path / ("x" * 120)
    folder.mkdir()
    path = folder / "proxy-1.sock"
    path.write_text("what an earlier one left")
    saying = asyncio.create_task(beat(path, lambda: Beat(3, "the keys are away")))
    while not path.is_socket():  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    for _ in range(2):
        beats = listen(path)
        assert await anext(beats) is None
        assert [await anext(beats) for _ in range(3)] == [Beat(3, "the keys are away")] * 3
        await beats.aclose()
    beats = listen(path)
    assert [await anext(beats), await anext(beats)] == [None, Beat(3, "the keys are away")]
    saying.cancel()
    assert {b async for b in beats} <= {Beat(3, "the keys are away")}
    with pytest.raises(OSError):  # noqa: PT011 - whichever
        await anext(listen(path))


def test_what_is_no_word_of_ours_is_one_all_the_same() -> None:
    assert Beat.read(b"rubbish\n") == Beat.read(b"[]\n") == Beat.read(b'{"requests": "x"}\n') == Beat()
    assert Beat.read(Beat(2, "ü").line()) == Beat(2, "ü")
