"""Max-min fair rates against cases worked out by hand."""

from math import inf

import pytest

from simulator.engine import max_min_rates


def test_three_flows_in_a_line():
    """Bertsekas and Gallager, Data Networks, section 6.5.2: the long flow and the short ones share evenly."""
    assert max_min_rates([(0, 1), (0,), (1,)], [inf] * 3, [1.0, 1.0]) == [0.5, 0.5, 0.5]


def test_the_second_bottleneck_gives_more():
    assert max_min_rates([(0,), (0, 1), (1,), (1,)], [inf] * 4, [1.0, 0.9]) == pytest.approx(
        [0.7, 0.3, 0.3, 0.3]
    )


def test_limits_come_first():
    assert max_min_rates([(0,), (0,), (0,)], [1.0, inf, 3.0], [9.0]) == [1.0, 5.0, 3.0]


def test_a_limit_above_the_share_does_nothing():
    assert max_min_rates([(0,), (0,)], [100.0, inf], {0: 10.0}) == [5.0, 5.0]


def test_counts_stand_for_equal_flows():
    paths, limits = [(0,), (0, 1), (1,)], [inf, inf, 1.5]
    each = max_min_rates(paths, limits, [12.0, 7.0], [2, 3, 1])
    one_by_one = max_min_rates([(0,)] * 2 + [(0, 1)] * 3 + [(1,)], [inf] * 5 + [1.5], [12.0, 7.0])
    assert [each[0]] * 2 + [each[1]] * 3 + [each[2]] == pytest.approx(one_by_one)
    assert 3 * each[1] + each[2] == pytest.approx(7.0)


def test_no_flows():
    assert max_min_rates([], [], []) == []
