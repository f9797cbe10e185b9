"""Collectives over tiers: bytes and hops counted by hand."""

import numpy as np
import pytest

from simulator.cost import LinkConstants, algorithms, collective_time, collective_traffic
from simulator.cost.collectives import BULK_HOP
from simulator.specs import Span, Tier

IDEAL = LinkConstants(
    bandwidth_efficiency=1.0,
    network_efficiency=1.0,
    in_switch_efficiency=1.0,
    exchange_efficiency=1.0,
    staging_exponent=0.0,
    base_latency=0.0,
    hop_latency=0.0,
    flag_bandwidth=1e30,
    line_latency=0.0,
    low_latency_share=0.5,
    handshake=0.0,
    switch_handshake=0.0,
    exchange_handshake=0.0,
    bulk_bytes=1e-9,
    network_bulk_bytes=1e-9,
    chunk_latency=0.0,
    ring_edge=0.0,
)
"""No overhead, and the protocol of full bandwidth for every message."""
NVLINK = Tier("node", 8, 300e9, 1e-6)
NVLS = Tier("node", 8, 450e9, 1e-6, True)
RAILS = Tier("infiniband", 4, 25e9, 5e-6)
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "send", "ring")


@pytest.mark.parametrize("kind", KINDS)
def test_one_rank_communicates_with_nobody(kind):
    for span in (Span(()), Span((Tier("node", 1, 300e9, 1e-6),))):
        assert collective_time(kind, span, 1e9, IDEAL._replace(base_latency=1.0)).time == 0.0
        assert sum(collective_traffic(kind, span, 1e9)) == 0.0
    assert collective_time(kind, Span(()), np.ones(3), IDEAL).time == pytest.approx([0, 0, 0])


def test_ring_all_reduce():
    # Thakur et al. 2005, section 4.4: 2 (p-1) alpha + 2 (p-1)/p n beta
    parts = collective_time("all-reduce", Span((NVLINK,)), 1e9, IDEAL)
    assert parts.link == pytest.approx(2 * 7 / 8 * 1e9 / 300e9)
    assert parts.latency == pytest.approx(14e-6)
    assert parts.time == pytest.approx(parts.link + parts.latency)


def test_ring_all_reduce_is_reduce_scatter_and_all_gather():
    span = Span((NVLINK, RAILS))
    ring = algorithms("all-reduce", span)[0]
    half = algorithms("all-gather", span)[0]
    assert ring.traffic == pytest.approx([2 * share for share in half.traffic])
    assert ring.hops == pytest.approx([2 * hops for hops in half.hops])
    gather = collective_time("all-gather", Span((NVLINK,)), 1e9, IDEAL)
    scatter = collective_time("reduce-scatter", Span((NVLINK,)), 1e9, IDEAL)
    assert gather.time + scatter.time == pytest.approx(
        collective_time("all-reduce", Span((NVLINK,)), 1e9, IDEAL).time
    )


def test_ring_through_all_rails_of_four_nodes():
    # 32 ranks: 31 hops, of which 3 leave a node; each of 8 rails carries an eighth of 31/32 of the tensor
    (ring,) = algorithms("all-gather", Span((NVLINK, RAILS)))
    assert ring.traffic == pytest.approx((31 / 32, 31 / 32 / 8))
    assert ring.hops == (28, 3)
    parts = collective_time("all-gather", Span((NVLINK, RAILS)), 1e9, IDEAL)
    assert parts.latency == pytest.approx(28e-6 + 15e-6)
    # at full bandwidth each hop takes longer (NCCL's tuning tables)
    assert parts.time == pytest.approx(31 / 32 / 8 * 1e9 / 25e9 + BULK_HOP * parts.latency)


def test_hierarchical_all_reduce():
    # reduce-scatter and all-gather inside (7/8 each), two binary trees across on an eighth (Sanders et al.
    # 2009)
    tree = algorithms("all-reduce", Span((NVLINK, RAILS)))[1]
    assert tree.traffic == pytest.approx((2 * 7 / 8, 2 / 8))
    assert tree.hops == (14, 4)


def test_large_all_reduce_over_two_nodes_goes_round_rings():
    # vidur's two nodes of 1, 2 and 4 A100 reduce at 5.9, 11.9 and 22.4 GB/s of bus bandwidth: an adapter a GPU, and
    # 2 (P - 1)/P of the tensor through it; two trees that send n each way would show 5.9, 7.9 and 12.8 GB/s
    for ranks in (1, 2, 4):
        inside = () if ranks == 1 else (Tier("node", ranks, 300e9, 1e-6),)
        span = Span((*inside, Tier("infiniband", 2, 5.87e9, 5e-6)))
        seconds = collective_time("all-reduce", span, 67e6, IDEAL).link
        bus = 2.0 * (2 * ranks - 1) / (2 * ranks) * 67e6 / seconds
        assert bus == pytest.approx({1: 5.9e9, 2: 11.9e9, 4: 22.4e9}[ranks], rel=0.05)


def test_a_switch_that_reduces_halves_the_traffic():
    # n + n/8 instead of 14/8 n, in two hops
    parts = collective_time("all-reduce", Span((NVLS,)), 1e9, IDEAL)
    assert parts.link == pytest.approx(9 / 8 * 1e9 / 450e9)
    assert parts.latency == pytest.approx(2e-6)
    # for two ranks it would be 1.5 n against n of the ring
    pair = collective_time("all-reduce", Span((Tier("node", 2, 450e9, 1e-6, True),)), 1e9, IDEAL)
    assert pair.link == pytest.approx(1e9 / 450e9)


def test_all_to_all_by_tier():
    # of 31 shares of 1/32, 7 stay in the node and 24 leave it
    assert collective_traffic("all-to-all", Span((NVLINK, RAILS)), 32e9) == pytest.approx((7e9, 24e9))
    parts = collective_time("all-to-all", Span((NVLINK, RAILS)), 32e9, IDEAL)
    assert parts.link == pytest.approx(24e9 / 25e9)
    # posting to p peers: 1 + log2(p) latencies of each tier
    assert parts.latency == pytest.approx(4 * 1e-6 + 3 * 5e-6)


def test_a_ring_of_sends_waits_for_its_slowest_link_in_each_step():
    span = Span((Tier("node", 4, 300e9, 1e-6), Tier("infiniband", 2, 25e9, 5e-6)))
    # seven steps; in each, one rank of a node sends over the network
    assert collective_time("ring", span, 25e9, IDEAL).time == pytest.approx(7 * (1.0 + 5e-6))
    assert collective_traffic("ring", span, 1e9) == (7e9, 7e9)
    inside = Span((Tier("node", 4, 300e9, 1e-6),))
    assert collective_time("ring", inside, 300e9, IDEAL).time == pytest.approx(3 * (1.0 + 1e-6))


def test_node_limited_routing_sends_a_row_once_to_each_node():
    # eight nodes of eight: without a limit 56 of 64 shares of all eight copies leave the node
    span = Span((NVLINK, Tier("infiniband", 8, 25e9, 5e-6)))
    (plain,) = algorithms("all-to-all", span)
    (limited,) = algorithms("all-to-all", span, 8.0, 4.0)
    assert plain.traffic == pytest.approx((7 / 64, 56 / 64))
    # eight experts in four nodes lie in 4 (1 - (3/4)^8) = 3.6 of them (DeepSeek-V3, section 3.2.2: 3.2 on average)
    nodes = 4 * (1 - 0.75**8)
    assert limited.traffic[1] == pytest.approx(7 / 8 * nodes / 8)
    assert limited.traffic[0] <= 7 / 8
    seconds = [
        collective_time("all-to-all", span, 1e9, IDEAL, copies=8.0, nodes=most).time for most in (1, 2, 4, 8)
    ]
    assert seconds == sorted(seconds)
    assert seconds[-1] < collective_time("all-to-all", span, 1e9, IDEAL).time


def test_send_uses_the_outermost_tier():
    span = Span((Tier("node", 2, 300e9, 1e-6), Tier("infiniband", 2, 25e9, 5e-6)))
    assert collective_traffic("send", span, 1e9) == (0.0, 1e9)
    assert collective_time("send", span, 25e9, IDEAL).time == pytest.approx(1.0 + 5e-6)


def test_protocols_trade_latency_for_bandwidth():
    constants = IDEAL._replace(
        base_latency=5e-6,
        hop_latency=0.5e-6,
        flag_bandwidth=7e9,
        line_latency=2e-6,
        handshake=10e-6,
        bulk_bytes=1e7,
    )
    span = Span((NVLINK,))
    latency = 5e-6 + 7 * 1.5e-6
    sizes = np.array([1e3, 1e6, 8e9, 0.0])
    found = collective_time("all-gather", span, sizes, constants)
    # flags beside words, flagged lines at half of the bandwidth, full bandwidth after a handshake
    assert found.time[0] == pytest.approx(latency + 7 / 8 * 1e3 / 7e9)
    assert found.time[1] == pytest.approx(latency + 2e-6 + 7 / 8 * 1e6 / 150e9, rel=1e-3)
    assert found.time[2] == pytest.approx(latency + 10e-6 + 7e9 / 300e9)
    assert found.time[3] == 0.0
    assert found.latency == pytest.approx([latency, latency, latency, 0.0])
    assert [
        collective_time("all-gather", span, size, constants).time for size in sizes.tolist()
    ] == pytest.approx(found.time)


def test_library_switches_protocol_by_bytes_sent():
    # 1 MB times sqrt(8) sent by a rank, 7/8 of the tensor: half of the way between the two protocols
    constants = IDEAL._replace(handshake=1e-3, bulk_bytes=1e6)
    span = Span((Tier("node", 8, 300e9, 0.0),))
    size = 1e6 * 8**0.5 / (7 / 8)
    lines, bulk = 7 / 8 * size / 150e9, 1e-3 + 7 / 8 * size / 300e9
    assert collective_time("all-gather", span, size, constants).time == pytest.approx((lines + bulk) / 2)
    # between nodes its own number of bytes over the network counts
    network = Span((Tier("network", 2, 10e9, 0.0),))
    far = constants._replace(bulk_bytes=1e30, network_bulk_bytes=4e6)
    lines, bulk = 0.5 * 8e6 / 5e9, 1e-3 + 0.5 * 8e6 / 10e9
    assert collective_time("all-gather", network, 8e6, far).time == pytest.approx((lines + bulk) / 2)


def test_chunks_cost_the_geometric_mean():
    constants = IDEAL._replace(chunk_latency=4e-6)
    beta = 7 / 8 * 8e9 / 300e9
    time = collective_time("all-gather", Span((Tier("node", 8, 300e9, 0.0),)), 8e9, constants).time
    assert time == pytest.approx(beta + (4e-6 * beta) ** 0.5)


def test_ring_edge_and_own_share():
    constants = IDEAL._replace(ring_edge=0.5)
    span = Span((Tier("node", 2, 300e9, 0.0),))
    # one step of half of the tensor takes half a step more; an exchange copies a quarter of a message
    assert collective_time("all-gather", span, 1e9, constants).time == pytest.approx(0.5e9 / 300e9 * 1.5)
    assert collective_time("all-to-all", span, 1e9, constants).time == pytest.approx(0.5e9 / 300e9 * 1.25)
    assert collective_time("send", span, 1e9, constants).time == pytest.approx(1e9 / 300e9)


def test_host_memory_is_shared_by_all_ranks():
    # measured on eight L40S: 20, 5.3 and 1.4 GB/s of bus bandwidth for 2, 4 and 8 ranks, a fourth each time
    constants = IDEAL._replace(staging_exponent=2.0)
    times = [
        collective_time("all-gather", Span((Tier("node", ranks, 25e9, 0.0),)), 1e9, constants).time
        for ranks in (2, 4, 8)
    ]
    rates = [(ranks - 1) / ranks * 1e9 / time for ranks, time in zip((2, 4, 8), times, strict=True)]
    assert rates == pytest.approx([25e9, 6.25e9, 1.5625e9])


def test_small_exchange_goes_by_the_channel_of_each_peer():
    constants = IDEAL._replace(flag_bandwidth=7e9, exchange_handshake=5e-6)
    span = Span((Tier("node", 8, 300e9, 0.0),))
    assert collective_time("all-to-all", span, 8e3, constants).time == pytest.approx(1e3 / 7e9)
    assert collective_time("all-to-all", span, 8e9, constants).time == pytest.approx(5e-6 + 7e9 / 300e9)


def test_efficiency_by_tier():
    constants = IDEAL._replace(bandwidth_efficiency=0.5, network_efficiency=0.8)
    inside = collective_time("all-gather", Span((NVLINK,)), 8e9, constants)
    across = collective_time("all-gather", Span((Tier("infiniband", 8, 25e9, 0.0),)), 8e9, constants)
    assert inside.link == pytest.approx(7e9 / 150e9)
    assert across.link == pytest.approx(7e9 / 20e9)


@pytest.mark.parametrize("kind", KINDS)
def test_traffic_is_what_the_time_is_made_of(kind):
    span = Span((NVLINK, RAILS))
    sent = collective_traffic(kind, span, 1e12)
    slowest = max(size / tier.bandwidth for size, tier in zip(sent, span.tiers, strict=True))
    assert collective_time(kind, span, 1e12, IDEAL).link == pytest.approx(slowest, rel=1e-4)
