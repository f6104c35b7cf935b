"""Restart decisions: back-off grows and stays in bounds, success forgives, failure in a row ends it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headrace.core.restart import GiveUp, Restart, RestartPolicy, after_failure

JITTER = st.floats(0, 1, exclude_max=True)
NOW = st.floats(1e3, 1e9)
PATIENT = RestartPolicy(max_failures=1_000_000)


@given(failures=st.integers(0, 5000), now=NOW, jitter=JITTER)
def test_pause_is_between_its_bounds(failures: int, now: float, jitter: float) -> None:
    verdict = after_failure(failures, None, now, jitter, "fell over", policy=PATIENT)
    assert isinstance(verdict, Restart)
    assert PATIENT.first_delay_s <= verdict.delay_s <= PATIENT.max_delay_s
    assert verdict.failures == failures + 1


@given(failures=st.integers(0, 100), jitter=JITTER)
def test_pause_never_shrinks_while_failures_go_on(failures: int, jitter: float) -> None:
    first = after_failure(failures, None, 0.0, jitter, "", policy=PATIENT)
    second = after_failure(failures + 1, None, 0.0, jitter, "", policy=PATIENT)
    assert isinstance(first, Restart)
    assert isinstance(second, Restart)
    assert second.delay_s >= first.delay_s
    assert second.delay_s == PATIENT.max_delay_s or second.delay_s == 2 * first.delay_s or first.failures > 6


@given(jitters=st.lists(JITTER, min_size=10, max_size=10), now=NOW)
def test_gives_up_at_the_third_failure_in_a_row(jitters: list[float], now: float) -> None:
    failures, restarts = 0, 0
    for jitter in jitters:
        verdict = after_failure(failures, None, now, jitter, "exited with code 1")
        if isinstance(verdict, GiveUp):
            assert "exited with code 1" in verdict.reason
            break
        failures, restarts = verdict.failures, restarts + 1
    assert restarts == 2


@given(runs=st.lists(st.floats(60, 1e6), min_size=1, max_size=30), jitter=JITTER, now=NOW)
def test_never_gives_up_on_a_replica_that_was_steady_each_time(runs: list[float], jitter: float, now: float) -> None:
    failures = 0
    for ready_for_s in runs:
        ready_since, now = now, now + ready_for_s + 1.0
        verdict = after_failure(failures, ready_since, now, jitter, "")
        assert isinstance(verdict, Restart)
        assert verdict.failures == 1
        assert verdict.delay_s <= 1.0  # just under it, but for rounding
        failures = verdict.failures


@given(ready_for_s=st.floats(0, 59.9), jitter=JITTER)
def test_a_short_success_forgives_nothing(ready_for_s: float, jitter: float) -> None:
    verdict = after_failure(2, 1000.0, 1000.0 + ready_for_s, jitter, "")
    assert isinstance(verdict, GiveUp)


@given(failures=st.integers(0, 5), ready_since=st.none() | st.floats(0, 1e3), jitter=JITTER)
def test_permanent_failure_is_never_retried(failures: int, ready_since: float | None, jitter: float) -> None:
    verdict = after_failure(failures, ready_since, 1e6, jitter, "no such folder: /m", permanent=True)
    assert verdict == GiveUp("no such folder: /m")
