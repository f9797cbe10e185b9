"""All-reduce kernels of serving engines, by hand."""

import numpy as np
import pytest

from simulator.cost import CostModel, CustomConstants, custom_all_reduce_time
from simulator.graph import Collective
from simulator.specs import Catalog, Span, Tier

CONSTANTS = CustomConstants(
    pull_efficiency=0.5,
    push_efficiency=0.75,
    pull_latency=4e-6,
    push_latency=2e-6,
    peer_latency=1e-7,
    pull_second=6e-6,
    push_second=3e-6,
    eager_latency=30e-6,
    limit_bytes=8e6,
)
EIGHT = Span((Tier("node", 8, 400e9, 0.0),))
CATALOG = Catalog()
DEVICE = CATALOG.processor("h100-sxm")
MODEL = CostModel(DEVICE, CATALOG.calibration(DEVICE))


def test_one_shot_reads_all_peers():
    # 7 times 8 kB at half of 400 GB/s, and six peers beyond the first
    time = custom_all_reduce_time(EIGHT, 8e3, CONSTANTS, kernel="pull").time
    assert time == pytest.approx(4e-6 + 6e-7 + 7 * 8e3 / 200e9)


def test_two_shots_move_a_quarter_for_one_more_meeting():
    # 2 * 7/8 instead of 7 times 8 MB
    time = custom_all_reduce_time(EIGHT, 8e6, CONSTANTS, kernel="push").time
    assert time == pytest.approx(2e-6 + 6e-7 + 3e-6 + 1.75 * 8e6 / 300e9)


def test_two_ranks_never_need_two_shots():
    pair = Span((Tier("node", 2, 400e9, 0.0),))
    time = custom_all_reduce_time(pair, np.array([0.0, 1e6, 1e9]), CONSTANTS, kernel="pull").time
    assert time == pytest.approx([0.0, 4e-6 + 1e6 / 200e9, 4e-6 + 1e9 / 200e9])
    assert custom_all_reduce_time(Span(()), 1e6, CONSTANTS, kernel="pull").time == 0.0


def test_peers_through_host_memory():
    near = custom_all_reduce_time(EIGHT, 8e6, CONSTANTS, kernel="pull")
    far = custom_all_reduce_time(EIGHT, 8e6, CONSTANTS, kernel="pull", staging_exponent=2.0)
    assert far.link - 6e-6 == pytest.approx(16 * (near.link - 6e-6))


def test_the_library_takes_over_above_the_limit():
    eight = Span((Tier("node", 8, 450e9, 5e-7, True),))
    library = MODEL.price(Collective("all-reduce", "tensor", 64e6), eight)
    assert MODEL.custom_all_reduce(64e6, eight, "pull").time == library.time
    small = MODEL.custom_all_reduce(64e3, eight, "pull")
    assert small.operator_class == "custom-collective"
    assert small.time < 0.5 * MODEL.price(Collective("all-reduce", "tensor", 64e3), eight).time
    assert MODEL.price(Collective("all-reduce", "tensor", 64e3, kernel="pull"), eight).time == small.time
    both = MODEL.custom_all_reduce(np.array([64e3, 64e6]), eight, "pull")
    assert both.time == pytest.approx([small.time, library.time])


def test_an_eager_call_takes_its_launch_or_its_copy():
    eight = Span((Tier("node", 8, 450e9, 5e-7, True),))
    floor = MODEL.calibration.custom_collective.eager_latency
    assert MODEL.custom_all_reduce(1e3, eight, "push", eager=True).time == pytest.approx(floor)
    graph, eager = (MODEL.custom_all_reduce(1e9, eight, "push", eager=flag).time for flag in (False, True))
    # one more pass over the tensor, read and written at 3.35 TB/s
    assert 0.8 * 2e9 / 3.35e12 < eager - graph < 1.6 * 2e9 / 3.35e12


def test_over_a_network_the_library_reduces():
    span = Span((Tier("node", 8, 450e9, 5e-7, True), Tier("infiniband", 2, 50e9, 1e-6)))
    assert (
        MODEL.custom_all_reduce(1e3, span, "pull").time
        == MODEL.price(Collective("all-reduce", "tensor", 1e3), span).time
    )
