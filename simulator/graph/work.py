"""What an operator asks of the hardware: matrix products, attention, streams of bytes, gathers and collectives.

Every dimension may be a number or a numpy array; arrays broadcast, so that one description covers a whole sweep.
FLOPs count a multiply-add as two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Numeric = float | int | npt.NDArray[np.float64] | npt.NDArray[Any]
ProductKernel = Literal["vendor", "engine"]
AttentionKernel = Literal["latest", "flash-2", "flash-1"]
CollectiveKind = Literal["all-reduce", "all-gather", "reduce-scatter", "all-to-all", "send", "ring"]
Axis = Literal["tensor", "context", "expert", "expert-tensor", "expert-data", "data", "replica", "pipeline"]
Part = Literal["forward", "input-gradient", "weight-gradient"]


@dataclass(frozen=True, slots=True)
class Matmul:
    """``count`` independent products of (m, k) by (k, n)."""

    m: Numeric
    n: Numeric
    k: Numeric
    count: Numeric = 1
    format: str = "bf16"
    """Number format of the product; its peak is the device's for this format."""
    left_bytes: float = 2.0
    """Bytes an element of the (m, k) operand."""
    right_bytes: float = 2.0
    """Bytes an element of the (k, n) operand: the weights, where there are any."""
    out_bytes: float = 2.0
    grouped: bool = False
    """One kernel over experts (MoE) instead of a strided batch: m is the mean over the active ones."""
    scaled: float = 0.0
    """Above 0 where every block of k (128 elements) has a scale: another kernel, without split-K. Its loop takes this many
    step latencies and promotions of the partial sum a block: 1 where they are pipelined, more where not."""
    kernel: ProductKernel = "vendor"
    """Who wrote the kernel of an 8-bit product: the vendor's library, or a serving engine."""
    split_k: bool = True
    """Whether the library may cut k between units."""
    tile: tuple[Numeric, Numeric] | None = None
    """Rows and columns of the output tile where the library takes it by a rule, and then does not cut k between units; the
    fastest tile and split if absent."""
    loop: Numeric | None = None
    """Elements of k that a step of a grouped kernel's loop handles; 128 bytes of the left operand if absent."""
    spread: Numeric = 0.0
    """Of a grouped product: relative standard deviation of the rows of its experts."""
    skew: float = 0.0
    """Of a grouped product: exponent of the power law that the rows of its experts follow, 0 for none."""
    reach: Numeric = 1.0
    """Largest over smallest of those rows, as far as the law goes."""
    sharing: Numeric = 1.0
    """Of a grouped product: rows of the left operand that are the same one in memory, copies of a token."""
    reuse_distance: Numeric = np.inf
    """Bytes that pass the device's cache between two uses of the operands. A step of a model touches all of its weights
    before it needs the same again: infinite. A benchmark that repeats one product finds small operands in the cache."""

    @property
    def flops(self) -> Numeric:
        """2·m·n·k for each product [FLOP]."""
        return 2.0 * self.m * self.n * self.k * self.count

    @property
    def bytes(self) -> Numeric:
        """Each operand once [B]."""
        read = self.m * self.k * self.left_bytes + self.k * self.n * self.right_bytes
        return self.count * (read + self.m * self.n * self.out_bytes)


@dataclass(frozen=True, slots=True)
class Attention:
    """Fused attention: softmax(QKᵀ)V without the scores in memory (FlashAttention, FlashDecoding).

    ``queries`` are the last of ``keys`` positions where it is causal, or this rank's share of those.
    """

    batch: Numeric
    heads: Numeric
    kv_heads: Numeric
    queries: Numeric
    keys: Numeric
    """Positions attended to, those of the queries among them."""
    qk_dim: Numeric
    v_dim: Numeric
    kv_width: Numeric
    """Elements of the cache that one position holds on this rank (keys and values of all its KV heads)."""
    causal: bool = True
    window: Numeric = np.inf
    """Positions that a query sees at most."""
    decode: bool = False
    """One query a sequence over a long cache: a stream of the cache, not a matrix product."""
    backward: bool = False
    format: str = "bf16"
    kv_bytes: float = 2.0
    activation_bytes: float = 2.0
    stores: bool = False
    """Whether a kernel before it writes the new positions' keys and values into a cache (inference)."""
    ranks: Numeric = 1
    """Ranks that share the queries of all positions (context parallelism): each has an early slice and its mirror image, so
    that causal work is equal on all."""
    passes: Numeric = 1
    """Kernels one after the other that see 1/passes of the keys each (ring attention)."""
    kernel: AttentionKernel = "latest"
    """Generation of fused kernels outside decode."""

    @property
    def latent(self) -> bool:
        """Whether keys are longer than values: multi-head latent attention, with kernels of its own."""
        different = self.qk_dim != self.v_dim
        return different if isinstance(different, bool) else bool(np.any(different))

    @property
    def pairs(self) -> Numeric:
        """Query-key pairs of one head and sequence.

        Causal queries ``i = 1..q`` at the end of ``n`` keys see ``min(n - q + i, window)`` of them; ranks that share them
        have equal parts (Brandon et al. 2023, *Striped Attention*; Llama 3, arXiv:2407.21783, section 3.3.2).
        """
        if not self.causal:
            seen: Numeric = np.minimum(self.keys, self.window)
            return self.queries * seen
        queries = self.queries * self.ranks
        first = self.keys - queries + 1.0
        # the sum of an arithmetic series that is cut off at the window
        last: Numeric = np.minimum(self.keys, self.window)
        start: Numeric = np.minimum(first, self.window)
        rising = last - start + 1.0
        return (rising * (start + last) / 2.0 + (queries - rising) * last) / self.ranks

    @property
    def flops(self) -> Numeric:
        """QKᵀ and PV; the backward pass has five products for the forward's two (Dao 2023, section 3.1) [FLOP]."""
        forward = 2.0 * self.batch * self.heads * self.pairs * (self.qk_dim + self.v_dim)
        return forward * 2.5 if self.backward else forward

    @property
    def cache_bytes(self) -> Numeric:
        """Keys and values that are read [B]."""
        span: Numeric = np.minimum(self.keys, self.window + self.queries - 1.0)
        return self.batch * span * self.kv_width * self.kv_bytes

    @property
    def bytes(self) -> Numeric:
        """Queries and outputs (twice in the backward pass, with their gradients), the cache and what is stored [B]."""
        forward = self.attended_bytes + self.stored_bytes
        return 2.5 * forward if self.backward else forward

    @property
    def attended_bytes(self) -> Numeric:
        """Queries and outputs in every pass, and the cache, forward [B]."""
        rows = self.batch * self.heads * self.queries * (self.qk_dim + self.v_dim) * self.activation_bytes
        return rows * self.passes + self.cache_bytes

    @property
    def stored_bytes(self) -> Numeric:
        """Keys and values of the new positions, read and written into the cache [B]."""
        if not self.stores:
            return 0.0
        return self.batch * self.queries * self.kv_width * (self.activation_bytes + self.kv_bytes)


@dataclass(frozen=True, slots=True)
class Elementwise:
    """A kernel that streams bytes: norm, activation, rotary, residual, softmax, quantise, optimizer."""

    read: Numeric
    written: Numeric
    flops: Numeric = 0.0
    format: str = "fp32"
    kernels: Numeric = 1
    scalar: Numeric = 0.0
    """Loads and stores of one element a thread, in kernels that do not move 16 bytes at a time; 0 in those that do."""
    rows: Numeric = np.inf
    """Rows that are a block each in such kernels: fewer than the device has units leave some idle."""
    reuse_distance: Numeric | None = None
    """Bytes that pass the device's cache between the write of the operands and this kernel; its own bytes if absent, since
    the kernel before has just written them."""
    chained: bool = False
    """Right before the kernel that needs its result: its launch overlaps with that one's."""

    @property
    def bytes(self) -> Numeric:
        """Read and written [B]."""
        return self.read + self.written


@dataclass(frozen=True, slots=True)
class Gather:
    """Rows looked up in a table and written densely."""

    rows: Numeric
    row_bytes: Numeric

    @property
    def flops(self) -> Numeric:
        """None."""
        return 0.0 * self.rows

    @property
    def bytes(self) -> Numeric:
        """Each row read and written [B]."""
        return 2.0 * self.rows * self.row_bytes


@dataclass(frozen=True, slots=True)
class Route:
    """What a layer of experts does beside its products: token copies counted and sorted by expert, kernels launched."""

    copies: Numeric
    """Of tokens: tokens times experts a token."""
    summed: Numeric = 0.0
    """Elements that a generic reduction adds up where outputs return to their tokens; 0 where a kernel made for it does."""

    @property
    def flops(self) -> Numeric:
        """None that count."""
        return 0.0 * self.copies

    @property
    def bytes(self) -> Numeric:
        """An expert and a place for each copy, and what is summed in 16 bits [B]."""
        return 8.0 * self.copies + 2.0 * self.summed


@dataclass(frozen=True, slots=True)
class Collective:
    """Communication within the group of an axis.

    ``size`` is the whole tensor's bytes: what is reduced (all-reduce, reduce-scatter), what is there afterwards
    (all-gather), what one rank holds before it sends shares to all (all-to-all), the message (send), or what every rank
    passes on to its neighbour in each of P - 1 steps (ring).
    """

    kind: CollectiveKind
    axis: Axis
    size: Numeric
    hidden_by: Literal["", Part] = ""
    """The part of the same operator's work that runs meanwhile: another one as a whole; its own piece by piece, a piece for
    each rank of the group, where the last has nothing beside it."""
    chunked: bool = False
    """Whether it can be cut in chunks that follow those of the product of its own part (Transformer Engine's user buffers;
    Chang et al. 2024, *FLUX*); whether it is, the strategy says."""
    copies: float = 1.0
    """Of an all-to-all: copies of each row in ``size``, which go to experts of their own."""
    nodes: float | None = None
    """Nodes that copies of one row go to at most: a row crosses the network once for each and is passed on inside
    (DeepSeek-V3, section 3.2.2). If absent each copy goes straight to its rank."""
    kernel: Literal["library", "pull", "push"] = "library"
    """Of an all-reduce: the communication library's, or a serving engine's own (see :mod:`simulator.cost.custom_all_reduce`)."""

    @property
    def flops(self) -> Numeric:
        """None that count."""
        return 0.0 * self.size

    @property
    def bytes(self) -> Numeric:
        """The tensor [B]."""
        return self.size


Work = Matmul | Attention | Elementwise | Gather | Route | Collective
