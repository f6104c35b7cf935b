"""The choice of a replica."""

from __future__ import annotations

from collections import Counter
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from headrace.core.affinity import decide
from headrace.core.capacity import Capacity
from headrace.core.route import Candidate, busyness, room
from headrace.core.types import Load, ReplicaId

loads = st.builds(Load, running=st.integers(0, 50), waiting=st.integers(0, 50), kv_usage=st.floats(0, 1))
candidates = st.lists(
    st.builds(
        lambda **given: Candidate(**given),  # what is not given here is not made up
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


def choose(pool, first, second, excluded=frozenset()):
    decision = decide(pool, first, second, excluded)
    return decision.replica_id if decision else None


def choose_with_room(pool, first, second, excluded=frozenset()):
    decision = decide(pool, first, second, excluded, with_room=True)
    return decision.replica_id if decision else None


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
    if any(c.replica_id not in excluded and not c.suspect for c in pool):
        assert chosen not in excluded


@given(candidates, draws, draws)
def test_lost_suspect_and_draining_come_last(pool, first, second):
    chosen = next((c for c in pool if c.replica_id == choose(pool, first, second)), None)
    if any(sound(c) for c in pool):
        assert chosen is not None
        assert sound(chosen)
    elif any(not c.suspect for c in pool):
        assert chosen is not None
        assert not chosen.suspect


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


# --- with room ---


def full(name: str, **more: object) -> Candidate:
    return Candidate(ReplicaId(name), 9, Load(running=8, waiting=1, max_running=8), queued=1, **more)  # type: ignore[arg-type]


def test_nothing_while_all_are_saturated():
    assert choose_with_room([full("a"), full("b")], 0.5, 0.5) is None
    free = Candidate(ReplicaId("c"), 8, Load(running=8, max_running=8))  # one may wait there
    assert choose_with_room([full("a"), free], 0.0, 0.0) == "c"


@given(candidates, draws, draws, ids)
def test_only_replicas_with_room_of_the_best_tier(pool, first, second, excluded):
    chosen = choose_with_room(pool, first, second, excluded)
    found = next((c for c in pool if c.replica_id == chosen), None)
    assert found is None or room(found) > 0
    if any(sound(c) and c.replica_id not in excluded for c in pool):
        assert found is None or sound(found)


def test_a_slow_one_is_for_what_the_others_have_no_room_for():
    slow = Candidate(ReplicaId("slow"), 0, Load(max_running=8), slow=True)
    fast = Candidate(ReplicaId("fast"), 7, Load(running=7, max_running=8))
    assert choose_with_room([slow, fast], 0.0, 0.0) == "fast"
    assert choose_with_room([slow, full("fast")], 0.0, 0.0) == "slow"
    assert choose([slow, full("fast")], 0.0, 0.0) == "fast"


def test_a_probe_goes_first_and_one_at_a_time():
    fast = Candidate(ReplicaId("fast"), 0, Load(max_running=8))
    probed = Candidate(ReplicaId("p"), 0, Load(max_running=8), slow=True, probe=True)
    assert choose_with_room([fast, probed], 0.0, 0.0) == "p"
    again = Candidate(ReplicaId("p"), 1, Load(running=1, max_running=8), slow=True, probe=True)
    assert choose_with_room([fast, again], 0.0, 0.0) == "fast"


def test_one_that_comes_back_gets_its_weight():
    back = Candidate(ReplicaId("back"), 1, Load(running=1, max_running=64), weight=0.1)
    other = Candidate(ReplicaId("other"), 10, Load(running=10, max_running=64))
    assert choose_with_room([back, other], 0.0, 0.0) == "other"
    idle = Candidate(ReplicaId("back"), 0, Load(max_running=64), weight=0.1)
    assert choose_with_room([idle, other], 0.0, 0.0) == "back"


def test_each_proxy_may_have_a_few_waiting_whatever_the_others_do():
    """Else one that hears of the load once a second would never find room beside one that hears of it every step."""
    elsewhere = Load(running=16, waiting=2, max_running=16)
    assert room(Candidate(ReplicaId("a"), 0, elsewhere)) == 2
    assert room(Candidate(ReplicaId("a"), 2, elsewhere, queued=2)) <= 0


def test_an_unknown_limit_is_no_limit_until_it_is_met():
    c = Candidate(ReplicaId("a"), 500, Load(running=500))
    assert room(c) > 10**6
    assert room(Candidate(ReplicaId("a"), 500, Load(running=400, waiting=100), limit=400, queued=100)) <= 0


def test_capacity_is_met_when_requests_wait_and_no_more_run():
    capacity = Capacity()
    for step in range(4):  # a burst: all begin with the next steps
        capacity.saw(Load(running=20 * (step + 1), waiting=100 - 20 * step, step=step))
    assert capacity.limit == 0
    for step in range(4, 8):
        capacity.saw(Load(running=80, waiting=20, step=step))
    assert capacity.limit == 80
    capacity.saw(Load(running=70, step=8))
    assert capacity.limit == 80
    capacity.saw(Load(running=80, step=9))
    assert capacity.limit == 90


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 300)), min_size=1, max_size=100), st.integers(1, 30))
def test_capacity_finds_a_hidden_limit(arrivals, hidden):
    """Against an engine that runs no more than `hidden`: never learned lower than what runs when it is full."""
    capacity, inside = Capacity(), 0
    for step, (new, done) in enumerate(arrivals):
        inside = max(0, inside + new - min(done, hidden))
        running = min(inside, hidden)
        capacity.saw(Load(running=running, waiting=inside - running, step=step))
        assert capacity.limit == 0 or capacity.limit >= hidden


def test_requests_that_wait_for_the_next_step_show_no_limit():
    capacity = Capacity()
    for step in range(50):  # one comes and one ends in every step
        capacity.saw(Load(running=5, waiting=1, kv_usage=0.3, step=step, max_running=64))
    assert capacity.limit == 0
    for step in range(50, 60):
        capacity.saw(Load(running=5, waiting=1, kv_usage=0.95, step=step, max_running=64))
    assert capacity.limit == 5
