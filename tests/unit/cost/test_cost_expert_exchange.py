"""Dispatch and combine, by hand."""

import numpy as np
import pytest

from simulator.cost import CostModel, ExchangeConstants, exchange_time, low_latency_exchange_time
from simulator.cost.expert_exchange import distinct_ranks, row_bytes
from simulator.specs import Catalog, MemroofError, Span, Tier

CONSTANTS = ExchangeConstants(
    dispatch_latency=20e-6,
    combine_latency=40e-6,
    dispatch_unit_bandwidth=20e9,
    combine_unit_bandwidth=25e9,
    efficiency=0.8,
    low_latency_dispatch=10e-6,
    low_latency_combine=12e-6,
    expert_latency=2e-8,
    dispatch_token_latency=2e-6,
    combine_token_latency=5e-7,
    low_latency_efficiency=0.5,
)
NODE = Tier("node", 8, 400e9, 0.0)


def test_rows_and_ranks():
    # FP8 with one FP32 scale for each 128 elements, and BF16
    assert row_bytes("dispatch", 7168) == 7168 + 56 * 4
    assert row_bytes("combine", 7168) == 14336
    # of eight ranks, one expert meets one, eight meet 8 (1 - (7/8)^8) = 5.25
    assert distinct_ranks(8, 1) == pytest.approx(1.0)
    assert distinct_ranks(8, 8) == pytest.approx(5.2511, abs=1e-4)


def test_few_units_bind_a_normal_kernel():
    # 4096 rows of 14,336 bytes pass one rank's copy and the own memory twice, at 4 times 25 GB/s
    parts = exchange_time("combine", NODE, 4096, 7168, 1, CONSTANTS, units=4)
    assert parts.latency == 40e-6
    assert parts.compute == pytest.approx(4096 * 14336 * 3 / 100e9)
    assert parts.time == pytest.approx(40e-6 + parts.compute, rel=1e-3)


def test_the_link_binds_many_units():
    parts = exchange_time("dispatch", NODE, 4096, 7168, 8, CONSTANTS, units=1000)
    assert parts.link == pytest.approx(4096 * 7392 * 5.2509 * 7 / 8 / 320e9, rel=1e-4)
    assert parts.time == pytest.approx(20e-6 + parts.link, rel=1e-2)


def test_low_latency_dispatch_works_off_tokens_by_blocks():
    # 1024 tokens over eight blocks, one an expert
    parts = low_latency_exchange_time(
        "dispatch", NODE, 1024, 1024, 2, 8, CONSTANTS, units=132, network_efficiency=0.9
    )
    assert parts.time == pytest.approx(10e-6 + 8 * 2e-8 + 128 * 2e-6, rel=1e-3)
    # 256 experts: every unit has a block, the link binds
    wide = low_latency_exchange_time(
        "combine", NODE, 1024, 7168, 8, 256, CONSTANTS, units=132, network_efficiency=0.9
    )
    assert wide.link == pytest.approx(1024 * 8 * 14336 / 200e9)
    assert wide.time == pytest.approx(12e-6 + 256 * 1e-8 + wide.link, rel=1e-2)


def test_over_rdma_the_network_binds():
    # DeepEP, 128 tokens of 7168 elements to eight experts over 50 GB/s: published 46 GB/s, 163 us
    rdma = Tier("infiniband", 8, 50e9, 0.0)
    parts = low_latency_exchange_time(
        "dispatch", rdma, 128, 7168, 8, 256, CONSTANTS, units=132, network_efficiency=0.92
    )
    assert parts.link == pytest.approx(163e-6, rel=0.02)


def test_cost_model():
    catalog = Catalog()
    device = catalog.processor("h100-sxm")
    model = CostModel(device, catalog.calibration(device))
    span = Span((Tier("node", 8, 450e9, 5e-7),))
    cost = model.expert_exchange("dispatch", span, np.array([1.0, 4096.0]), 7168, 8, 256)
    assert cost.operator_class == "expert-exchange"
    assert cost.time[1] > 5 * cost.time[0]
    low = model.expert_exchange("dispatch", span, 1.0, 7168, 8, 256, low_latency=True)
    assert low.time < cost.time[0]
    assert low.error < cost.error
    assert model.expert_exchange("combine", Span(()), 8.0, 7168, 8, 256).time == 0.0
    with pytest.raises(MemroofError, match="inside a machine"):
        model.expert_exchange("combine", Span((NODE, Tier("network", 2, 50e9, 0.0))), 8.0, 7168, 8, 256)


def test_host_iteration():
    catalog = Catalog()
    device = catalog.processor("a100-80gb-sxm")
    model = CostModel(device, catalog.calibration(device))
    host = model.calibration.host
    alone = model.host_iteration(np.array([0.0, 64.0]))
    assert alone.time == pytest.approx([host.iteration, host.iteration + 64 * host.per_sequence])
    assert model.host_iteration(64.0, workers=4).time == pytest.approx(alone.time[1] + host.workers)
    assert alone.operator_class == "host"
