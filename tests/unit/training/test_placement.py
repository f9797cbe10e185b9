"""Worker placement: planted optima, brute force, laws of the cost, a published set of measured regions."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.specs import Catalog, Hardware, MemroofError, PairRates
from simulator.specs.scenario_base import HardwareChoice
from simulator.training.groups import Groups
from simulator.training.placement import MAXIMUM_RANKS, Load, Problem, place, rank_grid

CATALOG = Catalog(environment={})
REGIONS = CATALOG.hardware(HardwareChoice(cluster="aws-eight-regions"))
DGX = CATALOG.hardware(HardwareChoice(node="dgx-a100-80gb", nodes=4))


def groups(
    tensor: int = 1, context: int = 1, pipeline: int = 1, data: int = 1, expert: int = 1, inside: bool = False
) -> Groups:
    return Groups(tensor, context, pipeline, data, expert, 1, data * context, inside)


def singles(rates: np.ndarray) -> Hardware:
    """Nodes of one accelerator with measured rates between them."""
    base = CATALOG.hardware(HardwareChoice(node="server-1x4090"))
    table = tuple(map(tuple, rates.tolist()))
    return replace(
        base,
        nodes=len(rates),
        rates=PairRates("nodes", table, tuple((0.0,) * len(rates) for _ in rates), "a test"),
    )


def random_rates(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).lognormal(np.log(1e9), 1.0, (count, count))


# --- the cost ---


def test_a_ring_is_as_fast_as_its_slowest_edge() -> None:
    rates = np.full((4, 4), 10e9)
    rates[1, 2] = 2e9
    problem = Problem(groups(data=4), {"data": Load(4e9)}, singles(rates))
    orders = np.array([[0, 1, 2, 3], [0, 2, 1, 3], [2, 1, 0, 3]])
    assert problem.seconds(orders) == pytest.approx([2.0, 0.4, 0.4])


def test_a_pipeline_adds_its_boundaries_and_waits_for_the_slowest_replica() -> None:
    rates = np.full((6, 6), 1e9)
    rates[0, 2] = 0.5e9
    loads = {"pipeline": Load(1e9)}
    # stages 0-1, 2-3, 4-5: the first replica passes 0, 2, 4
    assert Problem(groups(pipeline=3, data=2), loads, singles(rates)).seconds(
        np.arange(6)[None]
    ) == pytest.approx([3.0])
    closed = Problem(groups(pipeline=3, data=2), loads, singles(rates), wraps=True)
    assert closed.seconds(np.arange(6)[None]) == pytest.approx([4.0])


def test_an_exchange_sends_to_all_peers_one_after_the_other() -> None:
    rates = np.full((4, 4), 1e9)
    problem = Problem(groups(data=4, expert=4), {"expert": Load(4e9, 2.0)}, singles(rates))
    assert problem.seconds(np.arange(4)[None]) == pytest.approx([3.0])


def test_all_members_of_a_node_carry_a_ring_out_of_it() -> None:
    """Two nodes of eight: in order the ring leaves each node once, over eight NICs; alternating it leaves eight times."""
    two = DGX.with_nodes(2)
    problem = Problem(groups(data=16), {"data": Load(2e9)}, two)
    order = np.arange(16)
    alternating = np.stack([order[:8], order[8:]], axis=1).ravel()
    in_order, mixed = problem.seconds(np.stack([order, alternating]))
    assert in_order == pytest.approx(max(2e9 / 300e9, 2e9 / (8 * 25e9)))
    assert mixed == pytest.approx(2e9 / 25e9)


def test_latency_counts_by_hops() -> None:
    problem = Problem(groups(data=2), {"data": Load(0.0, 4.0)}, DGX)
    assert problem.seconds(np.arange(32)[None]) == pytest.approx([4.0 * DGX.pair_rates()[1][0, 1]])


@given(st.permutations(range(16)))
def test_the_cost_agrees_with_the_spans_of_the_placed_hardware(order: list[int]) -> None:
    """A group in one node takes bytes over the node's bandwidth; one across nodes no less than its network level."""
    two = DGX.with_nodes(2)
    problem = Problem(groups(data=2, pipeline=8), {"data": Load(1e9)}, two)
    placed = two.placed(order)
    spans = [placed.group((rank, rank + 1)).tiers[0].bandwidth for rank in range(0, 16, 2)]
    assert problem.times(np.array([order]))["data"][0] == pytest.approx(1e9 / np.array(spans))


@pytest.mark.parametrize("inside", [False, True])
def test_rank_grid_follows_the_rank_order(inside: bool) -> None:
    """Megatron-LM's order has replicas nearer than stages; Llama 3's stages nearer than replicas."""
    grid = rank_grid(groups(2, 2, 3, 5, inside=inside))
    assert grid.shape == (3, 5, 2, 2)
    assert grid[0, 0, 0, 1] == 1
    assert grid[0, 0, 1, 0] == 2
    assert grid[1, 0, 0, 0] == (4 if inside else 20)
    assert grid[0, 1, 0, 0] == (12 if inside else 4)


# --- the search ---


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 1000))
def test_never_worse_than_ranks_in_order_and_a_permutation(seed: int) -> None:
    hardware = singles(random_rates(seed, 8))
    loads = {"data": Load(1e9, 2.0), "pipeline": Load(1e8), "tensor": Load(1e9), "context": Load(1e7)}
    found = place(groups(2, 1, 2, 2), loads, hardware, seed=seed, steps=100)
    assert found.seconds <= found.seconds_in_order * (1.0 + 1e-12)
    assert sorted(found.order) == list(range(8))
    assert found.hardware.order == found.order
    assert sum(found.by_exchange.values()) == pytest.approx(found.seconds)


@pytest.mark.parametrize("seed", range(4))
def test_small_instances_reach_the_optimum_of_brute_force(seed: int) -> None:
    hardware = singles(random_rates(seed, 6))
    arguments = groups(pipeline=3, data=2), {"data": Load(3e9), "pipeline": Load(1e9)}, hardware
    orders = np.array(list(itertools.permutations(range(6))))
    best = Problem(*arguments).seconds(orders).min()
    assert place(*arguments, seed=seed, steps=1500).seconds == pytest.approx(best)


def test_islands_are_found_again() -> None:
    """32 GPUs on eight islands of four that were shuffled: every data-parallel group gets an island."""
    islands = np.random.default_rng(3).permutation(32) // 4
    rates = np.where(islands[:, None] == islands[None, :], 100e9, 1e9)
    found = place(groups(pipeline=8, data=4), {"data": Load(1e9)}, singles(rates), seed=1, steps=1500)
    assert found.seconds == pytest.approx(0.01)
    assert found.seconds_in_order == pytest.approx(1.0)
    assert found.bandwidths["data"] == pytest.approx(100e9)
    placed = islands[np.array(found.order)].reshape(8, 4)
    assert (placed == placed[:, :1]).all()
    assert found.hardware.span(4).tiers[0].bandwidth == pytest.approx(100e9)


def test_the_best_of_more_accelerators_than_ranks_are_used() -> None:
    rates = np.full((6, 6), 1e9)
    rates[np.ix_([1, 3, 5, 4], [1, 3, 5, 4])] = 10e9
    found = place(groups(data=4), {"data": Load(1e9)}, singles(rates), steps=500)
    assert set(found.order[:4]) == {1, 3, 4, 5}
    assert found.seconds == pytest.approx(0.1)


def test_the_same_seed_gives_the_same_placement() -> None:
    hardware = singles(random_rates(5, 12))
    arguments = groups(pipeline=3, data=4), {"data": Load(1e9), "pipeline": Load(1e9)}, hardware
    first, again = (place(*arguments, seed=7, steps=200) for _ in range(2))
    assert first.order == again.order
    assert first.seconds == again.seconds
    assert len({place(*arguments, seed=seed, steps=40).order for seed in range(3)}) > 1


def test_nothing_to_send_or_to_move_keeps_the_order() -> None:
    quiet = place(groups(pipeline=2, data=2), {}, singles(random_rates(0, 4)))
    assert (quiet.order, quiet.seconds, dict(quiet.bandwidths)) == ((0, 1, 2, 3), 0.0, {})
    alone = place(groups(), {"data": Load(1e9)}, CATALOG.hardware(HardwareChoice(node="server-1x4090")))
    assert alone.order == (0,)
    equal = place(groups(data=4), {"data": Load(1e9)}, singles(np.full((4, 4), 1e9)), steps=40)
    assert equal.seconds == equal.seconds_in_order


def test_tensor_groups_stay_in_their_nodes_and_shuffled_nodes_are_sorted() -> None:
    """32 GPUs of four nodes whose pairs were measured: nodes 0, 2 and 1, 3 are near."""
    rates = np.full((4, 4), 10e9)
    rates[0, 2] = rates[2, 0] = rates[1, 3] = rates[3, 1] = 200e9
    hardware = replace(DGX, rates=PairRates("nodes", tuple(map(tuple, rates)), None, "a test"))
    loads = {"tensor": Load(50e9, 100), "data": Load(5e9, 4), "pipeline": Load(0.1e9, 8)}
    found = place(groups(8, 1, 2, 2), loads, hardware, seed=2, steps=1000)
    nodes = np.array([hardware.node_of(place) for place in found.order]).reshape(2, 2, 8)
    assert (nodes == nodes[..., :1]).all()
    assert {frozenset(stage[:, 0].tolist()) for stage in nodes} == {frozenset((0, 2)), frozenset((1, 3))}


def test_the_measured_regions_of_the_paper() -> None:
    """Yuan et al. 2022: 64 GPUs in eight regions, GPT-3 1.3B as eight stages of eight replicas.

    Each stage stays in a region and the pipeline takes the best way through all of them, found here by trying all
    40,320; random placements, the paper's baseline without its scheduler, communicate more than twice as long.
    """
    stages = groups(pipeline=8, data=8)
    loads = {"data": Load(2 * 7 / 8 * 2 * 1.3e9 / 8, 14), "pipeline": Load(2 * 8 * 2048 * 2048 * 2.0, 16)}
    found = place(stages, loads, REGIONS, seed=0)
    ways = np.array(list(itertools.permutations(range(8))))[:, :, None] * 8 + np.arange(8)
    problem = Problem(stages, loads, REGIONS)
    best = problem.seconds(ways.reshape(len(ways), 64)).min()
    assert found.seconds <= 1.005 * best
    regions = np.array(found.order).reshape(8, 8) // 8
    assert (regions == regions[:, :1]).all()
    random = np.random.default_rng(0)
    assert problem.seconds(np.array([random.permutation(64) for _ in range(50)])).mean() > 2.0 * found.seconds


def test_what_cannot_be_placed() -> None:
    with pytest.raises(MemroofError, match=r"64 ranks cannot be placed on .* 32 accelerators"):
        place(groups(data=64), {}, DGX)
    with pytest.raises(MemroofError, match=r"has 4,480 accelerators; up to 2,048"):
        place(groups(data=64), {}, CATALOG.hardware(HardwareChoice(cluster="selene")))
    assert MAXIMUM_RANKS == 2048
