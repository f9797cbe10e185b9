"""Constants of the cost model as written: named, with their physical meaning, beside their provenance.

A class file (``gpu.yaml``) holds wide defaults; an architecture's or a device's file may replace any key with
a fitted value. Constants are dimensionless or SI; each operator class has a relative standard error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, get_args

from pydantic import Field

from simulator.specs.base import ByteRate, Number, Rate, Seconds, Spec

OperatorClass = Literal[
    "matmul", "attention", "decode-attention", "latent-attention", "elementwise", "embedding", "collective", "transfer", "host"
]
OPERATOR_CLASSES: tuple[OperatorClass, ...] = get_args(OperatorClass)
Fraction = Annotated[float, Field(gt=0.0, le=1.0)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]


class MatmulConstants(Spec):
    """GEMM: what full tiles reach, and what edges, waves, short loops and few tiles lose."""

    peak_efficiency: Number | None = None
    """Sustained share of the dense peak with the largest tile, all waves full (clock droop, issue slots)."""
    narrow_efficiency: Number | None = None
    """Further factor on the peak of formats of 8 bits and fewer: they are fed twice as fast, or need more power."""
    scaled_efficiency: Number | None = None
    """Further factor on the peak of products with a scale for every block of k, or of weights that are dequantised."""
    memory_efficiency: Number | None = None
    """Sustained share of the memory bandwidth where operands are streamed once."""
    cache_bandwidth: Number | None = None
    """Bandwidth of operands that lie in the last-level cache, over the sustained one of the memory."""
    cache_share: Number | None = None
    """Share of the last-level cache's capacity that operands can use before they are evicted."""
    tile_m: Number | None = None
    tile_n: Number | None = None
    """Longest edges of the output tile of one unit, elements; halves and quarters of them are tried too."""
    tile_edge: Number | None = None
    """Tile edge, elements, at which loading operands takes as long as multiplying: small tiles are slower."""
    prologue_k: Number | None = None
    """Length of the k loop, elements, that filling and draining the pipeline of a tile is worth."""
    step_latency: Seconds | None = None
    """Shortest time of a scaled product's loop for each 128 elements of k: load, product and promotion of the partial sum
    one after the other, where the loop is not split."""
    wave_tail: Number | None = None
    """Share of the idle time of a partly filled last wave that is lost: 1 where tiles run in lockstep, less where they drift."""
    split_latency: Seconds | None = None
    """Of adding up the partial sums of split-K: another kernel."""
    unit_bandwidth: ByteRate | None = None
    """Bytes of operands that one unit loads a second, through the caches."""
    fill: Number | None = None
    """Share of the units that must be busy to saturate the memory."""
    grouped_efficiency: Number | None = None
    """Further factor on the peak of grouped (MoE) products: uneven groups, gathered rows."""


class AttentionConstants(Spec):
    """Fused attention kernels, prefill and training."""

    peak_efficiency: Number | None = None
    """Sustained share of the dense matrix peak, forward, long sequences and a wide head."""
    backward_efficiency: Number | None = None
    """The same for the backward pass."""
    memory_efficiency: Number | None = None
    """Sustained share of the memory bandwidth."""
    softmax_dim: Number | None = None
    """Head dimension at which the exponentials of a score take as long as its products."""
    tile: Number | None = None
    """Query rows of one tile; causal work is rounded up to it."""
    tile_latency: Seconds | None = None
    """Of starting and ending a tile."""
    tail: Number | None = None
    """Waves of tiles that the last units end later than an even share."""
    exposed_traffic: Number | None = None
    """Share of the traffic of queries, keys, values and outputs that no product hides."""
    narrow_efficiency: Number | None = None
    """Factor on the peak where the cache has fewer bytes an element than the queries."""
    cache_bandwidth: Number | None = None
    """Bandwidth of the last-level cache over the memory's, for a working set that was just touched."""
    cache_share: Number | None = None
    """Share of the last-level cache that such a working set can use."""
    store_time: Seconds | None = None
    """Of writing one position's keys and values (512 elements each, or more) into a paged cache."""
    base_latency: Seconds | None = None
    """Shortest time, the launch of the storing kernel apart."""


class DecodeConstants(Spec):
    """Attention of few queries over a long cache (FlashDecoding, paged)."""

    memory_efficiency: Number | None = None
    """Sustained share of the memory bandwidth on a long cache."""
    peak_efficiency: Number | None = None
    """Sustained share of the matrix peak, padding of the query rows apart."""
    row_tile: Number | None = None
    """Query rows (queries times heads of a KV head) that a matrix instruction pads to."""
    key_tile: Number | None = None
    """Keys that a block pads to."""
    split_keys: Number | None = None
    """Shortest part of a sequence, keys, that is given to a block of its own."""
    fill: Number | None = None
    """Blocks for each unit that splitting aims at."""
    split_sequences: Number | None = None
    """Sequences times parts at which the kernel's scheduler stops splitting, whatever the number of heads."""
    ungrouped_sequences: Number | None = None
    """The same where each KV head has one query row (FlashAttention-2 does not split then: 1)."""
    unit_blocks: Number | None = None
    """Blocks that a unit runs at once."""
    block_latency: Seconds | None = None
    """Of a block: page table, first load, write."""
    combine_latency: Seconds | None = None
    """Of the kernel that combines the parts of split sequences."""
    part_latency: Seconds | None = None
    """Of one more part in that kernel, which reads them one after the other."""
    regroup_latency: Seconds | None = None
    """Of copies that bring the query heads of a KV head together, where the kernel needs them (FlashAttention-2)."""
    narrow_efficiency: Number | None = None
    """Factor on the peak where the cache has fewer bytes an element than the queries: conversion."""
    cache_bandwidth: Number | None = None
    """Bandwidth of the last-level cache over the memory's, for a KV cache that was just read (a repeated benchmark)."""
    cache_share: Number | None = None
    """Share of the last-level cache that it can use."""
    base_latency: Seconds | None = None
    """Shortest time: launch, dependent loads; the launch of the storing kernel apart."""


class LatentConstants(Spec):
    """Multi-head latent attention: what differs from the constants of attention and decode attention."""

    prefill_efficiency: Number | None = None
    """Sustained share of the matrix peak in prefill (keys of 192, values of 128 elements), softmax apart."""
    decode_efficiency: Number | None = None
    """The same of absorbed attention in decode, padding of the query rows apart."""
    memory_efficiency: Number | None = None
    """Sustained share of the memory bandwidth on a long latent cache."""
    row_tile: Number | None = None
    """Heads that share one pass over the latent cache."""
    narrow_efficiency: Number | None = None
    """Factor on the peak where the latent cache has fewer bytes an element than the queries: conversion."""
    module_latency: Seconds | None = None
    """Shortest time of the module (absorption, store, attention) where each kernel is launched by itself: the CPU's."""
    narrow_latency: Seconds | None = None
    """What the kernels that quantise for a narrow cache add to it."""


class StreamConstants(Spec):
    """Kernels bound by a memory: element-wise, norms, gathers."""

    memory_efficiency: Number | None = None
    """Sustained share of the bandwidth for large kernels."""
    cache_bandwidth: Number | None = None
    """Bandwidth of kernels whose operands fit in the last-level cache, over the sustained one of the memory."""
    cache_share: Number | None = None
    """Share of the last-level cache's capacity that operands can use before they are evicted."""
    base_latency: Seconds | None = None
    """Of a kernel that does nothing: launch, first load, tail."""
    scalar_rate: Rate | None = None
    """Elements a second of one unit in kernels that load and store one element a thread instead of vectors of 16 bytes."""


class CollectiveConstants(Spec):
    """Collectives and point-to-point messages by α-β."""

    bandwidth_efficiency: Number | None = None
    """Sustained share of the link bandwidth for large messages inside a node."""
    network_efficiency: Number | None = None
    """The same between nodes."""
    in_switch_efficiency: Number | None = None
    """The same where the switch reduces."""
    base_latency: Seconds | None = None
    """Of any collective: launch and synchronisation."""
    hop_latency: Seconds | None = None
    """Of software in each hop (copy, flag), on top of the link's."""
    handshake: Seconds | None = None
    """Further latency of the protocol of full bandwidth (NCCL's Simple), twice where the switch reduces."""
    low_latency_share: Number | None = None
    """Share of the sustained bandwidth of the protocol without the handshake (NCCL's LL and LL128)."""
    occupancy: Share | None = None
    """Share of the units that a collective's kernels take from a product that runs beside it."""


class TransferConstants(Spec):
    """Copies between memories."""

    efficiency: Number | None = None
    """Sustained share of the narrowest link for large pinned copies."""
    storage_efficiency: Number | None = None
    """The same where the path begins or ends in flash."""
    half_bytes: Number | None = None
    """Bytes of one request at which half of the sustained bandwidth is reached."""


class HostConstants(Spec):
    """What the CPU adds to a step."""

    launch: Seconds | None = None
    """Shortest time of a kernel: launch and tail."""
    step: Seconds | None = None
    """Serving iteration: scheduling, sampling and de-tokenising that are not hidden."""
    context_bytes: Number | None = None
    """Device memory taken by driver context, communication library and workspaces, bytes."""
    sustained_clock: Fraction | None = None
    """Clock of the matrix units after minutes of load (power and heat), over that of a benchmark of some milliseconds."""


class FitRecord(Spec):
    """Where fitted constants of a class come from, and how good they are on groups that the fit has not seen."""

    data: str
    """Data sets, by their path in a measurements folder."""
    rows: int
    """Rows that were fitted on."""
    held_out: int
    """Rows that judge: whole groups."""
    groups: str
    """What was held out together."""
    median: float
    """Median absolute relative error of the rows held out."""
    mean: float
    shared: float
    """Share of the residual variance that kernels have in common; the rest is each kernel's own."""
    date: str = ""


class Calibration(Spec):
    """Constants for a device, an architecture or a kind, and the doubt about them."""

    kind: Literal["calibration"]
    name: str
    source: str
    note: str = ""
    matmul: MatmulConstants = MatmulConstants()
    attention: AttentionConstants = AttentionConstants()
    decode_attention: DecodeConstants = DecodeConstants()
    latent_attention: LatentConstants = LatentConstants()
    elementwise: StreamConstants = StreamConstants()
    collective: CollectiveConstants = CollectiveConstants()
    transfer: TransferConstants = TransferConstants()
    host: HostConstants = HostConstants()
    error: dict[OperatorClass, Fraction] = Field(default_factory=dict)
    """Relative standard error of a single kernel's predicted time, by operator class."""
    fits: dict[OperatorClass, FitRecord] = Field(default_factory=dict)
    """Provenance of fitted constants, by operator class."""


def merge_calibration(layers: Sequence[Calibration]) -> Calibration:
    """Lay special constants over general ones, key by key; the name and sources of all layers are kept."""
    merged = layers[0]
    for layer in layers[1:]:
        update: dict[str, object] = {
            "error": {**merged.error, **layer.error},
            "fits": {**merged.fits, **layer.fits},
        }
        for name in Calibration.model_fields:
            value = getattr(layer, name)
            if isinstance(value, Spec):
                given = {k: v for k, v in value if v is not None}
                update[name] = getattr(merged, name).model_copy(update=given)
        update["name"] = layer.name
        update["source"] = "; ".join(dict.fromkeys((layer.source, merged.source)))
        merged = merged.model_copy(update=update)
    return merged
