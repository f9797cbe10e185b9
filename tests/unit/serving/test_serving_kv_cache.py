import numpy as np
import pytest
from serving_cases import LLAMA_70B, small

from simulator.graph import Partition, Shape, build
from simulator.serving import LayerGroup, PagedCache

TOKEN = 2 * 8 * 128 * 80 * 2.0
"""Keys and values of 8 heads of 128 in 80 layers, 16 bit: 320 KiB a token of Llama 3.1 70B."""


def test_blocks_of_llama_70b():
    cache = PagedCache.of(build(LLAMA_70B, Shape(1, 1)), 16, 1e9)
    assert cache.block_bytes == 16 * TOKEN
    assert cache.tokens == 1e9 // (16 * TOKEN) * 16
    assert cache.capacity == cache.tokens * TOKEN


def test_tensor_parallelism_cuts_kv_heads():
    cache = PagedCache.of(build(LLAMA_70B, Shape(1, 1), Partition(8)), 16, 1e9)
    assert cache.block_bytes == 16 * TOKEN / 8


def test_a_sequence_holds_whole_blocks():
    cache = PagedCache((LayerGroup(10.0),), 16, 1600.0)
    assert cache.size(np.array([0, 1, 16, 17])).tolist() == [0.0, 160.0, 160.0, 320.0]


def test_windowed_layers_keep_the_blocks_that_the_window_touches():
    cache = PagedCache((LayerGroup(10.0), LayerGroup(30.0, window=32.0)), 16, 1e6)
    # 100 tokens: 7 blocks of the full layers, 3 of those with a window of 2 blocks
    assert cache.size(100) == 7 * 160.0 + 3 * 480.0


def test_layers_of_a_hybrid_are_grouped_by_window():
    model = small(sliding_window=64, sliding_window_pattern=4)
    cache = PagedCache.of(build(model, Shape(1, 1)), 16, 1e9 + 1)
    width = 2 * 1024 * 2.0
    assert {(g.token_bytes, g.window) for g in cache.groups} == {(3 * width, 64.0), (width, np.inf)}
    assert cache.capacity == 1e9 + 1


def test_no_room_is_no_cache():
    cache = PagedCache.of(build(LLAMA_70B, Shape(1, 1)), 16, -5.0)
    assert (cache.capacity, cache.tokens) == (0.0, 0)


@pytest.mark.parametrize("new", [1, 15, 16, 17, 40])
def test_growth_is_bounded(new):
    cache = PagedCache((LayerGroup(10.0), LayerGroup(30.0, window=32.0)), 16, 1e6)
    contexts = np.arange(200)
    assert (cache.size(contexts + new) - cache.size(contexts)).max() <= cache.most(new)
