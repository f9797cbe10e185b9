"""Laws of long runs: bounds, optima, and agreement with simulated failures."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.training.reliability import daly_interval, effective_time, expected_maximum, staffed_share

seconds = st.floats(1.0, 1e4)


@given(seconds, seconds, st.floats(1e2, 1e7), seconds)
def test_goodput_is_a_share_that_grows_with_reliability(interval, blocked, mtbf, restart):
    share = effective_time(interval, blocked, mtbf, restart)
    assert 0.0 <= share <= interval / (interval + blocked) + 1e-12
    assert effective_time(interval, blocked, 2.0 * mtbf, restart) >= share
    assert effective_time(interval, blocked, mtbf, 2.0 * restart) <= share
    assert effective_time(interval, 2.0 * blocked, mtbf, restart) <= share


@given(st.floats(1.0, 1e3), st.floats(1.0, 1e4))
def test_dalys_interval_is_the_best(write, ratio):
    mtbf = write * (1.0 + ratio)
    best = effective_time(daly_interval(write, mtbf), write, mtbf, 0.0)
    intervals = daly_interval(write, mtbf) * np.geomspace(0.2, 5.0, 101)
    assert best >= np.max(effective_time(intervals, write, mtbf, 0.0)) * (1.0 - 2e-3)


@given(st.integers(1, 100_000), st.integers(1, 100_000))
def test_more_ranks_have_a_slower_slowest(few, more):
    low, high = sorted((few, few + more))
    assert expected_maximum(low) < expected_maximum(high) <= np.sqrt(2.0 * np.log(high)) + 1e-9


@given(st.integers(0, 50), st.floats(1.0, 1e6), st.floats(1.0, 1e6))
def test_each_spare_helps(spares, repair, mtbf):
    share = staffed_share(spares, repair, mtbf)
    assert 0.0 < share <= 1.0
    assert staffed_share(spares + 1, repair, mtbf) >= share


@pytest.mark.parametrize(
    ("interval", "blocked", "mtbf", "restart"), [(600.0, 60.0, 3600.0, 300.0), (100.0, 5.0, 400.0, 50.0)]
)
def test_goodput_of_simulated_failures(interval, blocked, mtbf, restart):
    random = np.random.default_rng(0)
    elapsed, segments = 0.0, 20_000
    for _ in range(segments):
        need = interval + blocked
        while (failure := random.exponential(mtbf)) < need:
            elapsed += failure
            # the job may fail again while it restarts
            while (again := random.exponential(mtbf)) < restart:
                elapsed += again
            elapsed += restart
        elapsed += need
    assert segments * interval / elapsed == pytest.approx(
        float(effective_time(interval, blocked, mtbf, restart)), rel=0.01
    )
