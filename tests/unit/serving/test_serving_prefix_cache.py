"""The prefix cache against a plain cache of blocks, each known by all that is before it."""

from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.serving.prefix_cache import PrefixCache
from simulator.serving.prefixes import Prefixes, chained_texts, grouped_texts, own_texts

laws = settings(derandomize=True, max_examples=80, deadline=None, database=None)


class BlockCache:
    """Blocks by the texts before them in one order, least recently used first; each tier takes what the one above drops."""

    def __init__(self, sizes):
        self.sizes = sizes
        self.tiers = [OrderedDict() for _ in sizes]

    def serve(self, blocks):
        """Serve a request of these blocks alone; returns how many were found in each tier, from the front."""
        found = [0] * len(self.tiers)
        for block in blocks:
            tier = next((i for i, kept in enumerate(self.tiers) if block in kept), None)
            if tier is None:
                break
            found[tier] += 1
        for block in reversed(blocks):
            for kept in self.tiers:
                kept.pop(block, None)
            self.tiers[0][block] = None
        for upper, (kept, size) in enumerate(zip(self.tiers, self.sizes, strict=True)):
            while len(kept) > size:
                block, _ = kept.popitem(last=False)
                if upper + 1 < len(self.tiers):
                    self.tiers[upper + 1][block] = None
        return found


def paths(texts, request, size):
    """Whole blocks of a request as the nodes and lengths before their end."""
    nodes, node = [], texts.leaf[request]
    while node >= 0:
        nodes.append(node)
        node = texts.parent[node]
    nodes.reverse()
    blocks = []
    for end in range(size, texts.end[texts.leaf[request]] + 1, size):
        last = next(node for node in nodes if texts.end[node] >= end)
        blocks.append((int(last), end))
    return blocks


@st.composite
def histories(draw):
    """A tree of texts, and requests that end at its leaves, some of them more than once."""
    count = draw(st.integers(1, 8))
    parent, end = [], []
    for node in range(count):
        parent.append(draw(st.integers(-1, node - 1)))
        end.append((end[parent[-1]] if parent[-1] >= 0 else 0) + draw(st.integers(1, 9)))
    order = draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=20))
    texts = Prefixes(np.array(parent), np.array(end), np.array(order))
    sizes = draw(st.lists(st.integers(0, 12), min_size=1, max_size=3))
    return texts, draw(st.sampled_from([1, 2, 3])), sizes


@laws
@given(histories())
def test_requests_one_after_the_other_find_what_a_cache_of_blocks_has(history):
    texts, size, sizes = history
    cache, plain = PrefixCache(texts, size, sizes[1:]), BlockCache(sizes)
    for request in range(len(texts.leaf)):
        tokens = int(texts.end[texts.leaf[request]])
        hit = cache.lock(request, tokens)
        found = plain.serve(paths(texts, request, size))
        assert [hit.blocks - sum(hit.lower), *hit.lower] == found
        cache.publish(request, tokens)
        assert cache.held(request) == tokens // size
        cache.release(request)
        cache.shrink(sizes[0])
        assert [cache.idle, *cache.lower] == [len(kept) for kept in plain.tiers]


def test_shared_blocks_are_counted_once():
    texts = grouped_texts(np.array([0, 0]), np.array([8]), np.array([10, 12]), np.array([4, 4]))
    cache = PrefixCache(texts, 4)
    assert cache.lock(0, 10).blocks == 0
    assert cache.publish(0, 10) == (2, 0, 0)
    assert cache.lock(1, 12).blocks == 2
    assert (cache.active, cache.idle) == (2, 0)
    cache.publish(1, 12)
    assert cache.active == 3
    assert cache.release(0) == 0
    assert cache.release(1) == 3
    assert (cache.active, cache.idle) == (0, 3)


def test_who_computed_the_same_in_the_meantime_gives_its_blocks_back():
    texts = grouped_texts(np.array([0, 0]), np.array([8]), np.array([10, 12]), np.array([4, 4]))
    cache = PrefixCache(texts, 4)
    for request in (0, 1):
        cache.lock(request, 10)
    assert cache.publish(0, 10) == (2, 0, 0)
    assert cache.publish(1, 10) == (2, 2, 0)
    cache.release(0)
    assert cache.active == 2


def test_the_end_of_a_path_goes_first():
    cache = PrefixCache(own_texts(np.array([10, 10]), np.array([2, 2])), 2)
    for request in (0, 1):
        cache.lock(request, 10)
        cache.publish(request, 10)
        cache.release(request)
    assert cache.shrink(7) == 3
    assert cache.match(0, 10).blocks == 2
    assert cache.match(1, 10).blocks == 5


def test_what_a_lower_tier_has_moves_up():
    cache = PrefixCache(own_texts(np.array([10]), np.array([2])), 2, [3])
    cache.lock(0, 10)
    cache.publish(0, 10)
    cache.release(0)
    cache.shrink(0)
    # five blocks come down, the last two do not fit
    assert (cache.idle, cache.lower) == (0, [3])
    hit = cache.lock(0, 10)
    assert (hit.blocks, hit.lower, hit.room) == (3, (3,), 3)
    assert (cache.active, cache.lower) == (3, [0])


def test_identifiers_of_blocks_are_a_tree():
    prompt = np.array([20, 25, 10])
    texts = chained_texts([[1, 2, 3], [1, 2, 4], []], 8, prompt, np.array([1, 1, 1]))
    assert texts.parent.tolist() == [-1, 0, 1, 1, 2, 3, -1]
    assert texts.end.tolist() == [8, 16, 20, 24, 21, 26, 11]
    assert texts.start.tolist() == [0, 8, 16, 16, 20, 24, 0]


@pytest.mark.parametrize("tokens", [0, 3])
def test_less_than_a_block_finds_nothing(tokens):
    cache = PrefixCache(own_texts(np.array([3]), np.array([3])), 4)
    assert cache.lock(0, tokens).blocks == 0
    assert cache.publish(0, tokens) == (0, 0, 0)
