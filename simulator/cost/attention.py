"""Fused attention: tiles of queries in prefill and training, a stream of the cache in decode."""

from __future__ import annotations

from simulator.cost.numeric import Parts, ceil, floor, larger, overlap, smaller
from simulator.graph.work import Numeric

HEAD_DIMS = 256.0
"""Sum of the dimensions of a key and a value that ``key_latency`` is meant for."""
PARTIAL_BYTES = 8.0
"""Traffic of one element of a partial output of a split sequence: written and read once in fp32."""
MASKED_ROWS = 16.0
"""Granularity of a tile that is shorter than its full height: rows of one matrix instruction."""
STORE_ELEMENTS = 512.0
"""Elements of keys (and as many of values) that a block of threads of the storing kernel moves at a time."""
SPILL = 0.5
"""Part of the cache's capacity by which a working set must exceed it until nothing of it is found there again."""


def attention_time(
    batch: Numeric,
    heads: Numeric,
    queries: Numeric,
    keys: Numeric,
    pairs: Numeric,
    head_dims: Numeric,
    size: Numeric,
    *,
    ends: Numeric,
    peak: Numeric,
    bandwidth: Numeric,
    units: float,
    peak_efficiency: float,
    memory_efficiency: float,
    softmax_dim: float,
    tile: float,
    tile_latency: float,
    tail: float,
    exposed_traffic: float,
    base_latency: float = 0.0,
    products: float = 1.0,
) -> Parts:
    """Return the time of fused attention of many queries (FlashAttention).

    Parameters
    ----------
    batch, heads, queries, keys : number or array
        Sequences, query heads, new positions and positions that a query sees at most.
    pairs : number or array
        Query-key pairs of one head and sequence (about half of queries x keys where causal).
    head_dims : number or array
        Sum of the dimensions of keys and values.
    size : number or array
        Bytes of queries, keys, values and outputs.
    ends : number or array
        Those of them that wait at the start or end of a tile: all, where a tile of queries sees few keys; in the backward pass,
        whose tiles are of keys, these, values and the gradients of both.
    peak, bandwidth, units : float
        Matrix peak [FLOP/s], memory bandwidth [B/s], units that tiles spread over.
    peak_efficiency, memory_efficiency, softmax_dim, tile, tile_latency, tail, exposed_traffic, base_latency : float
        Constants; see :class:`simulator.specs.calibration.AttentionConstants`.
    products : float
        2.5 in the backward pass, which has five products for the forward's two (Dao 2023, section 3.1).

    Returns
    -------
    Parts
        Seconds.

    Notes
    -----
    One tile of query rows walks over its keys (Dao 2023, algorithm 1): the mean number of them, with half a tile more
    on the diagonal. batch·heads·ceil(queries/tile) tiles share the units. Tiles of equal length take whole waves; where
    they are ragged (their mean is half of the longest over a whole causal sequence), short ones fill the gaps and the
    end comes ``tail`` waves after an even share. It never comes before that of the longest tile. Each pair also costs
    one exponential on a slower unit, in the forward and again in the backward pass, worth ``softmax_dim`` of the head
    dimension (Shah et al. 2024, section 3.2). What passes at both ends of a tile no product hides: ``exposed_traffic`` of it
    adds to the products' time; what streams through the loop is hidden.
    """
    tiles = ceil(queries / tile)
    reach = ceil(keys / MASKED_ROWS) * MASKED_ROWS
    mean = smaller(pairs / larger(queries, 1) + 0.5 * tile, reach)
    head = 0.5 * head_dims
    step = 2.0 * tile * head_dims * (products * head + softmax_dim) / head / (peak * peak_efficiency / units)
    even = batch * heads * tiles / units
    ragged = smaller(2.0 - 2.0 * mean / reach, 1.0)
    waves = even + ragged * tail + (1.0 - ragged) * (ceil(even) - even)
    compute = larger(waves * (step * mean + tile_latency), step * reach + tile_latency)
    memory, exposed = (
        size / (bandwidth * memory_efficiency),
        exposed_traffic * ends / (bandwidth * memory_efficiency),
    )
    time = overlap(compute, memory - exposed) + exposed + base_latency
    return Parts(time, compute, memory, 0.0, base_latency)


def decode_attention_time(
    batch: Numeric,
    heads: Numeric,
    kv_heads: Numeric,
    queries: Numeric,
    keys: Numeric,
    head_dims: Numeric,
    size: Numeric,
    outputs: Numeric,
    *,
    peak: Numeric,
    bandwidth: Numeric,
    units: float,
    peak_efficiency: float,
    memory_efficiency: float,
    row_tile: float,
    key_latency: float,
    key_tile: float,
    split_keys: float,
    fill: float,
    split_sequences: float,
    ungrouped_sequences: float,
    split_parts: float,
    unit_blocks: float,
    block_latency: float,
    combine_latency: float,
    part_latency: float,
    regroup_latency: float,
    base_latency: float = 0.0,
) -> Parts:
    """Return the time of attention of few queries over a long cache (FlashDecoding).

    Parameters
    ----------
    batch, heads, kv_heads, queries, keys : number or array
        Sequences, query heads, KV heads (1 for the latent cache of MLA), new positions and positions in
        reach.
    head_dims : number or array
        Sum of the dimensions of keys and values.
    size : number or array
        Bytes of cache, queries and outputs.
    outputs : number or array
        Elements of the output, which every part of a sequence writes in fp32.
    peak, bandwidth, units : float
        Matrix peak [FLOP/s], memory bandwidth [B/s], units that blocks spread over.
    peak_efficiency, memory_efficiency, row_tile, key_latency, key_tile, split_keys, fill : float
    split_sequences, ungrouped_sequences, split_parts, unit_blocks, block_latency, combine_latency : float
    part_latency, regroup_latency, base_latency : float
        Constants; see :class:`simulator.specs.calibration.DecodeConstants`.

    Returns
    -------
    Parts
        Seconds; starting, combining and rearranging count as latency.

    Notes
    -----
    The rows of one KV head (heads/kv_heads · queries) share its cache and are padded to a matrix instruction; a block
    takes their products' time, and no less than ``key_latency`` for each key that it loads and takes exponentials of. A
    sequence is split over blocks until ``fill`` blocks for each unit are there (Dao et al. 2023, *Flash-Decoding*), no
    shorter than ``split_keys`` and no further than the kernel's scheduler goes; the parts are combined one after the
    other. Blocks run in waves of ``unit_blocks`` for each unit. A wave takes as long as the memory needs for its
    bytes, or as one block needs for its keys, whichever is longer: few blocks cannot saturate the memory, and a last
    wave that is nearly empty still takes a block's time.
    """
    rows = heads / kv_heads * queries
    grouped = rows > 1.0
    groups = larger(batch * kv_heads * ceil(rows / row_tile), 1.0)
    limit = (grouped * split_sequences + (1.0 - grouped) * ungrouped_sequences) / larger(batch, 1.0)
    longest = smaller(ceil(keys / split_keys), split_parts)
    parts = larger(floor(smaller(smaller(longest, fill * units / groups), limit)), 1.0)
    split = parts > 1.0
    padded = ceil(keys / parts / key_tile) * key_tile
    padded_rows = smaller(ceil(rows / MASKED_ROWS) * MASKED_ROWS, row_tile)
    products = 2.0 * padded_rows * padded * head_dims / (peak * peak_efficiency / units)
    products = larger(products, padded * key_latency * head_dims / HEAD_DIMS)
    memory = (size + PARTIAL_BYTES * outputs * parts * split) / (bandwidth * memory_efficiency)
    waves = groups * parts / (unit_blocks * units)
    full = floor(waves)
    last = waves - full
    block, wave = products + block_latency, memory / waves
    stream = full * overlap(wave, block) + (last > 0.0) * overlap(wave * last, block)
    regroup = grouped * (batch > 1.0) * (kv_heads > 1.0) * regroup_latency
    latency = base_latency + split * (combine_latency + part_latency * parts) + regroup
    turnover = larger(waves, 1.0) * block_latency
    return Parts(stream + latency, larger(waves, 1.0) * products, memory, 0.0, latency + turnover)


def store_time(
    tokens: Numeric, elements: Numeric, size: Numeric, *, bandwidth: Numeric, token_time: float
) -> Numeric:
    """Return the time of writing new keys and values into a paged cache, a kernel of its own in serving engines.

    Parameters
    ----------
    tokens, elements, size : number or array
        New positions, elements of the keys of one position (values have as many), bytes read and written.
    bandwidth : float
        Sustained memory bandwidth [B/s].
    token_time : float
        Time that a position of 512 elements or more takes of the whole device [s]: a block of threads each.

    Returns
    -------
    number or array
        Seconds, without the launch.
    """
    blocks = tokens * smaller(elements / STORE_ELEMENTS, 1.0)
    time: Numeric = overlap(size / bandwidth, blocks * token_time)
    return time


def cached_speedup(size: Numeric, capacity: float, speedup: float) -> Numeric:
    """Return how much faster than from memory a working set streams that was touched just before.

    Parameters
    ----------
    size : number or array
        Bytes of the working set.
    capacity : float
        Bytes of the last-level cache that it can use; 0 where nothing stays.
    speedup : float
        Bandwidth of the cache over that of the memory.

    Returns
    -------
    number or array
        ``speedup`` where all of it fits, 1 where it is larger by half or more: least recently used data are evicted
        before they come round again.
    """
    if capacity <= 0.0:
        return 1.0
    miss = larger(smaller((size - capacity) / (SPILL * capacity), 1.0), 0.0)
    faster: Numeric = 1.0 / (miss + (1.0 - miss) / speedup)
    return faster
