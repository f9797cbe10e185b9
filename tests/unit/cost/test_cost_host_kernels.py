"""Products on CPUs: the roofline against hand-derived and published figures, and its laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.cost import Sockets, host_product_time
from simulator.specs import Catalog, HostKernelConstants

CATALOG = Catalog(environment={})
XEON = CATALOG.processor("xeon-8452y")
PAPER = Sockets(XEON, 2, 614.4e9, 0.716, 125e9)
"""Two Xeon 8452Y: 220 GB/s in a socket, 125 across, 440 both (Chen et al. 2025, KTransformers)."""


def kernels(**changes):
    plain = {
        "memory_efficiency": 1.0,
        "vector_efficiency": 1.0,
        "operator_latency": "0 s",
        "call_latency": "0 s",
    }
    return HostKernelConstants.model_validate({**plain, "source": "made up", **changes})


def test_sockets_that_read_their_own_dram_reach_440_gb_a_second():
    assert PAPER.stream_rate(remote=0.0) == pytest.approx(440e9, rel=0.001)
    alone = Sockets(XEON, 1, 307.2e9, 0.716)
    assert alone.stream_rate(remote=0.0) == pytest.approx(220e9, rel=0.001)


def test_pages_over_both_sockets_are_read_half_across():
    # 1 / (0.5/220 + 0.5/125) a socket
    assert PAPER.stream_rate(remote=0.5) == pytest.approx(2 * 159.4e9, rel=0.001)


@given(remote=st.floats(0.0, 1.0))
def test_reads_across_never_help(remote):
    assert PAPER.stream_rate(remote=remote) <= PAPER.stream_rate(remote=0.0) * (1 + 1e-12)


def test_few_rows_are_bound_by_dram_and_many_by_arithmetic():
    # one matrix of 2048 x 7168 bytes at 440 GB/s; 6.451 TFLOP/s of fp32 a socket
    size = 2048 * 7168.0
    few = host_product_time(2.0 * size, size, 1, kernels(exposed=0), PAPER, rate=440e9)
    assert few.time == pytest.approx(size / 440e9)
    many = host_product_time(2e4 * size, size, 1e4, kernels(exposed=0), PAPER, rate=440e9)
    assert many.time == pytest.approx(2e4 * size / (2 * 6.451e12))


def test_matrix_units_take_over_above_four_rows():
    # 21.3 of 73.7 TFLOP/s on a socket (Chen et al. 2025)
    amx = kernels(matrix_efficiency=21.3 / 73.7, exposed=0)
    one = Sockets(XEON, 1, 307.2e9, 0.716)
    assert host_product_time(21.3e12, 0.0, 5, amx, one, rate=1e30).time == pytest.approx(1.0)
    assert host_product_time(6.451e12, 0.0, 4, amx, one, rate=1e30).time == pytest.approx(1.0)


def test_kernels_that_do_not_overlap_add_stream_and_arithmetic():
    parts = host_product_time(6.451e12 * 2, 440e9, 9, kernels(), PAPER, rate=440e9, operators=3)
    assert parts.time == pytest.approx(2.0)
    later = host_product_time(0.0, 0.0, 9, kernels(operator_latency="20 us"), PAPER, rate=440e9, operators=3)
    assert later.time == pytest.approx(60e-6)


def test_a_second_socket_may_add_less_than_the_first():
    half = kernels(socket_scaling=0.5, exposed=0)
    assert host_product_time(6.451e12 * 1.5, 0.0, 9, half, PAPER, rate=1e30).time == pytest.approx(1.0)


@given(
    flops=st.floats(0.0, 1e15),
    size=st.floats(0.0, 1e12),
    exposed=st.floats(0.0, 1.0),
    rows=st.integers(1, 10_000),
)
def test_no_product_beats_its_roofline(flops, size, exposed, rows):
    parts = host_product_time(flops, size, rows, kernels(exposed=exposed), PAPER, rate=440e9)
    assert parts.time >= max(size / 440e9, flops / (2 * 6.451e12)) * (1 - 1e-12)
    assert math.isfinite(parts.time)


def test_it_broadcasts():
    rows = np.array([1.0, 100.0])
    amx = kernels(matrix_efficiency=0.289)
    both = host_product_time(1e12 * rows, 1e9, rows, amx, PAPER, rate=440e9).time
    alone = [float(host_product_time(1e12 * r, 1e9, r, amx, PAPER, rate=440e9).time) for r in rows]
    assert both.tolist() == pytest.approx(alone)


def test_families_of_kernels_are_kept_with_the_cpus_and_say_where_they_come_from():
    found = CATALOG.calibration(XEON).host_kernels
    assert {"vector", "kt-kernel", "amx", "onednn", "ggml"} <= set(found)
    assert all(len(each.source) > 40 for each in found.values())
