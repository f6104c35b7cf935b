"""The choice of a replica."""

from __future__ import annotations

from collections import Counter
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from headrace.core.route import Candidate, busyness, choose
from headrace.core.types import Load, ReplicaId

loads = st.builds(Load, running=st.integers(0, 50), waiting=st.integers(0, 50), kv_usage=st.floats(0, 1))
candidates = st.lists(
    st.builds(
        Candidate,
        replica_id=st.integers(0, 30).map(lambda i: ReplicaId(f"r{i}")),
        in_flight=st.integers(0, 100),
        load=loads,
        lost=st.booleans(),
        suspect=st.booleans(),
        draining=st.booleans(),
    ),
    unique_by=lambda c: c.replica_id,
    max_size=8,
)
draws = st.floats(0, 1, exclude_max=True)
ids = st.sets(st.integers(0, 30).map(lambda i: ReplicaId(f"r{i}")), max_size=8)


def sound(c: Candidate) -> bool:
    return not (c.lost or c.suspect or c.draining)


@given(candidates, draws, draws, ids)
def test_choice_is_one_of_the_candidates_whenever_there_are_any(pool, first, second, excluded):
    chosen = choose(pool, first, second, excluded)
    assert (chosen is None) == (not pool)
    assert chosen is None or chosen in {c.replica_id for c in pool}


@given(candidates, draws, draws, ids)
def test_excluded_only_when_nothing_is_left(pool, first, second, excluded):
    chosen = choose(pool, first, second, excluded)
    if any(c.replica_id not in excluded for c in pool):
        assert chosen not in excluded


@given(candidates, draws, draws)
def test_lost_suspect_and_draining_come_last(pool, first, second):
    chosen = next((c for c in pool if c.replica_id == choose(pool, first, second)), None)
    if any(sound(c) for c in pool):
        assert chosen is not None
        assert sound(chosen)
    elif any(not c.draining for c in pool):
        assert chosen is not None
        assert not chosen.draining


@given(candidates, draws, draws)
def test_the_busiest_is_never_chosen_over_a_less_busy_one(pool, first, second):
    """Of n equals in soundness the strictly busiest loses every draw, as it always meets another."""
    pool = [c for c in pool if sound(c)]
    ranked = sorted(pool, key=busyness)
    if len(ranked) >= 2 and busyness(ranked[-1]) > busyness(ranked[-2]):
        assert choose(pool, first, second) != ranked[-1].replica_id


@given(candidates, draws, draws)
def test_of_two_the_less_busy_one(pool, first, second):
    pool = [c for c in pool if sound(c)][:2]
    if len(pool) == 2 and busyness(pool[0]) != busyness(pool[1]):
        assert choose(pool, first, second) == min(pool, key=busyness).replica_id


def test_every_pair_can_be_drawn():
    pool = [Candidate(ReplicaId(f"r{i}")) for i in range(4)]
    random = Random(7)
    seen = Counter(choose(pool, random.random(), random.random()) for _ in range(4000))
    assert set(seen) == {c.replica_id for c in pool}
    assert min(seen.values()) > 800


def test_own_streams_count_before_the_replica_reports_them():
    stale = Candidate(ReplicaId("a"), in_flight=9, load=Load(running=1))
    assert busyness(stale) >= 9
    assert choose([stale, Candidate(ReplicaId("b"), load=Load(running=3))], 0.0, 0.0) == "b"


def test_waiting_outweighs_running():
    queued = Candidate(ReplicaId("a"), load=Load(running=4, waiting=4))
    busy = Candidate(ReplicaId("b"), load=Load(running=9))
    assert choose([queued, busy], 0.0, 0.0) == "b"
