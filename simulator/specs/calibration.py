"""Constants of the cost model as written: named, with their physical meaning, beside their provenance.

A class file (``gpu.yaml``) holds wide defaults; an architecture's or a device's file may replace any key with
a fitted value. Constants are dimensionless or SI; each operator class has a relative standard error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, get_args

from pydantic import Field

from simulator.specs.base import Number, Seconds, Spec

OperatorClass = Literal[
    "matmul",
    "grouped-matmul",
    "attention",
    "decode-attention",
    "latent-attention",
    "elementwise",
    "embedding",
    "collective",
    "custom-collective",
    "expert-exchange",
    "transfer",
    "host",
    "step",
]
"""Kernels by what prices them; ``step`` is no kernel but what a whole training step is off by on top of its kernels: software
between them and its version, slow ranks, layouts that are not stated in full."""
OPERATOR_CLASSES: tuple[OperatorClass, ...] = get_args(OperatorClass)
Fraction = Annotated[float, Field(gt=0.0, le=1.0)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]
Exponent = Annotated[float, Field(ge=0.0)]


class MatmulConstants(Spec):
    """GEMM: what full tiles reach, and what edges, waves, short loops and few tiles lose."""

    peak_efficiency: Number | None = None
    """Sustained share of the dense peak with the largest tile, all waves full (clock droop, issue slots)."""
    narrow_efficiency: Number | None = None
    """Further factor on the peak of 8-bit formats in the vendor's library (cuBLASLt): operands are fed twice as fast."""
    engine_efficiency: Number | None = None
    """The same in kernels that a serving engine brings itself (vLLM's, from CUTLASS), with scales by row and column."""
    quarter_efficiency: Number | None = None
    """The same of formats of 4 to 6 bits, with scales that the matrix units apply."""
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
    epilogue_rate: Number | None = None
    """Elements of the output that one unit finishes a second: pipeline filled and drained, accumulators converted, stored."""
    step_latency: Seconds | None = None
    """Shortest time of a scaled product's loop for each 128 elements of k: load, product and promotion of the partial sum
    one after the other, where the loop is not split."""
    promotion_rate: Number | None = None
    """Partial sums that one unit scales and adds a second in scaled products, once each 128 elements of k."""
    wave_tail: Number | None = None
    """Share of the idle time of a partly filled last wave that is lost: 1 where tiles run in lockstep, less where they drift."""
    split_latency: Seconds | None = None
    """Of adding up the partial sums of split-K: another kernel."""
    unit_bandwidth: Number | None = None
    """Bytes of operands that one unit loads a second, through the caches."""
    fill: Number | None = None
    """Share of the units that must be busy to saturate the memory."""


class GroupedConstants(Spec):
    """Grouped products of a mixture of experts, and what a layer of experts does around them."""

    peak_efficiency: Number | None = None
    """Sustained share of the dense peak inside the loop of a tile, its latency apart."""
    memory_efficiency: Number | None = None
    """Sustained share of the memory bandwidth at which the weights of active experts stream."""
    step_latency: Seconds | None = None
    """Time of a step of the loop that neither products nor other tiles of the unit hide, rows in the last-level cache."""
    uncached_step: Number | None = None
    """Factor on it where the gathered rows do not lie in the last-level cache."""
    exposed: Number | None = None
    """Share of the shorter of loop and weight stream that adds to the longer: too few loads are in flight to overlap all."""
    promotion_rate: Number | None = None
    """Partial sums that one unit scales and adds a second in block-scaled products, once each 128 elements of k."""
    dequantised_efficiency: Number | None = None
    """Further factor on the peak where weights have fewer bits than activations and are converted in the loop."""
    layer_latency: Seconds | None = None
    """Of a layer beside its products: routing, alignment, launches of some small kernels."""
    sort_rate: Number | None = None
    """Token copies a second that are counted, sorted and placed."""
    sum_rate: Number | None = None
    """Elements a second of a generic reduction over the outputs of a token's experts (no kernel made for that top-k)."""


class AttentionConstants(Spec):
    """Fused attention kernels, prefill and training."""

    peak_efficiency: Number | None = None
    """Sustained share of the dense matrix peak, forward, long sequences and a wide head."""
    backward_efficiency: Number | None = None
    """The same for the backward pass."""
    memory_efficiency: Number | None = None
    """Sustained share of the memory bandwidth."""
    softmax_dim: Number | None = None
    """Head dimension at which the exponentials of a score that products do not hide take as long as these, on a unit of
    1,024 FLOP a clock; units with more of them wait longer (16 exponentials a clock of any NVIDIA unit make 16 if exposed)."""
    tile: Number | None = None
    """Query rows of one tile; causal work is rounded up to it."""
    tile_latency: Seconds | None = None
    """Of starting and ending a tile."""
    tail: Number | None = None
    """Waves of tiles that the last units end later than an even share."""
    exposed_traffic: Number | None = None
    """Share of the traffic at both ends of a tile that no product hides."""
    narrow_efficiency: Number | None = None
    """Factor on the peak where the cache has fewer bytes an element than the queries."""
    flash_2: Fraction | None = None
    """Share of the peak efficiencies that FlashAttention-2 reaches: its instructions are those of Ampere."""
    flash_1: Fraction | None = None
    """The same for FlashAttention-1."""
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
    """Query rows (queries times heads of a KV head) of one block at most, padded to 16."""
    key_latency: Seconds | None = None
    """Of one key (key and value of 128 elements each) in a block, where its products are faster."""
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
    split_parts: Number | None = None
    """Most parts of one sequence."""
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
    key_latency: Seconds | None = None
    """Of one key in a block, for each 256 elements of the latent as key and value, where its products are faster."""
    split_parts: Number | None = None
    """Most parts of one sequence (4 in vLLM's Triton kernel)."""
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
    chained_latency: Seconds | None = None
    """The same of a kernel right before the product that needs its result."""
    scalar_rate: Number | None = None
    """Loads and stores a second of one unit in kernels that move one element a thread instead of 16 bytes at a time."""


class CollectiveConstants(Spec):
    """Collectives and point-to-point messages of the communication library (NCCL), by α-β with its protocols."""

    bandwidth_efficiency: Number | None = None
    """Sustained share of the link bandwidth for large messages inside a node."""
    network_efficiency: Number | None = None
    """The same between nodes."""
    in_switch_efficiency: Number | None = None
    """The same where the switch reduces."""
    exchange_efficiency: Number | None = None
    """The same for all-to-all and point-to-point messages inside a node: copies without a ring."""
    staging_exponent: Exponent | None = None
    """Bandwidth inside a node falls with (2/ranks) to this power: 0 over a switch, more through host memory."""
    base_latency: Seconds | None = None
    """Of any collective: launch and synchronisation."""
    hop_latency: Seconds | None = None
    """Of software in each hop (copy, flag), on top of the link's."""
    flag_bandwidth: Number | None = None
    """Bytes a second of a rank with the protocol for the smallest messages, a flag beside each word (NCCL's LL)."""
    line_latency: Seconds | None = None
    """Further latency of the protocol that flags whole cache lines (NCCL's LL128)."""
    low_latency_share: Number | None = None
    """Share of the sustained bandwidth of that protocol."""
    handshake: Seconds | None = None
    """Further latency of the protocol of full bandwidth (NCCL's Simple)."""
    switch_handshake: Seconds | None = None
    """The same where the switch reduces: its multicast buffers are filled and drained by all ranks together."""
    exchange_handshake: Seconds | None = None
    """The same for all-to-all and point-to-point messages."""
    bulk_bytes: Number | None = None
    """Bytes a rank sends, over the square root of the ranks, from which the library takes the protocol of full bandwidth."""
    network_bulk_bytes: Number | None = None
    """The same between nodes: bytes a rank sends over the outermost network."""
    chunk_latency: Seconds | None = None
    """Of one more chunk in the pipeline: the best count of chunks costs the geometric mean of it and the transfer."""
    ring_edge: Number | None = None
    """Steps of a ring that its first send and last receive are worth, and messages that a rank's copy to itself is worth."""
    network_spread: Number | None = None
    """Further relative standard error of a collective that leaves the node: fabrics are tuned differently."""
    occupancy: Share | None = None
    """Share of the units that a collective's kernels take from a product that runs beside it."""
    crowding: Share | None = None
    """Share of the time of a collective of gradients or parameters by which it slows the passes it runs beside: products whose
    blocks stay for the whole product wait where all of their units are not free."""


class CustomCollectiveConstants(Spec):
    """All-reduce kernels of serving engines that load from or store to their peers' memory."""

    pull_efficiency: Number | None = None
    push_efficiency: Number | None = None
    """Sustained share of the link bandwidth of kernels that load from their peers and of those that store to them."""
    pull_latency: Seconds | None = None
    """One-shot kernel that reads from all peers between two barriers (vLLM's and SGLang's)."""
    push_latency: Seconds | None = None
    """One-shot kernel that writes flagged data to all peers (TensorRT-LLM's; later SGLang's)."""
    peer_latency: Seconds | None = None
    """Of each peer beyond the first."""
    pull_second: Seconds | None = None
    push_second: Seconds | None = None
    """Further latency of the two-shot kernels: one more meeting of the peers."""
    eager_latency: Seconds | None = None
    """Host time of a call outside a captured graph: dispatch and launch."""
    limit_bytes: Number | None = None
    """Bytes above which the communication library takes over."""


class ExpertExchangeConstants(Spec):
    """Dispatch and combine kernels of expert parallelism (DeepEP) inside a node."""

    dispatch_latency: Seconds | None = None
    combine_latency: Seconds | None = None
    """Of the kernels with the layout and counters exchanged beforehand."""
    dispatch_unit_bandwidth: Number | None = None
    combine_unit_bandwidth: Number | None = None
    """Bytes that one streaming multiprocessor given to the kernel moves in a second."""
    efficiency: Number | None = None
    """Sustained share of the link bandwidth."""
    low_latency_dispatch: Seconds | None = None
    low_latency_combine: Seconds | None = None
    """Of the low-latency kernels."""
    expert_latency: Seconds | None = None
    """Of theirs for each expert: its counter is sent and polled."""
    dispatch_token_latency: Seconds | None = None
    combine_token_latency: Seconds | None = None
    """Of one token in a block of theirs: casting it, sending it to its experts, or adding what they return."""
    low_latency_spread: Number | None = None
    """Their relative standard error over the class's: they scatter less than the normal kernels."""
    low_latency_efficiency: Number | None = None
    """Sustained share of the link bandwidth of the low-latency kernels."""


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
    iteration: Seconds | None = None
    """Serving iteration of an engine that hides nothing: scheduling, preparing, sampling, processing of outputs."""
    per_sequence: Seconds | None = None
    """The same for each sequence of the batch."""
    workers: Seconds | None = None
    """The same for handing the iteration to several worker processes and waiting for them."""
    prompt_token: Seconds | None = None
    """Front end of a server: time for each token of a prompt from the client's text to the scheduler (tokenising, copies between
    processes, broadcast to ranks), beside ``frontend_latency``."""
    context_bytes: Number | None = None
    """Device memory taken by driver context, communication library and workspaces, bytes."""
    sustained_clock: Fraction | None = None
    """Clock of the matrix units after minutes of load (power and heat), over that of a benchmark of some milliseconds."""


class TrainingConstants(Spec):
    """What a training step has beyond its kernels."""

    eager_operator: Seconds | None = None
    """CPU time to issue one operator of an eager step: Python, autograd, and the launches behind it."""
    engine_operator: Seconds | None = None
    """The same with Transformer Engine's modules, which check, cast and look up more for each."""
    sustained_clock: Fraction | None = None
    """Highest clock of the matrix units through hours of training over that of a benchmark of some milliseconds, where power does
    not limit it further."""
    flop_energy: Exponent | None = None
    """What a FLOP of 16-bit products draws through hours of training, its operands' way included, beyond the idle power [J]: the
    board's power limit over it is the rate that holds. 0 where the clock is not the power limit's."""
    energy_exponent: Exponent | None = None
    """Energy of a FLOP goes with the format's bits to this power: 1 where moving operands takes it all, 2 where multipliers do,
    whose area is the square of their width."""
    eager_error: Share | None = None
    """Its relative standard error over CPUs and versions of the software."""


class HostKernelConstants(Spec):
    """What one family of CPU kernels reaches in products whose weights stream from DRAM."""

    memory_efficiency: Number
    """Share of what streaming reads sustain at which weights are read and unpacked, few rows at a time."""
    vector_efficiency: Number
    """Share of the vector units' fp32 peak with many rows, whatever the weights are stored in."""
    matrix_efficiency: Number | None = None
    """Share of the matrix units' bf16 peak; absent where these kernels have no use of them."""
    vector_rows: Number = 4.0
    """Rows up to which the vector units' kernel is taken."""
    socket_scaling: Fraction = 1.0
    """Share of its arithmetic rate that each socket beyond the first adds: tasks are stolen across sockets, activations cross."""
    exposed: Exponent = 1.0
    """Share of the shorter of weight stream and arithmetic that adds to the longer: 1 where a core does one after the other."""
    operator_latency: Seconds
    """Of a parallel region: all threads start, the last one ends."""
    call_latency: Seconds
    """Of a call from the accelerator's stream: callback, inputs converted, results handed over."""
    source: str
    """Rows that the constants were fitted on, or who measured them."""


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
    grouped_matmul: GroupedConstants = GroupedConstants()
    attention: AttentionConstants = AttentionConstants()
    decode_attention: DecodeConstants = DecodeConstants()
    latent_attention: LatentConstants = LatentConstants()
    elementwise: StreamConstants = StreamConstants()
    collective: CollectiveConstants = CollectiveConstants()
    custom_collective: CustomCollectiveConstants = CustomCollectiveConstants()
    expert_exchange: ExpertExchangeConstants = ExpertExchangeConstants()
    transfer: TransferConstants = TransferConstants()
    host: HostConstants = HostConstants()
    training: TrainingConstants = TrainingConstants()
    host_kernels: dict[str, HostKernelConstants] = Field(default_factory=dict)
    """Of a CPU: families of kernels by name."""
    error: dict[OperatorClass, Fraction] = Field(default_factory=dict)
    """Relative standard error of a single kernel's predicted time, by operator class."""
    fits: dict[OperatorClass, FitRecord] = Field(default_factory=dict)
    """Provenance of fitted constants, by operator class."""


def merge_calibration(layers: Sequence[Calibration]) -> Calibration:
    """Lay special constants over general ones, key by key; the name and sources of all layers are kept."""
    merged = layers[0]
    for layer in layers[1:]:
        update: dict[str, object] = {
            "host_kernels": {**merged.host_kernels, **layer.host_kernels},
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
