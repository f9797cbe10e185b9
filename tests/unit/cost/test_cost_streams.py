"""Streams, gathers, copies and the optimizer's traffic."""

import numpy as np
import pytest

from simulator.cost import adam_bytes, gather_bytes, stream_time, transfer_time

STREAM = {"peak": 20e12, "bandwidth": 2e12, "memory_efficiency": 0.8, "base_latency": 3e-6}


def test_a_kernel_takes_its_latency_and_its_bytes():
    assert stream_time(0.0, **STREAM).time == 3e-6
    assert stream_time(0.0, kernels=4, **STREAM).time == 12e-6
    assert stream_time(1.6e9, **STREAM).time == pytest.approx(3e-6 + 1e-3)


def test_vector_work_can_bind():
    parts = stream_time(1e6, 1e12, **STREAM)
    assert parts.compute == pytest.approx(1e12 / 20e12)
    assert parts.time == parts.compute + 3e-6


def test_loads_of_one_element_bind_where_memory_does_not():
    # 1e6 loads and stores at 1e9 a second
    assert stream_time(1e6, scalar=1e6, scalar_rate=1e9, **STREAM).compute == pytest.approx(1e-3)


def test_what_was_just_written_is_in_the_cache():
    given = STREAM | {"cache": 40e6, "cache_bandwidth": 3.0}
    assert stream_time(1e6, **given).memory == pytest.approx(1e6 / 1.6e12 / 3)
    assert stream_time(1e9, **given).memory == pytest.approx(1e9 / 1.6e12)
    # unless other bytes have passed since
    assert stream_time(1e6, reuse_distance=1e9, **given).memory == pytest.approx(1e6 / 1.6e12)


def test_short_rows_waste_part_of_a_burst():
    assert gather_bytes(10, 4096) == 2 * 10 * 4096
    assert gather_bytes(10, 4) == 10 * (64 + 4)


def test_copy_is_latency_then_bandwidth():
    # 8 GB over PCIe 4.0 x16 at 80 %: 8e9 / 25.2e9
    parts = transfer_time(8e9, 31.5e9, latency=1e-5, efficiency=0.8)
    assert parts.time == pytest.approx(1e-5 + 8e9 / 25.2e9)
    assert (parts.link, parts.latency) == (pytest.approx(8e9 / 25.2e9), 1e-5)


def test_small_requests_halve_the_bandwidth():
    whole = transfer_time(1e9, 1e9, half_bytes=1e5)
    chunked = transfer_time(1e9, 1e9, half_bytes=1e5, chunk=1e5)
    assert whole.time == pytest.approx(1.0001)
    assert chunked.time == pytest.approx(2.0)


def test_nothing_to_copy_takes_no_time():
    assert transfer_time(0.0, 1e9, latency=1e-5, half_bytes=1e5).time == 0.0
    assert transfer_time(np.array([0.0, 1e9]), 1e9, latency=1e-5).time == pytest.approx([0.0, 1.00001])


def test_adam_in_mixed_precision_moves_16_and_14_bytes_a_parameter():
    assert adam_bytes(1e9) == (16e9, 14e9)


def test_adam_without_master_weights():
    # 16-bit weights and gradient, fp32 moments: 2 + 2 + 8 read, 2 + 8 written
    assert adam_bytes(1.0, gradient_bytes=2.0, master_bytes=0.0) == (12.0, 10.0)
