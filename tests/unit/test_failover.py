"""Where a stream goes when its replica is gone, how often, and which requests no replica is given again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headrace.core.failover import (
    MAX_DEATHS,
    MAX_REFUSALS,
    PROVEN_BY,
    Budget,
    History,
    Loss,
    Next,
    Quarantine,
    after,
)
from headrace.core.steps import Steps
from headrace.core.types import Load

LOSSES = st.lists(st.tuples(st.sampled_from(Loss), st.sampled_from([0, 1, PROVEN_BY - 1, PROVEN_BY])), max_size=40)


@given(LOSSES, st.booleans(), st.booleans())
def test_no_story_gives_a_request_more_replicas_than_it_may_kill(losses, resumable, restartable):
    """At most two replicas in a row die before they have made a few tokens of it, and nothing is sent twice."""
    history, tokens, in_a_row = History(), 0, 0
    for loss, made in losses:
        tokens += made
        what, history = after(history, loss, tokens, here=made, resumable=resumable, restartable=restartable)
        in_a_row = 0 if made >= PROVEN_BY else in_a_row + (loss is Loss.DEATH)
        assert in_a_row <= MAX_DEATHS
        if what is Next.RESUME:
            assert resumable
            assert tokens
        elif what is Next.RESTART:
            assert tokens == 0 or (restartable and not resumable)
            tokens = 0
        elif what is Next.QUARANTINE:
            assert loss is Loss.DEATH
            assert in_a_row == MAX_DEATHS
            return
        elif what is Next.INEXACT:
            assert tokens
            assert not resumable
            assert not restartable
            return
        else:
            assert history.refusals == MAX_REFUSALS
            return
    assert history.deaths == in_a_row < MAX_DEATHS
    assert history.refusals < MAX_REFUSALS


@given(
    st.lists(st.tuples(st.floats(0.0, 5.0), st.sampled_from(["admit", "move"])), max_size=300),
    st.floats(0.1, 2.0),
    st.integers(0, 5),
)
def test_moves_never_exceed_their_share_of_a_window(events, share, floor):
    budget = Budget(share=share, floor=floor, window_s=10.0)
    now, admitted, moved = 0.0, list[float](), list[float]()
    for passed, what in events:
        now += passed
        if what == "admit":
            budget.carried(now)
            admitted.append(now)
        elif budget.take(now, running=0):
            moved.append(now)
            recent = sum(t > now - budget.window_s * 13 / 12 for t in admitted)
            assert sum(t > now - budget.window_s * 11 / 12 for t in moved) <= floor + share * recent + 1
        else:
            recent = sum(t > now - budget.window_s * 11 / 12 for t in admitted)
            assert sum(t > now - budget.window_s * 13 / 12 for t in moved) >= floor + share * recent


def test_every_stream_may_move_once_however_old_it_is():
    budget = Budget(share=1.0, floor=0, window_s=60.0)
    assert all(budget.take(1000.0, running=500) for _ in range(500))
    assert not budget.take(1000.0, running=500)
    assert budget.take(1061.0, running=500)


def test_quarantine_ends_and_is_bounded():
    q = Quarantine(keep_s=10.0, size=3)
    assert not q
    for i in range(5):
        q.add(b"%d" % i, float(i))
    assert [q.holds(b"%d" % i, 5.0) for i in range(5)] == [False, False, True, True, True]
    assert [q.holds(b"%d" % i, 13.5) for i in range(5)] == [False] * 4 + [True]
    assert not q.holds(b"4", 14.0)
    assert not q


def test_an_engine_stalls_only_while_it_has_requests():
    steps = Steps()
    assert steps.stalled_s(Load(running=1, step=5), 10.0) == 0
    assert steps.stalled_s(Load(running=1, step=5), 12.0) == 2
    assert steps.stalled_s(Load(running=1, step=6), 13.0) == 0
    assert steps.stalled_s(Load(step=6), 50.0) == 0
    assert steps.stalled_s(Load(waiting=1, step=6), 51.0) == 1


def test_an_engine_works_while_it_uses_cpu_time():
    steps = Steps()

    def told(cpu_s: float, now: float) -> bool:
        steps.stalled_s(Load(running=1, cpu_s=cpu_s), now)
        return steps.working

    assert not told(70.0, 10.0)  # nothing to compare with
    assert not told(70.4, 10.1)  # too soon to say
    assert told(71.0, 11.0)
    assert told(71.2, 12.0)  # a share of a busy machine
    assert not told(71.22, 13.0)  # what it takes to send a frame
    assert not told(0.0, 14.0)  # does not say
    assert told(72.0, 14.1)
