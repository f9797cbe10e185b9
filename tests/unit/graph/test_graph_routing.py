"""Routing: how many experts work, what the busiest rank gets, how loads are distributed."""

import numpy as np
import pytest

from simulator.graph import active_experts, routed
from simulator.graph.routing import busiest_share, load_nodes, normal_quantile


def test_even_routing_fills_experts_one_by_one() -> None:
    found = routed(np.array([1.0, 4.0, 64.0]), 32, 4, 2, even=True)
    assert found.copies == pytest.approx([2.0, 8.0, 128.0])
    assert found.active == pytest.approx([2.0, 8.0, 16.0])


def test_uniform_routing_leaves_experts_idle() -> None:
    # 2 of 8 experts a token: one is missed with 3/4, by two tokens with 9/16
    assert active_experts(8, 2, 2) == pytest.approx(8 * 7 / 16)
    found = routed(2, 8, 2, 4)
    assert (found.copies, found.active) == pytest.approx((1.0, 8 * 7 / 16 / 4))


def test_nodes_of_a_power_law_lie_at_its_quantiles() -> None:
    # of an exponent of 2 the quantile at u is 1 / (1 - u (1 - 1/R)); with R = 4 and u = 1/4, 3/4 it is 16/13 and 16/7
    nodes = load_nodes(2.0, 4.0, 2)
    assert nodes == pytest.approx(np.array([16 / 13, 16 / 7]) / ((16 / 13 + 16 / 7) / 2))
    # of 1 it is R^u
    assert load_nodes(1.0, 16.0, 2) == pytest.approx(np.array([2.0, 8.0]) / 5.0, rel=1e-4)
    assert load_nodes(1.2, np.array([1.0, 1.0])) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("experts", "ranks", "exponent", "reach"), [(256, 8, 1.2, 800.0), (128, 32, 1.01, 3000.0)]
)
def test_busiest_rank_agrees_with_drawing(experts: int, ranks: int, exponent: float, reach: float) -> None:
    u = np.random.default_rng(1).random((4000, experts))
    loads = (1 - u * (1 - reach ** (1 - exponent))) ** (1 / (1 - exponent))
    share = loads.reshape(-1, ranks, experts // ranks).sum(2).max(1) / loads.sum(1) * ranks
    assert float(busiest_share(experts, ranks, exponent, reach)) == pytest.approx(share.mean(), rel=0.07)


def test_one_rank_has_the_mean_and_none_more_than_every_token() -> None:
    assert float(busiest_share(64, 1, 1.2, 100.0)) == 1.0
    found = routed(1000, 8, 4, 8, skew=1.2)
    assert float(found.copies) == 1000.0
    assert float(found.active) <= 1.0


def test_skew_leaves_more_experts_idle() -> None:
    tokens = np.array([16.0, 256.0])
    assert np.all(routed(tokens, 128, 8, skew=1.2).active < routed(tokens, 128, 8).active)


def test_normal_quantile_of_tables() -> None:
    assert normal_quantile(np.array([0.5, 0.9, 0.975, 0.999])) == pytest.approx(
        [0.0, 1.2816, 1.9600, 3.0902], abs=3e-3
    )
