"""Who has to go when there are too many, and how often the same is said."""

from __future__ import annotations

import itertools
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from headrace.core.complaints import Complaints
from headrace.core.idle import Idle


def test_the_oldest_of_the_greatest_crowd_goes_first() -> None:
    idle: Idle[str] = Idle()
    assert idle.first_to_go() is None
    idle.add("quiet", "10.0.0.1")
    for n in range(3):
        idle.add(f"crowd-{n}", "10.0.0.2")
    idle.add("crowd-1", "10.0.0.2")  # again: keeps its place
    assert len(idle) == 4
    assert idle.first_to_go() == "crowd-0"
    idle.remove("crowd-0", "10.0.0.2")
    idle.remove("crowd-0", "10.0.0.2")
    idle.add("crowd-0", "10.0.0.2")  # has asked something, and waits again
    assert idle.first_to_go() == "crowd-1"
    for n in range(3):
        idle.remove(f"crowd-{n}", "10.0.0.2")
    assert (idle.first_to_go(), len(idle)) == ("quiet", 1)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9), st.integers(0, 3))))
def test_idle_counts_what_there_is(steps: list[tuple[bool, int, int]]) -> None:
    idle: Idle[tuple[int, int]] = Idle()
    model: dict[tuple[int, int], None] = {}
    for add, who, origin in steps:
        if add:
            idle.add((who, origin), str(origin))
            model.setdefault((who, origin))
        else:
            idle.remove((who, origin), str(origin))
            model.pop((who, origin), None)
        assert len(idle) == len(model)
        first = idle.first_to_go()
        if not model:
            assert first is None
            continue
        sizes = Counter(o for _, o in model)
        assert first in model
        assert sizes[first[1]] == max(sizes.values())
        assert first == next(k for k in model if k[1] == first[1])


def test_a_complaint_is_told_at_once_and_then_once_a_minute_with_a_count() -> None:
    complaints: Complaints[str] = Complaints("others")
    assert [complaints.saw("a", t) for t in (0.0, 1.0, 2.0)] == ["a", None, None]
    assert complaints.saw("b", 3.0) == "b"
    assert complaints.due(59.0) == []
    assert complaints.due(60.0) == [("a", 2)]
    assert complaints.due(100.0) == []
    assert complaints.due(121.0) == []  # nothing since: both are forgotten
    assert len(complaints) == 0
    assert complaints.saw("a", 122.0) == "a"


@given(st.lists(st.tuples(st.integers(0, 20), st.floats(0, 30)), max_size=200))
def test_no_complaint_is_lost_and_the_table_is_bounded(events: list[tuple[int, float]]) -> None:
    complaints: Complaints[int] = Complaints(-1, most=5)
    now, told = 0.0, 0
    lines: list[tuple[int, float]] = []
    for who, after in events:
        now += after
        if (said := complaints.saw(who, now)) is not None:
            told += 1
            lines.append((said, now))
        for said, times in complaints.due(now):
            told += times
            lines.append((said, now))
        assert len(complaints) <= 6
    told += sum(times for _, times in complaints.due(now + 1000.0))
    assert told == len(events)
    for who in {w for w, _ in lines}:
        times = [t for w, t in lines if w == who]
        assert all(b - a >= 60.0 for a, b in itertools.pairwise(times))
