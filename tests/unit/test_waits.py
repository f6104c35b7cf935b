"""How long the next one would wait."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.waits import Mean, expected_wait_s, retry_after_s, service_rate


@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=200))
def test_mean_stays_between_the_extremes(values):
    mean = Mean()
    for v in values:
        mean.add(v)
    assert min(values) * 0.999 <= mean.value <= max(values) * 1.001


def test_mean_follows_a_change():
    mean = Mean()
    for _ in range(500):
        mean.add(1.0)
    for _ in range(150):
        mean.add(10.0)
    assert mean.value > 9.0


def test_nothing_is_known_before_the_first_end():
    assert expected_wait_s(3, service_rate(8, Mean())) is None
    assert retry_after_s(None) == 1.0


@given(st.floats(0, 1e6))
def test_retry_after_is_bounded(seconds):
    assert 1.0 <= retry_after_s(seconds) <= 60.0


@pytest.mark.parametrize("slots", [1, 4, 32])
def test_estimate_of_a_simulated_queue(slots):
    """Against a queue that is played through: right within a quarter."""
    random = Random(slots)
    held = Mean()
    for _ in range(400):
        held.add(random.uniform(0.5, 1.5))
    ahead = 200
    free_at = sorted(random.uniform(0.5, 1.5) for _ in range(slots))
    for _ in range(ahead):
        free_at.append(free_at.pop(0) + random.uniform(0.5, 1.5))
        free_at.sort()
    expected = expected_wait_s(ahead, service_rate(slots, held))
    assert expected == pytest.approx(free_at[0], rel=0.25)
