"""Laws of the cost model: bounds that are never beaten, monotony, scaling, and sums of errors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cost import (
    CostModel,
    LinkConstants,
    algorithms,
    collective_time,
    collective_traffic,
    interval,
    matmul_time,
    overlap,
    peak_flops,
    relative_error,
    transfer_time,
)
from simulator.graph.work import Attention, Elementwise, Gather, Matmul
from simulator.specs import OPERATOR_CLASSES, Catalog, Span, Tier

CATALOG = Catalog()
DEVICES = [CATALOG.device(name) for name in ("a100-80gb-sxm", "h100-sxm", "tpu-v5e", "m2-max")]
MODELS = [CostModel(device, CATALOG.calibration(device)) for device in DEVICES]
GPU = {
    "units": 132.0,
    "peak_efficiency": 0.9,
    "memory_efficiency": 0.8,
    "tile_m": 256.0,
    "tile_n": 256.0,
    "tile_edge": 6.0,
    "epilogue_rate": np.inf,
    "fill": 0.3,
}
LINKS = LinkConstants(
    bandwidth_efficiency=0.7,
    network_efficiency=0.85,
    in_switch_efficiency=0.66,
    exchange_efficiency=0.7,
    staging_exponent=0.0,
    base_latency=6e-6,
    hop_latency=4e-7,
    flag_bandwidth=7e9,
    line_latency=1e-6,
    low_latency_share=0.3,
    handshake=2e-5,
    switch_handshake=5e-5,
    exchange_handshake=5e-6,
    bulk_bytes=1e6,
    network_bulk_bytes=2e6,
    chunk_latency=3e-6,
    ring_edge=0.4,
)
IDLE = LINKS._replace(low_latency_share=1.0, handshake=0.0, ring_edge=1e-9, network_bulk_bytes=1e6)
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "send")
dimension = st.integers(1, 40_000)
rate = st.floats(1e12, 1e16)
bandwidth = st.floats(1e9, 1e13)
tight = 1.0 + 1e-9


def works() -> st.SearchStrategy[object]:
    count = st.integers(1, 64)
    matmul = st.builds(Matmul, dimension, dimension, dimension, count, st.just("fp16"))
    heads = st.sampled_from([(32, 32), (32, 8), (32, 1)])
    attention = st.builds(
        lambda b, h, q, past, d, decode, backward, window: Attention(
            b,
            h[0],
            h[1],
            1 if decode else q,
            (1 if decode else q) + past,
            d,
            d,
            2 * h[1] * d,
            True,
            window,
            decode,
            backward and not decode,
            "fp16",
        ),
        count,
        heads,
        st.integers(1, 8192),
        st.integers(0, 8192),
        st.sampled_from([64, 128]),
        st.booleans(),
        st.booleans(),
        st.sampled_from([np.inf, 128, 4096]),
    )
    stream = st.builds(Elementwise, st.floats(1, 1e10), st.floats(0, 1e10), st.floats(0, 1e12))
    return st.one_of(matmul, attention, stream, st.builds(Gather, dimension, dimension))


def runnable(model: CostModel, work: object) -> object:
    """The TPU has no fp16 products; bf16 are as fast on every device."""
    from dataclasses import replace

    fmt = "bf16" if "bf16" in {**model.device.compute.matrix, **model.device.compute.vector} else "fp16"
    return replace(work, format=fmt) if isinstance(work, (Matmul, Attention)) else work


@given(works(), st.sampled_from(MODELS))
@settings(max_examples=300, deadline=None)
def test_rooflines_are_never_beaten(work, model):
    work = runnable(model, work)
    cost = model.price(work)
    matrix = isinstance(work, (Matmul, Attention))
    peak = peak_flops(model.device, getattr(work, "format", "fp32"), matrix)
    memory = next(iter(model.device.memory.values())).bandwidth
    assert cost.time * tight >= float(work.flops) / peak
    # activations may still lie in the cache, weights do not
    if not isinstance(work, (Elementwise, Gather)):
        assert cost.time * tight >= float(work.bytes) / memory
    assert cost.time * tight >= max(cost.compute, cost.memory, cost.link)
    assert np.isfinite(cost.time)


@given(dimension, dimension, dimension, rate, bandwidth, st.floats(1, 100))
@settings(max_examples=200, deadline=None)
def test_more_peak_or_bandwidth_never_slows(m, n, k, peak, memory, factor):
    base = matmul_time(m, n, k, peak=peak, bandwidth=memory, **GPU).time
    assert matmul_time(m, n, k, peak=peak * factor, bandwidth=memory, **GPU).time <= base * tight
    assert matmul_time(m, n, k, peak=peak, bandwidth=memory * factor, **GPU).time <= base * tight
    doubled = matmul_time(m, n, k, peak=2 * peak, bandwidth=2 * memory, launch=3e-6, **GPU)
    assert doubled.time - 3e-6 == pytest.approx(base / 2, rel=1e-6)


@given(dimension, dimension, dimension, st.sampled_from(["m", "n", "k", "count"]), st.integers(2, 5))
@settings(max_examples=200, deadline=None)
def test_larger_products_never_take_less(m, n, k, name, factor):
    small = {"m": m, "n": n, "k": k, "count": 1}
    large = small | {name: small[name] * factor}
    # few tiles do not saturate the memory and may gain from more of them: that is left out by fill
    rates = GPU | {"peak": 1e15, "bandwidth": 3e12, "fill": 1e-3}
    times = [matmul_time(**size, **rates).time for size in (small, large)]
    assert times[0] <= times[1] * tight


@given(st.lists(works(), min_size=1, max_size=4))
@settings(max_examples=50, deadline=None)
def test_scalars_equal_array_elements(chosen):
    for work in chosen:
        if not isinstance(work, Matmul):
            continue
        one = MODELS[1].price(work).time
        row = Matmul(np.array([1.0, work.m]), work.n, work.k, work.count, work.format)
        assert float(MODELS[1].price(row).time[1]) == pytest.approx(one, rel=1e-9)


def spans() -> st.SearchStrategy[Span]:
    node = st.builds(
        Tier, st.just("node"), st.integers(1, 16), st.floats(1e10, 1e12), st.floats(0, 1e-5), st.booleans()
    )
    network = st.builds(
        Tier,
        st.sampled_from(["leaf", "spine"]),
        st.integers(1, 32),
        st.floats(1e9, 1e11),
        st.floats(0, 1e-4),
        st.booleans(),
    )
    return st.one_of(
        st.builds(lambda a: Span((a,)), node),
        st.builds(lambda a, b: Span((a, b)), node, network),
        st.builds(lambda a, b, c: Span((a, b, c)), node, network, network),
    )


@given(st.sampled_from(KINDS), spans(), st.floats(1.0, 1e12), st.floats(1.0, 10.0))
@settings(max_examples=300, deadline=None)
def test_collectives(kind, span, size, factor):
    time = collective_time(kind, span, size, LINKS).time
    sent = collective_traffic(kind, span, size)
    if span.size == 1:
        assert time == 0.0
        assert sum(sent) == 0.0
        return
    # no link is beaten, more bytes and slower links never help, an array is its elements
    assert all(
        time * tight >= min(a.traffic[i] for a in algorithms(kind, span)) * size / tier.bandwidth
        for i, tier in enumerate(span.tiers)
    )
    assert collective_time(kind, span, size * factor, LINKS).time * tight >= time
    slower = Span(tuple(Tier(t.name, t.size, t.bandwidth / factor, t.latency, t.reduces) for t in span.tiers))
    assert collective_time(kind, slower, size, LINKS).time * tight >= time
    assert collective_time(kind, span, np.array([size, size]), LINKS).time == pytest.approx([time, time])


@given(st.integers(2, 16), st.integers(2, 64), st.floats(1e6, 1e12))
@settings(max_examples=100, deadline=None)
def test_hierarchy_beats_a_flat_ring_on_a_slow_network(local, nodes, size):
    fast, slow = Tier("node", local, 4e11, 1e-6), Tier("network", nodes, 1e10, 1e-5)
    flat = Tier("network", local * nodes, 1e10, 1e-5)
    for kind in ("all-reduce", "all-gather", "reduce-scatter"):
        tiered = collective_time(kind, Span((fast, slow)), size, IDLE)
        ring = collective_time(kind, Span((flat,)), size, IDLE)
        assert tiered.link <= ring.link * tight


@given(st.floats(0, 1e3), st.floats(0, 1e3))
def test_overlap_lies_between_the_longer_and_a_fifth_more(a, b):
    assert max(a, b) <= overlap(a, b) <= max(a, b) * 2**0.25 * tight


@given(st.floats(1, 1e12), st.floats(1, 1e9), st.floats(1e6, 1e12), st.floats(0, 1e6))
def test_chunks_never_help_a_copy(size, chunk, link, half):
    whole = transfer_time(size, link, half_bytes=half).time
    assert (
        transfer_time(size, link, half_bytes=half, chunk=chunk).time * tight >= whole >= size / link / tight
    )


times = st.dictionaries(st.sampled_from(OPERATOR_CLASSES), st.floats(1e-6, 1e3), min_size=1)


@given(times, st.floats(0.0, 1.0), st.floats(0.01, 0.99))
def test_doubt_of_a_sum(classes, error, level):
    errors = dict.fromkeys(OPERATOR_CLASSES, error)
    total = relative_error(classes, errors)
    # independent classes compensate each other, at most down to 1/sqrt(classes)
    assert error / len(classes) ** 0.5 <= total * tight + 1e-12
    assert total <= error * tight + 1e-12
    name = next(iter(classes))
    assert relative_error({name: classes[name]}, errors) == pytest.approx(error)
    low, high = interval(5.0, total, level)
    assert low * high == pytest.approx(25.0)
    assert low <= 5.0 <= high
