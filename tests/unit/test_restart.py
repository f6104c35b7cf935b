"""Restart decisions: back-off grows and stays in bounds, success forgives, what is not transient ends it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.causes import TABLE, Again, Cause
from headrace.core.restart import DEFAULT_POLICY, NONE, Failures, GiveUp, Restart, after_failure

JITTER = st.floats(0, 1, exclude_max=True)
NOW = st.floats(1e3, 1e9)
TRANSIENT = [c for c in Cause if TABLE[c].again is Again.ALWAYS]
COUNTED = [c for c in Cause if TABLE[c].again is Again.COUNTED]
PERMANENT = [c for c in Cause if TABLE[c].again is Again.NEVER]
BEFORE = st.builds(Failures, st.integers(0, 5000), st.integers(0, 5000))


def again(*args: object, **more: object) -> Restart:
    verdict = after_failure(*args, **more)  # type: ignore[arg-type]
    assert isinstance(verdict, Restart)
    return verdict


@given(before=BEFORE, now=NOW, jitter=JITTER, cause=st.sampled_from(TRANSIENT))
def test_what_is_transient_is_tried_for_as_long_as_it_lasts(
    before: Failures, now: float, jitter: float, cause: Cause
) -> None:
    verdict = again(before, None, now, jitter, "no network", cause=cause)
    assert DEFAULT_POLICY.first_delay_s <= verdict.delay_s <= TABLE[cause].longest_s <= DEFAULT_POLICY.max_delay_s
    assert verdict.failures == Failures(before.all + 1, before.counted)


@given(before=BEFORE, ready_since=st.none() | st.floats(0, 1e3), jitter=JITTER, cause=st.sampled_from(Cause))
def test_what_has_served_is_never_given_up(
    before: Failures, ready_since: float | None, jitter: float, cause: Cause
) -> None:
    assert again(before, ready_since, 1e6, jitter, "was killed", cause=cause, proven=True).delay_s <= 60.0


@given(count=st.integers(0, 100), jitter=JITTER, cause=st.sampled_from(Cause))
def test_pause_never_shrinks_while_failures_go_on(count: int, jitter: float, cause: Cause) -> None:
    first = again(Failures(count, 0), None, 0.0, jitter, "", cause=cause, proven=True)
    second = again(first.failures, None, 0.0, jitter, "", cause=cause, proven=True)
    longest = TABLE[cause].longest_s
    assert second.delay_s == pytest.approx(min(2 * first.delay_s, longest / 2 * (1 + jitter)))


@given(jitters=st.tuples(JITTER, JITTER))
def test_those_that_fell_together_rise_apart_also_after_a_long_time(jitters: tuple[float, float]) -> None:
    one, other = (again(Failures(40, 0), None, 0.0, j, "", proven=True).delay_s for j in jitters)
    assert abs(one - other) == pytest.approx(abs(jitters[0] - jitters[1]) * DEFAULT_POLICY.max_delay_s / 2)


@given(causes=st.lists(st.sampled_from([*COUNTED, *TRANSIENT]), max_size=30), jitter=JITTER)
def test_gives_up_at_the_third_failure_that_counts(causes: list[Cause], jitter: float) -> None:
    before, counted = NONE, 0
    for cause in causes:
        counted += cause in COUNTED
        verdict = after_failure(before, None, 0.0, jitter, "exited with code 1", cause=cause)
        if isinstance(verdict, GiveUp):
            assert verdict.reason == "gave up after 3 failures in a row: exited with code 1"
            assert counted == 3
            return
        before = verdict.failures
    assert counted < 3


@given(runs=st.lists(st.floats(60, 1e6), min_size=1, max_size=30), jitter=JITTER, now=NOW)
def test_never_gives_up_on_a_replica_that_was_steady_each_time(runs: list[float], jitter: float, now: float) -> None:
    before = NONE
    for ready_for_s in runs:
        ready_since, now = now, now + ready_for_s + 1.0
        verdict = again(before, ready_since, now, jitter, "")
        assert verdict.failures == Failures(1, 1)
        assert verdict.delay_s <= 1.0  # just under it, but for rounding
        before = verdict.failures


@given(ready_for_s=st.floats(0, 59.9), jitter=JITTER)
def test_on_trial_a_short_success_forgives_nothing(ready_for_s: float, jitter: float) -> None:
    assert isinstance(after_failure(Failures(2, 2), 1000.0, 1000.0 + ready_for_s, jitter, ""), GiveUp)


@given(before=BEFORE, ready_since=st.none() | st.floats(0, 1e3), jitter=JITTER, cause=st.sampled_from(PERMANENT))
def test_what_cannot_be_mended_fails_at_once(
    before: Failures, ready_since: float | None, jitter: float, cause: Cause
) -> None:
    verdict = after_failure(before, ready_since, 1e6, jitter, "no such folder: /m", cause=cause)
    assert verdict == GiveUp("no such folder: /m")
