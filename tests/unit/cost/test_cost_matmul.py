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
    "prologue_k": 0.0,
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
    # a row of tiles more would take a second wave; tiles of 64 x 64 with k in eight parts waste least:
    # ceil(52 * 18 * 8 / 108) = 70 waves of an eighth, where the work itself is 69.3
    assert steps(13 * 256, 9 * 128, 4096) == pytest.approx(70 / 8 * 4096)


def test_split_k_uses_idle_units():
    # one tile of 64 x 64 keeps one SM busy; eight parts of k keep eight, each an eighth as long
    assert steps(64, 64, 8000) == pytest.approx(1000)


def test_prologue_is_worth_its_k():
    assert steps(64 * 108, 64, 1000, prologue_k=100.0) == pytest.approx(1100)


def test_small_tiles_are_slowed_by_their_edges():
    # 2 * 32 * (64 + 64) on top of 2 * 64 * 64 would double the time of 108 tiles of 64 x 64; 54 tiles of 64 x
    # 128 with k in two parts take (2 * 64 * 128 + 2 * 32 * 192) * 500 instead, 1.75 times the bare product
    assert steps(64, 64 * 108, 1000, tile_edge=32.0) == pytest.approx(1750)


def test_matrix_vector_product_streams_its_weights():
    # 12288 x 49152 weights in 16 bits: 1.21 GB at 2039 GB/s, 0.59 ms; the product itself is negligible
    parts = matmul_time(1, 49152, 12288, **(A100 | IDEAL))
    exact = 2.0 * (12288 + 12288 * 49152 + 49152) / 2039e9
    # and partial sums of a split k add a little
    assert exact <= parts.memory < 1.01 * exact
    assert exact <= parts.time < 1.2 * exact


def test_few_tiles_cannot_saturate_the_memory():
    # 8 tiles of 64 x 64, split at most 8 times: 64 of 108 SMs
    parts = matmul_time(64, 512, 1e7, **({"peak": 1e30, "bandwidth": 2039e9, "units": 108.0} | IDEAL))
    size = 2.0 * (64 * 1e7 + 1e7 * 512 + 64 * 512)
    assert parts.memory == pytest.approx(size / (2039e9 * 64 / 108), rel=1e-3)


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
