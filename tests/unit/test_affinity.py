"""Going where a prompt's beginning is: what it may do, what it must not."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from headrace.core.affinity import SLACK, SPREAD, Policy, Reason, Wish, decide
from headrace.core.prefix import BLOCK_BYTES, MAX_BLOCKS, blocks, blocks_of, matched
from headrace.core.route import Candidate, cost, less_busy, pool, pool_with_room, room
from headrace.core.streams import ChatPrompt, Submit, TextPrompt, TokenPrompt
from headrace.core.types import Load, ReplicaId
from headrace.proxy.prefixes import Prefixes

candidates = st.lists(
    st.builds(
        lambda **given: Candidate(**given),  # what is not given here is not made up
        replica_id=st.integers(0, 30).map(lambda i: ReplicaId(f"r{i}")),
        in_flight=st.integers(0, 40),
        load=st.builds(
            Load,
            running=st.integers(0, 40),
            waiting=st.integers(0, 20),
            kv_usage=st.floats(0, 1),
            max_running=st.sampled_from((0, 8, 64)),
        ),
        lost=st.booleans(),
        suspect=st.booleans(),
        draining=st.booleans(),
        ejected=st.booleans(),
        slow=st.booleans(),
        probe=st.booleans(),
        weight=st.sampled_from((1.0, 0.3)),
        matched=st.integers(0, 20),
    ),
    unique_by=lambda c: c.replica_id,
    max_size=8,
)
draws = st.floats(0, 1, exclude_max=True)
ids = st.sets(st.integers(0, 30).map(lambda i: ReplicaId(f"r{i}")), max_size=8)
wishes = st.builds(
    Wish,
    blocks=st.just(tuple(range(20))),
    usual_blocks=st.floats(0.1, 50),
    session=st.sampled_from(("", "a", "b")),
)


@given(candidates, draws, draws, ids, st.booleans(), wishes, st.sampled_from(Policy), st.integers(0, 99))
def test_only_what_would_be_drawn_from_anyway(seen, first, second, excluded, with_room, wish, policy, turn):
    """Suspect, draining, slow, lost, ejected, tried and saturated replicas mean what they mean without a wish."""
    open_to_it = (pool_with_room if with_room else pool)(seen, excluded)
    decision = decide(seen, first, second, excluded, with_room=with_room, wish=wish, policy=policy, turn=turn)
    assert (decision is None) == (not open_to_it)
    if decision:
        chosen = next(c for c in open_to_it if c.replica_id == decision.replica_id)
        assert decision.matched == chosen.matched
        assert decision.moved == bool(excluded)


@given(candidates, draws, draws, st.booleans(), wishes)
def test_never_to_one_that_is_saturated_or_busier_than_the_bound(seen, first, second, with_room, wish):
    decision = decide(seen, first, second, with_room=with_room, wish=wish)
    if decision and decision.reason in (Reason.PREFIX, Reason.SESSION):
        open_to_it = (pool_with_room if with_room else pool)(seen)
        chosen = next(c for c in open_to_it if c.replica_id == decision.replica_id)
        mean = sum(map(cost, open_to_it)) / len(open_to_it)
        assert room(chosen) > 0
        assert cost(chosen) <= (1 + SPREAD) * mean + SLACK


@given(candidates, draws, draws, wishes)
def test_a_prefix_wins_over_a_shorter_one_alone(seen, first, second, wish):
    decision = decide(seen, first, second, wish=wish)
    if decision and decision.reason is Reason.PREFIX:
        least = less_busy(pool(seen), first, second)
        assert decision.matched > least.matched or decision.replica_id == least.replica_id
        assert decision.matched > min(c.matched for c in pool(seen))


@given(candidates, draws, draws, st.booleans())
def test_without_a_wish_the_less_busy_of_two(seen, first, second, with_room):
    """The replicas' matches say nothing when the request asks for nothing."""
    seen = [Candidate(c.replica_id, c.in_flight, c.load, c.lost, c.suspect, c.draining) for c in seen]
    open_to_it = (pool_with_room if with_room else pool)(seen)
    decision = decide(seen, first, second, with_room=with_room)
    if decision:
        assert decision.replica_id == less_busy(open_to_it, first, second).replica_id


def at(name: str, busy: int, has: int = 0) -> Candidate:
    return Candidate(ReplicaId(name), busy, Load(running=busy, max_running=64), matched=has)


PROMPT = Wish(tuple(range(10)), 10.0)


def test_a_match_is_worth_some_requests_and_no_more():
    assert str(decide([at("a", 3, 10), at("b", 0)], 0.0, 0.0, wish=PROMPT)) == "prefix; matched=10/10"
    busy = decide([at("a", 45, 10), at("b", 20)], 0.0, 0.0, wish=PROMPT)
    assert str(busy) == "least-load; matched=0/10; passed-over=10/10"


def test_a_long_prompt_is_worth_more_but_a_hot_spot_is_not():
    long = Wish(tuple(range(1000)), 10.0)
    assert decide([at("a", 24, 1000), at("b", 20)], 0.0, 0.0, wish=PROMPT).reason is Reason.PREFIX
    assert decide([at("a", 24, 1), at("b", 20)], 0.0, 0.0, wish=PROMPT).reason is Reason.LEAST_LOAD
    assert decide([at("a", 24, 1000), at("b", 16)], 0.0, 0.0, wish=long).reason is Reason.PREFIX
    assert decide([at("a", 60, 1000), at("b", 10), at("c", 10)], 0.0, 0.0, wish=long).reason is Reason.LEAST_LOAD


def test_where_the_best_match_is_too_busy_the_next_one_is_good_enough():
    seen = [at("a", 60, 10), at("b", 10, 6), at("c", 10)]
    # The two draws are c and b, or c and a: b is taken in either case.
    assert decide(seen, 0.9, 0.0, wish=PROMPT).replica_id == "b"
    assert str(decide(seen, 0.9, 0.0, wish=PROMPT)) == "prefix; matched=6/10; passed-over=10/10"


def test_of_those_that_have_it_all_two_are_drawn_too():
    random = Random(3)
    seen = [at(f"r{i}", 2, 10) for i in range(4)] + [at("cold", 2)]
    chosen = {decide(seen, random.random(), random.random(), wish=PROMPT).replica_id for _ in range(200)}
    assert chosen == {"r0", "r1", "r2", "r3"}


def test_a_session_keeps_its_replica_while_others_come_and_go():
    seen = [at(f"r{i}", 1) for i in range(8)]
    random = Random(5)

    def homes(there):
        chosen = {}
        for s in range(100):
            d = decide(there, random.random(), random.random(), wish=Wish(session=f"s{s}"))
            assert d.reason is Reason.SESSION
            chosen[s] = d.replica_id
        return chosen

    before, after = homes(seen), homes(seen[:-1])
    assert set(before.values()) == {c.replica_id for c in seen}
    assert all(after[s] == r for s, r in before.items() if r != "r7")
    busy = [at(f"r{i}", 40 if f"r{i}" == before[0] else 1) for i in range(8)]
    assert decide(busy, 0.0, 0.0, wish=Wish(session="s0")).reason is Reason.LEAST_LOAD


def test_the_other_policies_do_as_they_are_called():
    seen = [at("b", 0, 10), at("a", 9), at("c", 9)]
    assert [decide(seen, 0, 0, wish=PROMPT, policy=Policy.ROUND_ROBIN, turn=i).replica_id for i in range(4)] == list(
        "abca"
    )
    assert decide(seen, 0.5, 0, wish=PROMPT, policy=Policy.RANDOM).replica_id == "a"
    assert decide(seen, 0.5, 0.9, wish=PROMPT, policy=Policy.LEAST_LOAD).reason is Reason.LEAST_LOAD
    assert decide(seen[:1], 0.5, 0.9, policy=Policy.RANDOM).reason is Reason.ONLY_REPLICA
    moved = decide(seen, 0.0, 0.0, frozenset({ReplicaId("c")}), wish=PROMPT)
    assert str(moved) == "failover; by=prefix; matched=10/10"


# --- blocks ---


@given(st.binary(max_size=3000), st.binary(max_size=3000), st.integers(0, 3000))
def test_blocks_are_those_of_the_common_beginning(a, b, common):
    one, two = a[:common] + b, a[:common] + b"!" + b
    same = next((i for i, (x, y) in enumerate(zip(one, two, strict=False)) if x != y), min(len(one), len(two)))
    mine, others = blocks(one), blocks(two)
    assert matched(mine, set(others)) == min(same // BLOCK_BYTES, len(mine), len(others))
    assert len(mine) == len(one) // BLOCK_BYTES


def test_blocks_are_bounded_and_differ_by_what_goes_before():
    assert len(blocks(b"x" * BLOCK_BYTES * (MAX_BLOCKS + 5))) == MAX_BLOCKS
    text = "x" * 600
    submits = [
        Submit(0, "", TextPrompt(text)),
        Submit(0, "", ChatPrompt(text.encode())),
        Submit(0, "", TextPrompt(text), tools_json=b"[]"),
        Submit(0, "", TextPrompt(text), template_args_json=b"[]"),
        Submit(0, "", TokenPrompt([1] * 200)),
    ]
    found = [blocks_of(s) for s in submits] + [blocks_of(submits[0], "adapter")]
    assert len({f[0] for f in found}) == len(found)
    assert blocks_of(Submit(9, "other", TextPrompt(text + "y"), max_tokens=3)) == found[0]


@given(st.lists(st.integers(0, 2**64 - 1), unique=True, max_size=50), st.integers(0, 60))
def test_matched_finds_how_much_is_held(chain, held):
    assert matched(chain, set(chain[:held])) == min(held, len(chain))


def test_what_a_proxy_knows_of_a_replica():
    p = Prefixes()
    p.told([1, 2, 3], [])
    assert p.matched((1, 2, 3, 4)) == 0  # its engine keeps nothing
    p.kept = True
    assert p.matched((1, 2, 3, 4)) == 3
    p.sent(7, (1, 2, 3, 4))
    p.sent(8, (1, 2, 3, 4, 5))
    assert p.matched((1, 2, 3, 4)) == 4
    p.ended(8)
    p.ended(8)
    assert p.matched((1, 2, 3, 4, 5)) == 4
    p.ended(7)
    p.told([4], [3])
    p.told([], [4])
    assert p.matched((1, 2, 3, 4)) == 2
    p.clear()
    assert (p.matched((1, 2)), len(p)) == (0, 0)
