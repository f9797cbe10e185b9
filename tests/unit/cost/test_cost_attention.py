"""Attention: tiles of queries, and streams of the cache, against counts done by hand."""

from dataclasses import replace

import numpy as np
import pytest

from simulator.cost import CostModel, attention_time, decode_attention_time
from simulator.cost.attention import cached_speedup, store_time
from simulator.graph import Attention
from simulator.specs import Catalog

UNITS = {"peak": 100e12, "bandwidth": 1e30, "units": 100.0}
TILED = {
    "peak_efficiency": 1.0,
    "memory_efficiency": 1.0,
    "softmax_dim": 0.0,
    "tile": 128.0,
    "tile_latency": 0.0,
    "tail": 0.0,
    "exposed_traffic": 0.0,
    "ends": 0.0,
}
DECODE = {
    "peak_efficiency": 1.0,
    "memory_efficiency": 1.0,
    "row_tile": 64.0,
    "key_latency": 0.0,
    "key_tile": 128.0,
    "split_keys": 256.0,
    "fill": 1.0,
    "split_sequences": 1e9,
    "ungrouped_sequences": 1e9,
    "split_parts": 1e9,
    "unit_blocks": 1.0,
    "block_latency": 0.0,
    "combine_latency": 0.0,
    "part_latency": 0.0,
    "regroup_latency": 0.0,
}
FREE = UNITS | {"peak": 1e30}
RATE = 1e12
"""FLOP/s of one unit."""


def causal(s: float) -> float:
    return s * (s + 1) / 2


def test_causal_tiles_end_on_the_diagonal():
    # 8 tiles of 128 rows see 128, 256 ... 1024 keys: 576 on average, against 512.5 pairs a row; they are ragged by
    # 2 - 2 * 576.5 / 1024 = 0.874; 200 x 8 tiles on 100 units are 16 even waves
    parts = attention_time(200, 1, 1024, 1024, causal(1024), 256, 0.0, **(UNITS | TILED))
    assert parts.time == pytest.approx(16 * 576.5 * 2 * 128 * 256 / RATE)


def test_a_ragged_end_comes_waves_later():
    even = attention_time(200, 1, 1024, 1024, causal(1024), 256, 0.0, **(UNITS | TILED))
    late = attention_time(200, 1, 1024, 1024, causal(1024), 256, 0.0, **(UNITS | TILED | {"tail": 2.0}))
    ragged = 2 - 2 * 576.5 / 1024
    assert late.time / even.time == pytest.approx((16 + 2 * ragged) / 16)


def test_tiles_of_equal_length_take_whole_waves():
    # 130 tiles that all see 4096 keys on 100 units: two waves, whatever the tail
    shape = (130, 1, 128, 4096, 128 * 4096, 256, 0.0)
    parts = attention_time(*shape, **(UNITS | TILED | {"tail": 0.7}))
    assert parts.time == pytest.approx(2 * 4096 * 2 * 128 * 256 / RATE)


def test_the_longest_tile_bounds_a_lone_sequence():
    # 8 tiles on 100 units: the last one, with all 1024 keys, is the critical path
    parts = attention_time(
        1, 1, 1024, 1024, causal(1024), 256, 0.0, **(UNITS | TILED | {"tile_latency": 1e-6})
    )
    assert parts.time == pytest.approx(1e-6 + 1024 * 2 * 128 * 256 / RATE)


def test_exponentials_count_as_head_dimension():
    # at softmax_dim = 128 a head of 128 runs at half of the rate, one of 64 at a third
    slow = UNITS | TILED | {"softmax_dim": 128.0}
    plain = attention_time(50, 16, 2048, 2048, causal(2048), 256, 0.0, **(UNITS | TILED))
    slowed = attention_time(50, 16, 2048, 2048, causal(2048), 256, 0.0, **slow)
    narrow = attention_time(50, 16, 2048, 2048, causal(2048), 128, 0.0, **slow)
    assert slowed.time == pytest.approx(2 * plain.time)
    assert narrow.time == pytest.approx(3 * plain.time / 2)


def test_backward_has_five_products_and_one_exponential():
    shape = (50, 16, 2048, 2048, causal(2048), 256, 0.0)
    once = attention_time(*shape, **(UNITS | TILED)).time
    assert attention_time(*shape, products=2.5, **(UNITS | TILED)).time == pytest.approx(2.5 * once)
    slow = UNITS | TILED | {"softmax_dim": 128.0}
    assert attention_time(*shape, products=2.5, **slow).time == pytest.approx(3.5 * once)


def test_exposed_traffic_adds_to_the_products():
    # a second of traffic and a microsecond of products: what is exposed adds, the rest hides them
    rates = UNITS | TILED | {"bandwidth": 1e9, "exposed_traffic": 0.5, "ends": 0.5e9}
    parts = attention_time(1, 1, 16, 16, causal(16), 256, 1e9, **rates)
    assert parts.memory == 1.0
    assert parts.time == pytest.approx(1.0)
    shape = (50, 16, 2048, 2048, causal(2048), 256)
    products = attention_time(*shape, 0.0, **(UNITS | TILED)).time
    all_ends = rates | {"exposed_traffic": 1.0, "ends": 0.4e9 * products}
    assert attention_time(*shape, 0.4e9 * products, **all_ends).time == pytest.approx(1.4 * products)
    # what streams through the loop adds nothing
    half = rates | {"exposed_traffic": 1.0, "ends": 0.2e9 * products}
    assert attention_time(*shape, 0.4e9 * products, **half).time == pytest.approx(1.2 * products, rel=1e-3)


def test_decode_streams_the_cache():
    # 64 sequences x 8 KV heads on 100 units: 64 * 4096 * 2048 elements of 2 bytes at 1 TB/s
    size = 64 * 4096 * 2048 * 2.0
    parts = decode_attention_time(64, 32, 8, 1, 4096, 256, size, 0.0, **(FREE | DECODE | {"bandwidth": 1e12}))
    assert parts.memory == pytest.approx(size / 1e12)
    assert parts.time == pytest.approx(size / 1e12)


def test_few_blocks_cannot_saturate_the_memory():
    # A100, FlashAttention-2, one query head a KV head: no split, 23 ns a key; 8 blocks take 131,072 keys in 3.0 ms,
    # 0.18 of 2 TB/s, whatever the memory gives (aiconfigurator measures 3.02 ms)
    size = 8 * 131072 * 256 * 2.0
    rates = FREE | DECODE | {"bandwidth": 2e12, "key_latency": 23e-9, "ungrouped_sequences": 1.0}
    parts = decode_attention_time(1, 8, 8, 1, 131072, 256, size, 0.0, **rates)
    assert parts.time == pytest.approx(131072 * 23e-9, rel=1e-3)
    # split over the units, the same cache is a matter of bandwidth
    split = decode_attention_time(
        1, 8, 8, 1, 131072, 256, size, 0.0, **(rates | {"ungrouped_sequences": 1e9})
    )
    assert split.time < 1.25 * size / 2e12


@pytest.mark.parametrize(
    ("limits", "parts"),
    [
        ({}, 100),
        ({"fill": 0.5}, 50),
        ({"split_sequences": 16.0}, 16),
        ({"split_parts": 4.0}, 4),
        ({"split_keys": 12800.0}, 2),
    ],
)
def test_splitting_stops_where_the_kernel_does(limits, parts):
    # 25,600 keys of one sequence with two query heads on one KV head; each part is combined in a microsecond
    rates = FREE | DECODE | {"part_latency": 1e-6, "combine_latency": 5e-6} | limits
    assert decode_attention_time(1, 2, 1, 1, 25600, 256, 0.0, 0.0, **rates).time == pytest.approx(
        5e-6 + parts * 1e-6
    )


def test_splits_write_partial_outputs():
    # 100 parts of 256 keys; each writes and reads 128 fp32 sums
    parts = decode_attention_time(1, 1, 1, 1, 25600, 256, 0.0, 128.0, **(FREE | DECODE | {"bandwidth": 1e12}))
    assert parts.memory == pytest.approx(8 * 128 * 100 / 1e12)


def test_rows_of_a_group_pad_to_an_instruction():
    # 64 query heads on one KV head fill the widest instruction; 64 KV heads pad one row to 16 each
    shared = decode_attention_time(100, 64, 1, 1, 1024, 256, 0.0, 0.0, **(UNITS | DECODE))
    apart = decode_attention_time(100, 64, 64, 1, 1024, 256, 0.0, 0.0, **(UNITS | DECODE))
    assert shared.compute == pytest.approx(2 * 64 * 1024 * 256 / RATE)
    assert apart.compute == pytest.approx(64 * 16 / 64 * shared.compute)


def test_waves_of_short_sequences_wait_for_their_blocks():
    # 1,050 blocks on 100 units: ten full waves and one of half
    rates = FREE | DECODE | {"block_latency": 4e-6}
    parts = decode_attention_time(1050, 1, 1, 1, 1, 256, 0.0, 0.0, **rates)
    assert parts.time == pytest.approx(11 * 4e-6)
    # two blocks a unit at once: five and a quarter
    parts = decode_attention_time(1050, 1, 1, 1, 1, 256, 0.0, 0.0, **(rates | {"unit_blocks": 2.0}))
    assert parts.time == pytest.approx(6 * 4e-6)


@pytest.mark.parametrize(
    ("batch", "heads", "kv_heads", "copies"), [(4, 8, 2, 1), (1, 8, 2, 0), (4, 8, 1, 0), (4, 8, 8, 0)]
)
def test_grouped_heads_are_copied_together_where_they_lie_apart(batch, heads, kv_heads, copies):
    rates = FREE | DECODE | {"regroup_latency": 6e-6}
    assert decode_attention_time(batch, heads, kv_heads, 1, 8, 256, 0.0, 0.0, **rates).time == pytest.approx(
        copies * 6e-6, abs=1e-12
    )


def test_storing_takes_a_block_a_position():
    # 1,000 positions at 10 ns; 128 elements are a quarter of a block
    assert store_time(1000, 1024, 1.0, bandwidth=1e12, token_time=1e-8) == pytest.approx(1e-5)
    assert store_time(1000, 128, 1.0, bandwidth=1e12, token_time=1e-8) == pytest.approx(0.25e-5)
    assert store_time(1000, 1024, 1e9, bandwidth=1e12, token_time=1e-8) == pytest.approx(1e-3)


def test_a_working_set_beyond_the_cache_comes_from_memory():
    size = np.array([1e6, 40e6, 50e6, 60e6, 1e9])
    # 40 MB usable: all found, all found, half missed (1 / (0.5 + 0.5 / 4)), none found from 60 MB
    assert cached_speedup(size, 40e6, 4.0) == pytest.approx([4.0, 4.0, 1.6, 1.0, 1.0])
    assert cached_speedup(1e6, 0.0, 4.0) == 1.0


@pytest.mark.parametrize("queries", [1.0, 300.0])
def test_scalars_equal_array_elements(queries):
    batch = np.array([1.0, 7.0, 64.0])
    tail = TILED | {"tail": 0.7, "exposed_traffic": 0.3}
    late = DECODE | {
        "block_latency": 1e-6,
        "part_latency": 1e-7,
        "key_latency": 1e-8,
        "split_sequences": 16.0,
    }
    tiled = attention_time(batch, 8, queries, 4096, queries * 2000, 256, batch * 1e6, **(UNITS | tail))
    decoded = decode_attention_time(batch, 32, 8, queries, 4096, 256, batch * 1e6, 1e3, **(UNITS | late))
    for i, b in enumerate(batch.tolist()):
        one = attention_time(b, 8, queries, 4096, queries * 2000, 256, b * 1e6, **(UNITS | tail))
        assert float(tiled.time[i]) == pytest.approx(one.time, rel=1e-12)
        one = decode_attention_time(b, 32, 8, queries, 4096, 256, b * 1e6, 1e3, **(UNITS | late))
        assert float(decoded.time[i]) == pytest.approx(one.time, rel=1e-12)


@pytest.fixture(scope="module")
def l40s():
    catalog = Catalog()
    device = catalog.processor("l40s")
    return CostModel(device, catalog.calibration(device))


def test_a_benchmark_finds_its_cache_warm_and_a_model_does_not(l40s):
    # 34 MB fit in the 96 MB of L2 of an L40S, which has 864 GB/s of memory
    work = Attention(8, 32, 8, 1, 1024, 128, 128, 2048, decode=True)
    step = replace(l40s, sustained=True)
    assert step.price(work).time > 0.9 * work.cache_bytes / 864e9
    assert l40s.price(work).time < 0.7 * step.price(work).time
    long = replace(work, batch=256)
    assert l40s.price(long).time == pytest.approx(step.price(long).time, rel=0.2)


def test_storing_adds_a_kernel(l40s):
    work = Attention(8, 32, 8, 1024, 1024, 128, 128, 2048)
    stored = replace(work, stores=True)
    assert stored.bytes - work.bytes == 8 * 1024 * 2048 * (2 + 2)
    added = l40s.price(stored).time - l40s.price(work).time
    assert added > l40s.calibration.host.launch


def test_latent_attention_is_a_class_of_its_own(l40s):
    prefill = Attention(1, 128, 128, 4096, 4096, 192, 128, 128 * 320)
    absorbed = Attention(64, 128, 1, 1, 4096, 576, 512, 576, decode=True, stores=True)
    assert {l40s.price(work).operator_class for work in (prefill, absorbed)} == {"latent-attention"}
    assert not Attention(1, 8, 8, 16, 16, 128, 128, 2048).latent
    assert replace(prefill, qk_dim=np.array([128.0, 192.0])).latent


def test_a_narrow_cache_costs_conversion_and_saves_bytes(l40s):
    wide = Attention(256, 32, 8, 1, 16384, 128, 128, 2048, decode=True)
    narrow = replace(wide, kv_bytes=1.0)
    assert 0.5 * l40s.price(wide).time < l40s.price(narrow).time < 0.9 * l40s.price(wide).time


def test_exponentials_hold_up_fast_products_more():
    # fp8 doubles the products' rate and not that of the exponentials
    catalog = Catalog()
    device = catalog.processor("h100-sxm")
    cost = CostModel(device, catalog.calibration(device))
    half = cost.price(Attention(8, 32, 8, 8192, 8192, 128, 128, 2048))
    fp8 = cost.price(Attention(8, 32, 8, 8192, 8192, 128, 128, 2048, format="fp8"))
    assert 1.3 < half.compute / fp8.compute < 2.0
