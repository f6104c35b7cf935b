"""The order in which those who wait are served."""

from __future__ import annotations

from collections import Counter, defaultdict

from hypothesis import given
from hypothesis import strategies as st

from headrace.core.fair import Claim, FairQueue

callers = st.sampled_from(["a", "b", "c", "d"])
WEIGHTS = {"a": 1.0, "b": 2.0, "c": 5.0, "d": 0.5}
claims = st.builds(
    lambda caller, priority, cost: Claim(caller, WEIGHTS[caller], priority, float(cost)),
    callers,
    st.integers(-1, 1),
    st.integers(1, 8),
)
actions = st.lists(st.one_of(claims, st.just("pop"), st.integers(0, 40)), max_size=60)


def order(queue: FairQueue[int]) -> list[int]:
    out = []
    while (item := queue.pop()) is not None:
        out.append(item)
    return out


@given(actions)
def test_everything_is_served_once_or_removed(todo):
    queue: FairQueue[int] = FairQueue()
    inside: set[int] = set()
    for number, action in enumerate(todo):
        if isinstance(action, Claim):
            queue.push(number, action)
            inside.add(number)
        elif action == "pop":
            first = queue.peek()
            item = queue.pop()
            assert item == first
            assert (item is None) == (not inside)
            inside.discard(item)
        else:
            queue.remove(action)
            inside.discard(action)
        assert len(queue) == len(inside)
        assert set(queue) == inside
    assert sorted(order(queue)) == sorted(inside)


@given(st.lists(claims, max_size=40))
def test_urgent_first_and_each_callers_own_in_order(made):
    queue: FairQueue[int] = FairQueue()
    for number, claim in enumerate(made):
        queue.push(number, claim)
    served = order(queue)
    assert [made[n].priority for n in served] == sorted(c.priority for c in made)
    for caller in WEIGHTS:
        for priority in (-1, 0, 1):
            own = [n for n in served if (made[n].caller, made[n].priority) == (caller, priority)]
            assert own == sorted(own)


@given(
    st.dictionaries(callers, st.lists(st.integers(1, 8), min_size=1, max_size=3), min_size=2),
    st.integers(0, 150),
    st.integers(1, 150),
)
def test_shares_follow_the_weights_in_every_stretch(costs, skip, length):
    """Two callers who always have something waiting never differ by more than one request each, for their weights."""
    queue: FairQueue[tuple[str, int]] = FairQueue()
    sent: Counter[str] = Counter()

    def push(caller: str) -> None:
        cost = costs[caller][sent[caller] % len(costs[caller])]
        queue.push((caller, sent[caller]), Claim(caller, WEIGHTS[caller], 0, float(cost)))
        sent[caller] += 1

    for caller in costs:
        for _ in range(2):
            push(caller)
    had: dict[str, float] = defaultdict(float)
    for n in range(skip + length):
        item = queue.pop()
        assert item
        caller, number = item
        if n >= skip:
            had[caller] += costs[caller][number % len(costs[caller])] / WEIGHTS[caller]
        push(caller)
    for x in costs:
        for y in costs:
            bound = max(costs[x]) / WEIGHTS[x] + max(costs[y]) / WEIGHTS[y]
            assert abs(had[x] - had[y]) <= bound + 1e-9


def test_who_was_idle_has_saved_nothing_up():
    queue: FairQueue[str] = FairQueue()
    for i in range(100):
        queue.push(f"a{i}", Claim("a"))
    for _ in range(50):
        queue.pop()
    for i in range(50):
        queue.push(f"b{i}", Claim("b"))
    assert Counter(item[0] for item in order(queue)[:20]) == {"a": 10, "b": 10}


def test_who_leaves_is_not_charged():
    queue: FairQueue[str] = FairQueue()
    for i in range(50):
        queue.push(f"gone{i}", Claim("a"))
    for i in range(50):
        queue.remove(f"gone{i}")
    queue.push("a", Claim("a"))
    queue.push("b", Claim("b"))
    assert order(queue) == ["a", "b"]


@given(st.lists(claims, max_size=30), st.integers(0, 30), claims)
def test_ahead_is_what_would_be_served_before(made, pops, claim):
    queue: FairQueue[int] = FairQueue()
    for number, c in enumerate(made):
        queue.push(number, c)
    for _ in range(pops):
        queue.pop()
    ahead = queue.ahead(claim)
    queue.push(-1, claim)
    before = 0.0
    while (item := queue.pop()) != -1:
        assert item is not None
        before += made[item].cost
    # Of those who start at the same moment either may be first.
    assert ahead >= before - 1e-9
    assert ahead <= before + 8 * len(WEIGHTS)


@given(st.lists(claims, min_size=1, max_size=30), claims)
def test_a_full_queue_drops_the_least_urgent_of_who_has_most(made, claim):
    queue: FairQueue[int] = FairQueue()
    for number, c in enumerate(made):
        queue.push(number, c)
    worst = max(c.priority for c in made)
    backlog: dict[str, float] = defaultdict(float)
    for c in made:
        if c.priority == worst:
            backlog[c.caller] += c.cost / c.weight
    dropped = queue.to_drop_for(claim)
    if dropped is None:  # the new one
        assert claim.priority >= worst
        if claim.priority == worst:
            assert backlog[claim.caller] + claim.cost / claim.weight >= max(backlog.values()) - 1e-9
    else:
        assert made[dropped].priority == worst
        assert backlog[made[dropped].caller] >= max(backlog.values()) - 1e-9
        assert claim.priority < worst or made[dropped].caller != claim.caller


def test_a_greedy_caller_keeps_nobody_out():
    queue: FairQueue[str] = FairQueue()
    for i in range(10):
        queue.push(f"greedy{i}", Claim("greedy"))
    dropped = queue.to_drop_for(Claim("modest"))
    assert dropped == "greedy9"
    assert queue.to_drop_for(Claim("greedy")) is None
