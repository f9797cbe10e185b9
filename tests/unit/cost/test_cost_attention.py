"""Attention: tiles of queries, and streams of the cache, against counts done by hand."""

import numpy as np
import pytest

from simulator.cost import attention_time, decode_attention_time

UNITS = {"peak": 100e12, "bandwidth": 1e30, "units": 100.0}
TILED = {
    "peak_efficiency": 1.0,
    "memory_efficiency": 1.0,
    "softmax_dim": 0.0,
    "tile": 128.0,
    "prologue_keys": 0.0,
}
DECODE = {
    "peak_efficiency": 1.0,
    "memory_efficiency": 1.0,
    "row_tile": 64.0,
    "key_tile": 128.0,
    "split_keys": 256.0,
    "fill": 1.0,
    "block_latency": 0.0,
}


def causal(s: float) -> float:
    return s * (s + 1) / 2


def test_causal_tiles_end_on_the_diagonal():
    # 8 tiles of 128 rows see 128, 256 ... 1024 keys: 576 on average, against 512.5 pairs a row; 200 x 8 tiles
    # on 100 units are 16 whole waves
    parts = attention_time(200, 1, 1024, 1024, causal(1024), 256, 0.0, **(UNITS | TILED))
    rate = 100e12 / 100
    assert parts.time == pytest.approx(16 * 576.5 * 2 * 128 * 256 / rate)


def test_the_longest_tile_bounds_a_lone_sequence():
    # 8 tiles on 100 units: the last one, with all 1024 keys, is the critical path
    parts = attention_time(1, 1, 1024, 1024, causal(1024), 256, 0.0, **(UNITS | TILED))
    assert parts.time == pytest.approx(1024 * 2 * 128 * 256 / 1e12)


def test_exponentials_count_as_head_dimension():
    # at softmax_dim = 128 a head of 128 runs at half of the rate, one of 64 at a third
    plain = attention_time(50, 16, 2048, 2048, causal(2048), 256, 0.0, **(UNITS | TILED))
    slowed = attention_time(
        50, 16, 2048, 2048, causal(2048), 256, 0.0, **(UNITS | TILED | {"softmax_dim": 128.0})
    )
    narrow = attention_time(
        50, 16, 2048, 2048, causal(2048), 128, 0.0, **(UNITS | TILED | {"softmax_dim": 128.0})
    )
    assert slowed.time == pytest.approx(2 * plain.time)
    assert narrow.time == pytest.approx(3 * plain.time / 2)


def test_backward_has_five_products_for_two():
    once = attention_time(50, 16, 2048, 2048, causal(2048), 256, 0.0, **(UNITS | TILED))
    assert attention_time(
        50, 16, 2048, 2048, causal(2048), 256, 0.0, products=2.5, **(UNITS | TILED)
    ).time == pytest.approx(2.5 * once.time)


def test_memory_bound_attention_streams():
    parts = attention_time(1, 1, 16, 16, causal(16), 256, 1e9, **(UNITS | TILED | {"bandwidth": 1e9}))
    assert parts.memory == 1.0
    assert parts.time == pytest.approx(1.0)


def test_decode_streams_the_cache():
    # 64 sequences x 8 KV heads fill 100 units: 64 * 4096 * 2048 elements of 2 bytes at 1 TB/s
    size = 64 * 4096 * 2048 * 2.0
    parts = decode_attention_time(
        64, 32, 8, 1, 4096, 256, size, 0.0, **(UNITS | DECODE | {"bandwidth": 1e12, "peak": 1e30})
    )
    assert parts.memory == pytest.approx(size / 1e12)
    assert parts.time == pytest.approx(size / 1e12)


def test_a_short_cache_of_one_head_leaves_units_idle():
    # 512 keys make 2 splits of 256, so 2 of 100 units: a fiftieth of the bandwidth
    size = 512 * 256 * 2.0
    parts = decode_attention_time(
        1, 1, 1, 1, 512, 256, size, 0.0, **(UNITS | DECODE | {"bandwidth": 1e12, "peak": 1e30})
    )
    assert parts.memory == pytest.approx(size / (1e12 * 2 / 100))


def test_splits_write_partial_outputs():
    shape = (1, 1, 1, 1, 25600, 256, 0.0)
    rates = UNITS | DECODE | {"bandwidth": 1e12, "peak": 1e30}
    # 100 splits of 256 keys; each writes and reads 128 fp32 sums
    assert decode_attention_time(*shape, 128.0, **rates).memory == pytest.approx(8 * 128 * 100 / 1e12)


def test_rows_of_a_group_pad_to_an_instruction():
    # MQA with 64 query heads uses the instruction's 64 rows fully, MHA with as many KV heads one row of 64 in
    # each
    shared = decode_attention_time(100, 64, 1, 1, 1024, 256, 0.0, 0.0, **(UNITS | DECODE))
    apart = decode_attention_time(100, 64, 64, 1, 1024, 256, 0.0, 0.0, **(UNITS | DECODE))
    assert shared.compute == pytest.approx(2 * 64 * 1024 * 256 / 1e12)
    assert apart.compute == pytest.approx(64 * shared.compute)


def test_many_short_sequences_wait_for_their_blocks():
    parts = decode_attention_time(
        1000, 1, 1, 1, 1, 256, 0.0, 0.0, **(UNITS | DECODE | {"peak": 1e30, "block_latency": 4e-6})
    )
    # ten waves of 100 blocks: nine turnovers
    assert parts.time == pytest.approx(9 * 4e-6)
    assert parts.latency == pytest.approx(9 * 4e-6)


@pytest.mark.parametrize("queries", [1.0, 300.0])
def test_scalars_equal_array_elements(queries):
    batch = np.array([1.0, 7.0, 64.0])
    tiled = attention_time(batch, 8, queries, 4096, queries * 2000, 256, batch * 1e6, **(UNITS | TILED))
    decoded = decode_attention_time(batch, 32, 8, queries, 4096, 256, batch * 1e6, 1e3, **(UNITS | DECODE))
    for i, b in enumerate(batch.tolist()):
        one = attention_time(b, 8, queries, 4096, queries * 2000, 256, b * 1e6, **(UNITS | TILED))
        assert float(tiled.time[i]) == pytest.approx(one.time, rel=1e-12)
        one = decode_attention_time(b, 32, 8, queries, 4096, 256, b * 1e6, 1e3, **(UNITS | DECODE))
        assert float(decoded.time[i]) == pytest.approx(one.time, rel=1e-12)
