"""Products: tiles, waves, split-K and the roofline, against counts done by hand."""

import numpy as np
import pytest

from simulator.cost import matmul_time, overlap

# one tile of 256 x 128 takes 1 s a step of k on one unit: nothing but waves and the loop is left
IDEAL = {
    "peak_efficiency": 1.0,
    "memory_efficiency": 1.0,
    "tile_m": 256.0,
    "tile_n": 256.0,
    "tile_edge": 0.0,
    "epilogue_rate": np.inf,
    "fill": 1.0,
}
A100 = {"peak": 312e12, "bandwidth": 2039e9, "units": 108.0}
NO_MEMORY = {"peak": 312e12, "bandwidth": 1e30, "units": 108.0}


def steps(m: float, n: float, k: float, **changes: float) -> float:
    """Compute time in units of a 64 x 64 tile's step on one SM."""
    parts = matmul_time(m, n, k, **(NO_MEMORY | IDEAL | changes))
    return float(parts.time) / (2.0 * 64 * 64 / (312e12 / 108))


def test_one_tile_more_than_the_sms_takes_a_second_wave():
    # 108 SMs: 108 tiles of 64 x 64 are one wave of k steps; the 109th makes it two for this tile, and what it
    # costs with any other tile or split is no less than the work of 109 tiles
    assert steps(64, 64 * 108, 1000) == pytest.approx(1000)
    assert 1000 * 109 / 108 < steps(64, 64 * 109, 1000) <= 2000


def test_wave_quantisation_of_large_tiles():
    # 12 x 9 tiles of 256 x 128, each worth eight of 64 x 64, fill 108 SMs exactly once
    assert steps(12 * 256, 9 * 128, 4096) == pytest.approx(8 * 4096)
    # a row of tiles more would take a second wave of them; 52 x 18 tiles of 64 x 64 waste least: ceil(936 / 108) = 9 waves, where
    # the work itself is 8.67
    assert steps(13 * 256, 9 * 128, 4096) == pytest.approx(9 * 4096)


def test_split_k_uses_idle_units():
    # one tile of 64 x 64 keeps one SM busy; 32 parts of k keep 32, each a 32nd as long
    assert steps(64, 64, 8000) == pytest.approx(250)


def test_adding_the_parts_is_another_kernel():
    # without a split 8000 steps; with the best one 250 and the second kernel, unless that takes longer
    step = 2.0 * 64 * 64 / (312e12 / 108)
    assert steps(64, 64, 8000, split_latency=1000 * step) == pytest.approx(1250)
    assert steps(64, 64, 8000, split_latency=9000 * step) == pytest.approx(8000)


def test_a_drifting_tail_costs_its_share():
    # 117 tiles of 256 x 128 alone: 1 + 9/108 waves; half of the idle part of the second is lost
    tile = {"tile": (256.0, 128.0)}
    assert steps(13 * 256, 9 * 128, 4096, **tile) == pytest.approx(2 * 8 * 4096)
    # 216 + 1 tiles of 64 x 64, too many to split: 2.009 waves count as 2.505
    assert steps(64, 64 * 217, 1000, wave_tail=0.5) <= (217 / 108 + 3) / 2 * 1000 * (1 + 1e-9)


def test_epilogue_of_a_tile():
    # a unit that finishes an element in the time of 100 steps of it
    rate = 312e12 / 108 / 200
    assert steps(64 * 108, 64, 1000, epilogue_rate=rate) == pytest.approx(1100)


def test_small_tiles_are_slowed_by_their_edges():
    # an edge of 32 and the largest tile of 256 x 128: a product of 64 x 128 takes 2·(1 - 32·3/256)·64·128 + 2·32·(64 + 128)
    # = 22528 instead of 16384; 54 of them with k in two parts fill the SMs: 22528 / 8192 · 500 steps of 64 x 64
    assert steps(64, 64 * 108, 1000, tile_edge=32.0) == pytest.approx(22528 / 8192 * 500)
    # and the largest tile has its peak: 108 of them
    assert steps(12 * 256, 9 * 128, 4096, tile_edge=32.0) == pytest.approx(8 * 4096)


def test_a_unit_loads_its_operands():
    # 64 x 64 tiles of 16 bits load 256 bytes a step of k; at 64 bytes in the time of a step they take four
    step = 2.0 * 64 * 64 / (312e12 / 108)
    slow = steps(64 * 108, 64, 1000, unit_bandwidth=64 / step, tile=(64.0, 64.0))
    assert slow == pytest.approx(4000)


def test_power_binds_with_all_units_at_work():
    # half of the peak with 108 tiles; one tile has the SM's whole peak
    assert steps(64 * 108, 64, 1000, peak_efficiency=0.5, tile=(64.0, 64.0)) == pytest.approx(2000)
    assert steps(64, 64, 1000, peak_efficiency=0.5, tile=(64.0, 64.0)) == pytest.approx(1000 * (1 + 1 / 108))


def test_block_scaled_products_wait_for_each_block_of_k():
    step = 2.0 * 64 * 64 / (312e12 / 108)
    given = {"step_latency": 1280 * step, "splits": False}
    # 8 blocks of 128 elements at 1280 steps each
    assert steps(64, 64, 1024, **given) == pytest.approx(8 * 1280)
    # promotion: every element of the tile once in 128 steps, at 64 x 64 elements in 128 steps' time
    promoted = {
        "promotion_rate": 64 * 64 / (128 * step),
        "splits": False,
        "step_latency": 1e-30,
        "tile": (64.0, 64.0),
    }
    assert steps(64 * 108, 64, 1024, **promoted) == pytest.approx(2048)
    assert steps(64 * 108, 64, 1024, promotions=3.0, **promoted) == pytest.approx(4096)


def test_the_outputs_of_a_scaled_product_leave_in_proportion_to_their_bytes():
    # 64 x 64 elements a tile; a sum in fp32 that is read and written has four times the bytes of 16 bits
    step = 2.0 * 64 * 64 / (312e12 / 108)
    given = {"splits": False, "tile": (64.0, 64.0), "epilogue_rate": 64 * 64 / (100 * step)}
    scaled = given | {"step_latency": 1e-30}
    assert steps(64 * 108, 64, 1000, **scaled) == pytest.approx(1100)
    assert steps(64 * 108, 64, 1000, out_bytes=8.0, **scaled) == pytest.approx(1400)
    assert steps(64 * 108, 64, 1000, out_bytes=8.0, **given) == pytest.approx(1100)


def test_operands_that_fit_stream_from_the_cache():
    given = A100 | IDEAL | {"cache": 40e6, "cache_bandwidth": 4.0, "splits": False}
    cold = matmul_time(1, 4096, 1024, **given)
    warm = matmul_time(1, 4096, 1024, reuse_distance=8.4e6, **given)
    thrashed = matmul_time(1, 4096, 1024, reuse_distance=400e6, **given)
    assert warm.memory == pytest.approx(cold.memory / 4, rel=1e-3)
    assert thrashed.memory == cold.memory
    # at the capacity the step is rounded: half hits
    assert matmul_time(1, 4096, 1024, reuse_distance=40e6, **given).memory == pytest.approx(
        cold.memory * 0.625, rel=1e-3
    )


def test_matrix_vector_product_streams_its_weights():
    # 12288 x 49152 weights in 16 bits: 1.21 GB at 2039 GB/s, 0.59 ms; the product itself is negligible
    parts = matmul_time(1, 49152, 12288, **(A100 | IDEAL))
    exact = 2.0 * (12288 + 12288 * 49152 + 49152) / 2039e9
    # and partial sums of a split k add a little
    assert exact <= parts.memory < 1.01 * exact
    assert exact <= parts.time < 1.2 * exact


def test_few_tiles_cannot_saturate_the_memory():
    # one tile of 64 x 64, split at most 32 times: 32 of 108 SMs
    parts = matmul_time(64, 64, 1e7, **({"peak": 1e30, "bandwidth": 2039e9, "units": 108.0} | IDEAL))
    size = 2.0 * (64 * 1e7 + 1e7 * 64 + 64 * 64)
    assert parts.memory == pytest.approx(size / (2039e9 * 32 / 108), rel=1e-3)


def test_operand_bytes_count_apart():
    half = matmul_time(1, 8192, 8192, **(A100 | IDEAL))
    four_bit = matmul_time(1, 8192, 8192, right_bytes=0.5, **(A100 | IDEAL))
    assert four_bit.memory == pytest.approx(half.memory / 4, rel=1e-2)


def test_launch_is_added_and_empty_products_cost_nothing_else():
    parts = matmul_time(0, 0, 0, launch=3e-6, **(A100 | IDEAL))
    assert (parts.time, parts.compute, parts.latency) == (3e-6, 0.0, 3e-6)


def test_scalars_equal_array_elements():
    m, k = np.array([1.0, 100.0, 4096.0]), np.array([[64.0], [4096.0]])
    swept = matmul_time(m, 5000, k, 3, **(A100 | IDEAL))
    assert swept.time.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            one = matmul_time(float(m[j]), 5000, float(k[i, 0]), 3, **(A100 | IDEAL))
            assert [float(part[i, j]) for part in swept[:3]] == pytest.approx(list(one[:3]), rel=1e-12)


def test_overlap_rounds_the_corner():
    assert overlap(1.0, 1.0) == pytest.approx(2**0.25)
    assert overlap(3.0, 0.0) == 3.0
    assert overlap(0.0, 0.0) == 0.0
    assert overlap(np.array([1.0, 0.0]), np.array([1.0, 0.0])) == pytest.approx([2**0.25, 0.0])
