"""Grouped products by hand: tiles of every expert, steps with a latency, streams of weights."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.cost import CostModel
from simulator.cost.grouped import GroupedKernel, grouped_time
from simulator.graph.work import Matmul, Route
from simulator.specs import Catalog

# 100 units of 1 TFLOP/s, a memory of 1 TB/s; nothing exposed, no latency
KERNEL = GroupedKernel(1.0, 1.0, 0.0, 1.0, 0.0, 1e12, 0.5)
DEVICE: dict[str, Any] = {"peak": 1e14, "bandwidth": 1e12, "units": 100.0, "tile_m": 256.0, "tile_n": 256.0}
# 10 experts of 64 rows: 10·(6400/64) = 1000 tiles of 64 x 64, ten waves
EVEN = Matmul(64.0, 6400.0, 4096.0, 10.0, grouped=True, tile=(64.0, 64.0), loop=32.0)


def test_loops_of_full_waves() -> None:
    parts = grouped_time(EVEN, KERNEL, **DEVICE)
    assert parts.compute == pytest.approx(10 * 2 * 64 * 64 * 4096 / 1e12)
    weights = 10 * 2 * (6400 * 4096 + 64 * 4096 + 64 * 6400)
    assert parts.memory == pytest.approx(weights / 1e12)
    assert parts.time == max(parts.compute, parts.memory)


def test_each_step_pays_its_latency_and_more_out_of_cache() -> None:
    plain = grouped_time(EVEN, KERNEL, **DEVICE).compute
    kernel = KERNEL._replace(step_latency=1e-7, uncached_step=3.0)
    # rows of 5.2 MB in a cache of 5.2 GB, then in none; 4096 / 32 = 128 steps in each of ten waves
    cached = grouped_time(EVEN, kernel, cache=5.2e9, **DEVICE)
    assert cached.compute - plain == pytest.approx(1280 * 1e-7)
    assert grouped_time(EVEN, kernel, cache=1.0, **DEVICE).compute - plain == pytest.approx(3840 * 1e-7)
    # copies of a token are one row in memory: 64 of them fit where single rows would not
    shared = replace(EVEN, sharing=64.0)
    assert grouped_time(shared, kernel, cache=1e6, **DEVICE).compute - plain == pytest.approx(
        1280e-7, rel=0.01
    )
    assert grouped_time(EVEN, kernel, cache=1e6, **DEVICE).compute - plain == pytest.approx(3840e-7, rel=0.01)


def test_exposed_share_of_the_shorter_part_is_added() -> None:
    parts = grouped_time(EVEN, KERNEL._replace(exposed=0.5), **DEVICE)
    assert parts.time == pytest.approx(
        max(parts.compute, parts.memory) + 0.5 * min(parts.compute, parts.memory)
    )


def test_rows_of_an_expert_are_rounded_up_to_tiles() -> None:
    # 65 rows have two tiles of 64: twice the time for one row
    assert grouped_time(replace(EVEN, m=65.0), KERNEL, **DEVICE).compute == pytest.approx(
        2.0 * grouped_time(EVEN, KERNEL, **DEVICE).compute
    )
    # of rows that scatter around 64 two of three nodes in weight still fit, one in six does not
    scattered = grouped_time(replace(EVEN, spread=0.125), KERNEL, **DEVICE)
    assert scattered.compute == pytest.approx(7 / 6 * grouped_time(EVEN, KERNEL, **DEVICE).compute, rel=0.03)


def test_skew_costs_tiles() -> None:
    even = grouped_time(EVEN, KERNEL, **DEVICE)
    skewed = grouped_time(replace(EVEN, skew=1.2, reach=1000.0), KERNEL, **DEVICE)
    assert skewed.compute > 1.2 * even.compute
    assert skewed.memory == even.memory


def test_converted_weights_and_scales_slow_the_loop() -> None:
    narrow = grouped_time(replace(EVEN, right_bytes=0.5), KERNEL, **DEVICE)
    plain = grouped_time(EVEN, KERNEL, **DEVICE)
    assert narrow.compute == pytest.approx(2.0 * plain.compute)
    assert narrow.memory < plain.memory
    # 64·64 sums, promoted 32 times in each of ten waves
    scaled = grouped_time(replace(EVEN, scaled=1.0), KERNEL, **DEVICE)
    assert scaled.compute - plain.compute == pytest.approx(10 * 32 * 64 * 64 / 1e12)


def test_vector_units_multiply_only_the_rows_there_are() -> None:
    few = replace(EVEN, m=16.0)
    padded = grouped_time(few, KERNEL, **DEVICE).compute
    assert grouped_time(few, KERNEL, row_padding=False, **DEVICE).compute == pytest.approx(padded / 4)


def test_few_tiles_cannot_saturate_the_memory() -> None:
    lone = replace(EVEN, count=1.0, n=640.0)
    # ten tiles on a hundred units, of which twenty saturate
    size = 2 * (640 * 4096 + 64 * 4096 + 64 * 640)
    assert grouped_time(lone, KERNEL, **DEVICE).memory == pytest.approx(2.0 * size / 1e12)


def test_no_expert_takes_no_time() -> None:
    assert grouped_time(replace(EVEN, m=0.0, count=0.0), KERNEL, **DEVICE).time == 0.0


@pytest.mark.parametrize("tile", [None, (64.0, 64.0)])
@pytest.mark.parametrize("law", [{}, {"spread": 0.2}, {"skew": 1.2, "reach": 50.0}])
def test_arrays_equal_their_elements(tile: Any, law: dict[str, float]) -> None:
    kernel = KERNEL._replace(step_latency=1e-7, exposed=0.3)
    m, count = np.array([3.0, 80.0, 700.0]), np.array([[4.0], [32.0]])
    swept = grouped_time(replace(EVEN, m=m, count=count, tile=tile, **law), kernel, **DEVICE)
    for i, c in enumerate(count[:, 0]):
        for j, rows in enumerate(m):
            one = grouped_time(
                replace(EVEN, m=float(rows), count=float(c), tile=tile, **law), kernel, **DEVICE
            )
            assert isinstance(one.time, float)
            assert swept.time[i, j] == pytest.approx(one.time)


def test_routing_is_a_latency_a_sort_and_a_sum() -> None:
    catalog = Catalog()
    gpu = catalog.processor("h100-sxm")
    cost = CostModel(gpu, catalog.calibration(gpu))
    constants = cost.calibration.grouped_matmul
    route = Route(1e4, 1e6)
    expected = constants.layer_latency + 1e4 / constants.sort_rate + 1e6 / constants.sum_rate
    priced = cost.price(route)
    assert (priced.operator_class, priced.time) == ("grouped-matmul", pytest.approx(expected))
    assert (route.flops, route.bytes) == (0.0, 8e4 + 2e6)


@given(
    m=st.floats(1.0, 1e4), n=st.sampled_from([192.0, 4096.0]), k=st.sampled_from([768.0, 7168.0]),
    count=st.floats(1.0, 256.0), skew=st.sampled_from([0.0, 1.01, 1.5]), factor=st.floats(1.0, 10.0),
)  # fmt: skip
def test_faster_devices_are_never_slower(
    m: float, n: float, k: float, count: float, skew: float, factor: float
) -> None:
    work = Matmul(m, n, k, count, grouped=True, skew=skew, reach=100.0)
    kernel = KERNEL._replace(step_latency=1e-7, exposed=0.3)
    slow = grouped_time(work, kernel, **DEVICE).time
    for changed in ("peak", "bandwidth"):
        fast = DEVICE | {changed: DEVICE[changed] * factor}
        assert grouped_time(work, kernel, **fast).time <= slow * (1.0 + 1e-9)
