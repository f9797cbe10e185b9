"""Placement as a linear program, and the rules for single questions: against hand-solved cases and as properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.offload.placement import (
    Item,
    Phase,
    Place,
    Problem,
    balanced,
    hot_set,
    latency_first,
    place,
    with_more,
)
from simulator.specs import MemroofError


def streamed(gpu: float, dram: float, compute: float = 2.0) -> Problem:
    """100 bytes of weights over three tiers, streamed ten times beside computation; the link moves 10 B/s, the drive 2 B/s."""
    weights = Item(
        "weights",
        (
            Place("gpu", {"gpu": 100.0}),
            Place("dram", {"dram": 100.0}, {"pass": {"link": 100.0}}),
            Place("nvme", {"nvme": 100.0}, {"pass": {"link": 100.0, "drive": 100.0}}),
        ),
    )
    passes = Phase("pass", 10.0, {"compute": compute})
    return Problem(
        (weights,), (passes,), {"gpu": gpu, "dram": dram, "nvme": 1000.0},
        {"link": 10.0, "drive": 2.0, "compute": 1.0},
    )  # fmt: skip


def test_the_fastest_tiers_are_filled_and_the_drive_sets_the_pace():
    found = place(streamed(20.0, 50.0))
    assert found.shares["weights"] == pytest.approx({"gpu": 0.2, "dram": 0.5, "nvme": 0.3})
    # 30 bytes at 2 B/s, ten times; the link needs 8 s, computation 2 s
    assert found.time == pytest.approx(150.0)
    assert found.busiest == {"pass": ("drive",)}
    # a byte more above the drive saves ten passes of half a second
    assert found.memory_price == pytest.approx({"gpu": 5.0, "dram": 5.0, "nvme": 0.0}, abs=1e-3)
    # 300 bytes over b B/s: the derivative is 300 / b^2
    assert found.lane_price["drive"] == pytest.approx(75.0)
    assert found.lane_price["link"] == 0.0


def test_of_equally_fast_placements_the_one_that_moves_least_is_chosen():
    # computation takes 20 s, and all of it could be streamed from DRAM behind it
    found = place(streamed(40.0, 100.0, compute=20.0))
    assert found.time == pytest.approx(200.0)
    assert found.shares["weights"] == pytest.approx({"gpu": 0.4, "dram": 0.6, "nvme": 0.0})
    assert found.memory_price["gpu"] < 1e-3


def test_what_fits_nowhere_lacks_as_few_bytes_as_can_be():
    problem = streamed(20.0, 30.0)
    small = Problem(problem.items, problem.phases, {**problem.capacity, "nvme": 40.0}, problem.rate)
    found = place(small)
    assert found.time == np.inf
    assert sum(found.shortage.values()) == pytest.approx(10.0)
    assert set(found.shortage) == {"nvme"}


memory = st.floats(5.0, 60.0)


@settings(max_examples=25, deadline=None)
@given(memory, memory, st.floats(0.1, 12.0))
def test_prices_are_derivatives_and_more_never_hurts(gpu, dram, compute):
    problem = streamed(gpu, dram, compute)
    base = place(problem)
    for name in ("gpu", "dram"):
        more = place(with_more(problem, memory=name, more=1e-3))
        assert more.time <= base.time * (1.0 + 1e-9)
        assert (base.time - more.time) / 1e-3 <= base.memory_price[name] + 1e-2
    for name in ("link", "drive"):
        more = place(with_more(problem, lane=name, factor=1.001))
        assert more.time <= base.time * (1.0 + 1e-9)
    # no placement beats its busiest lane's bound
    assert base.time >= 10.0 * max(compute, (100.0 - gpu - dram) / 2.0) - 1e-6
    assert sum(base.shares["weights"].values()) == pytest.approx(1.0)
    assert base.shares["weights"]["gpu"] * 100.0 <= gpu + 1e-6


def test_training_states_use_the_same_program():
    # optimizer states of 12 bytes a parameter, moved there and back; gradients of 2: of 100 bytes of room, states are left out
    states = Item(
        "states", (Place("gpu", {"gpu": 120.0}), Place("dram", {"dram": 120.0}, {"step": {"link": 240.0}}))
    )
    gradients = Item(
        "gradients", (Place("gpu", {"gpu": 20.0}), Place("dram", {"dram": 20.0}, {"step": {"link": 20.0}}))
    )
    problem = Problem(
        (states, gradients), (Phase("step", 1.0),), {"gpu": 100.0, "dram": 500.0}, {"link": 1.0}
    )
    found = place(problem)
    # states move twice their bytes, gradients once: every byte of room goes to states
    assert found.shares["states"]["gpu"] == pytest.approx(100.0 / 120.0)
    assert found.shares["gradients"]["gpu"] == 0.0
    assert found.time == pytest.approx(2.0 * 20.0 + 20.0)


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (Problem((Item("a", ()),), (), {}, {}), "a has no place"),
        (Problem((Item("a", (Place("x", {"gone": 1.0}),)),), (), {}, {}), "gone, which has no capacity"),
        (Problem((), (Phase("p", 1.0, {"lane": 1.0}),), {}, {}), "no rate is known of lane"),
    ],
)
def test_incomplete_problems_are_refused(problem, message):
    with pytest.raises(MemroofError, match=message):
        place(problem)


def test_what_waits_for_bytes_comes_into_the_nearest_memory():
    # fp32 states that the CPU's Adam reads and writes, beside staging buffers that only copies touch
    assert latency_first([48, 16, 16], [4, 1, 1], [64, 200], [90e-9, 250e-9]) == [0, 0, 1]
    # the second tier answers faster: it comes first
    assert latency_first([10], [1], [10, 10], [300e-9, 90e-9]) == [1]
    # nothing has room: the last tier
    assert latency_first([30], [1], [10, 20], [90e-9, 250e-9]) == [1]


@given(st.lists(st.floats(0.0, 10.0), min_size=1, max_size=20), st.floats(0.0, 100.0))
def test_the_hot_set_fits_and_is_the_hottest(scores, capacity):
    chosen = hot_set(scores, 7.0, capacity)
    assert 7.0 * chosen.sum() <= capacity
    kept = [score for score, held in zip(scores, chosen, strict=True) if held]
    left = [score for score, held in zip(scores, chosen, strict=True) if not held]
    if kept and left:
        assert min(kept) >= max(left)


def test_two_paths_end_together():
    # MoNDE's machine: PCIe 4.0 x16 beside 512 GB/s in the memory device, 128 experts of Switch-Large
    moved = balanced(128.0, 32e9, 512e9)
    assert moved / 32e9 == pytest.approx((128.0 - moved) / 512e9)
    assert balanced(10.0, 1.0, 0.0) == 10.0
    with pytest.raises(MemroofError, match="share nothing"):
        balanced(1.0, 0.0, 0.0)
