"""Fused attention: tiles of queries in prefill and training, a stream of the cache in decode."""

from __future__ import annotations

from simulator.cost.numeric import Parts, ceil, larger, overlap, smaller
from simulator.graph.work import Numeric

PARTIAL_BYTES = 8.0
"""Traffic of one element of a partial output of a split sequence: written and read once in fp32."""
MASKED_ROWS = 16.0
"""Granularity of a tile that is shorter than its full height: rows of one matrix instruction."""


def attention_time(
    batch: Numeric,
    heads: Numeric,
    queries: Numeric,
    keys: Numeric,
    pairs: Numeric,
    head_dims: Numeric,
    size: Numeric,
    *,
    peak: float,
    bandwidth: float,
    units: float,
    peak_efficiency: float,
    memory_efficiency: float,
    softmax_dim: float,
    tile: float,
    prologue_keys: float,
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
        Bytes that are read and written.
    peak, bandwidth, units : float
        Matrix peak [FLOP/s], memory bandwidth [B/s], units that tiles spread over.
    peak_efficiency, memory_efficiency, softmax_dim, tile, prologue_keys, base_latency : float
        Constants; see :class:`simulator.specs.calibration.AttentionConstants`.
    products : float
        2.5 in the backward pass, which has five products for the forward's two (Dao 2023, section 3.1).

    Returns
    -------
    Parts
        Seconds.

    Notes
    -----
    One tile of query rows walks over its keys (Dao 2023, algorithm 1): the mean number of them, rounded up to
    the tile on the diagonal, plus a prologue. batch·heads·ceil(queries/tile) tiles take whole waves over the
    units, and no less than the longest tile. Each pair also costs one exponential on a slower unit, worth
    ``softmax_dim`` of the head dimension (Shah et al. 2024, section 3.2).
    """
    tiles = ceil(queries / tile)
    reach = ceil(keys / MASKED_ROWS) * MASKED_ROWS
    mean = smaller(pairs / larger(queries, 1) + 0.5 * tile, reach) + prologue_keys
    head = 0.5 * head_dims
    step = products * 2.0 * tile * head_dims * (head + softmax_dim) / head / (peak * peak_efficiency / units)
    waves = ceil(batch * heads * tiles / units)
    compute = step * larger(waves * mean, reach + prologue_keys)
    memory = size / (bandwidth * memory_efficiency)
    return Parts(overlap(compute, memory) + base_latency, compute, memory, 0.0, base_latency)


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
    peak: float,
    bandwidth: float,
    units: float,
    peak_efficiency: float,
    memory_efficiency: float,
    row_tile: float,
    key_tile: float,
    split_keys: float,
    fill: float,
    block_latency: float,
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
        Elements of the output, which every split of a sequence writes in fp32.
    peak, bandwidth, units : float
        Matrix peak [FLOP/s], memory bandwidth [B/s], units that blocks spread over.
    peak_efficiency, memory_efficiency, row_tile, key_tile, split_keys, fill : float
    block_latency, base_latency : float
        Constants; see :class:`simulator.specs.calibration.DecodeConstants`.

    Returns
    -------
    Parts
        Seconds; waves of blocks beyond the first count as latency.

    Notes
    -----
    The rows of one KV head (heads/kv_heads · queries) share its cache and are padded to a matrix instruction.
    A sequence is split over blocks until two waves are full (Dao et al. 2023, *Flash-Decoding*); fewer blocks
    than ``fill``·units cannot saturate the memory. Many short sequences are bound by the latency of their
    blocks.
    """
    rows = heads / kv_heads * queries
    row_blocks = ceil(rows / row_tile)
    groups = batch * kv_heads * row_blocks
    splits = larger(smaller(ceil(keys / split_keys), ceil(2.0 * units / larger(groups, 1))), 1)
    blocks = larger(groups * splits, 1)
    busy = smaller(blocks / (units * fill), 1.0)
    memory = (size + PARTIAL_BYTES * outputs * splits * (splits > 1)) / (bandwidth * memory_efficiency * busy)
    waves = larger(blocks / units, 1.0)
    padded = ceil(keys / splits / key_tile) * key_tile
    compute = waves * 2.0 * row_tile * padded * head_dims / (peak * peak_efficiency / units)
    turnover = (waves - 1.0) * block_latency
    time = overlap(overlap(compute, memory), turnover)
    return Parts(time + base_latency, compute, memory, 0.0, base_latency + turnover)
