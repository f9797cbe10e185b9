import numpy as np
import pytest
from serving_cases import LLAMA_8B, LLAMA_70B, small

from simulator.graph import Partition, Shape, build
from simulator.serving import LayerGroup, PagedCache
from simulator.serving.kv_cache import ContiguousCache, VirtualCache, layer_groups, stored

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


def test_a_slot_is_the_same_however_short_the_sequence():
    cache = ContiguousCache((LayerGroup(10.0), LayerGroup(30.0, window=32.0)), 100, 5000.0)
    assert cache.slot == 1000.0 + 32 * 30.0
    assert cache.size(np.array([1, 99])).tolist() == [cache.slot] * 2
    assert float(cache.size(5)) == cache.slot
    assert (cache.capacity, cache.tokens, cache.most(7)) == (2 * cache.slot, 200, 0.0)


def test_pages_of_vattention():
    """Prabhu et al. 2024, table 5: tokens of a 2 MiB page: 1,024 of Llama-3-8B on one GPU, 2,048 of two."""
    for tensor, tokens in ((1, 1024), (2, 2048)):
        graph = build(LLAMA_8B, Shape(1, 1), Partition(tensor))
        cache = VirtualCache(layer_groups(graph), 2.0 * 2**20, 10e9)
        assert cache.page_tokens == (tokens,)
        # keys and values of 32 layers
        assert cache.size(1) == cache.size(tokens) == 64 * 2.0 * 2**20
        assert cache.size(tokens + 1) == 2 * cache.size(1)
        assert cache.most(1) == cache.size(1)
        assert cache.tokens == pytest.approx(10e9 / (131072 / tensor), rel=1e-3)


def test_pages_behind_a_window_are_unmapped():
    cache = VirtualCache((LayerGroup(8.0, 16.0, 2),), 32.0, 1000.0)
    # 4 B a token and tensor: 8 tokens a page, the window touches three
    assert cache.size(np.array([8, 16, 24, 800])).tolist() == [64.0, 128.0, 192.0, 192.0]
    assert stored(cache, np.array([8, 800])).tolist() == [64.0, 128.0]
    assert cache.growth_time == 0.0


def test_a_latent_vector_is_one_tensor():
    (group,) = layer_groups(build(LLAMA_8B, Shape(1, 1)), 1)
    assert group.tensors == 32
