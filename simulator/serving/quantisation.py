"""Quantised serving: bytes with scales, formats of products, and what un-scaling takes from them.

A *scheme* stores weights in groups along the inner dimension, with a scale (and an offset, or a second scale) each. Where
activations are quantised too, products run in the narrow format, and where groups have scales, partial sums are scaled once a
group on the vector units. Where only weights are narrow, vector units widen each of them for each tile of rows. Both run
beside the stream of weights: what that stream does not hide adds to the product.

References: Xiao et al. 2023, arXiv:2211.10438 (SmoothQuant, W8A8); Lin et al. 2024, arXiv:2306.00978 (AWQ); Kim et al. 2022,
arXiv:2211.10017 (widening by logic instructions); Zhang et al. 2024, arXiv:2311.01792 (AFPQ); Zhao et al. 2024, arXiv:2310.19102
(Atom); Rouhani et al. 2023, arXiv:2310.10537 (MX formats); NVIDIA 2025, arXiv:2509.25149 (NVFP4).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from simulator.cost import CostModel, peak_flops
from simulator.graph import FORMAT_BYTES, Elementwise, Matmul, Numerics, Shape, Work, build
from simulator.specs import Model

WIDEN_FLOPS = 3.0
"""Of one 4-bit weight: a logic instruction and two fused multiply-adds for a pair (Kim et al. 2022, section 3), each worth 2."""
WIDEN_BYTE_FLOPS = 2.0
"""Of one 8-bit weight: a byte permutation and a multiply-add for a pair."""
RESCALE_FLOPS = 4.0
"""Of a partial sum of a group: conversion from integer and a multiply-add (Zhao et al. 2024, section 4.2)."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """How linear layers are quantised."""

    weights: str
    """Format that weights are stored in."""
    compute: str | None
    """Format of products; that of activations as they are if None."""
    group: int = 0
    """Weights of an input direction that share scales; 0: a whole column, whose scales count as nothing."""
    group_bits: float = 0.0
    """Bits stored with a group."""
    activation_bits: float = 0.0
    """Bits of scales with a group of activations."""
    rescaled: bool = False
    """Whether the product's loop scales partial sums on vector units; matrix units that know the scales do it themselves."""
    outliers: int = 0
    """Input channels of each layer that stay in 8 bits (Zhao et al. 2024, section 4.1)."""
    kv: str | None = None
    """Format of the cache; 16 bits if None."""
    kv_group: int | None = None

    @property
    def weight_bytes(self) -> float:
        """Of a weight with its share of scales, outliers apart [B]."""
        return FORMAT_BYTES[self.weights] + (self.group_bits / self.group / 8.0 if self.group else 0.0)

    @property
    def activation_bytes(self) -> float:
        """Of an element of a quantised operand with its share of scales [B]."""
        scales = self.activation_bits / self.group / 8.0 if self.group else 0.0
        return FORMAT_BYTES[self.compute or "bf16"] + scales


SCHEMES: Mapping[str, Scheme] = {
    "w8a8": Scheme("int8", "int8"),
    # a 16-bit scale and a 4-bit zero point
    "w4a16": Scheme("int4", None, 128, 20.0),
    # two 16-bit scales, of positive and of negative values: as many bits as a scale and an offset of 16 bits
    "afpq": Scheme("fp4", None, 128, 32.0),
    "atom": Scheme("int4", "int4", 128, 16.0, 16.0, True, 128, "int4", 128),
    "fp8": Scheme("fp8", "fp8"),
    "mxfp4": Scheme("fp4", "fp4", 32, 8.0, 8.0),
    "mxfp4-a16": Scheme("fp4", None, 32, 8.0),
    "nvfp4": Scheme("fp4", "fp4", 16, 8.0, 8.0),
}
"""Schemes by name."""


PAIRED_ROWS = 256
"""Rows up to which NVFP4 products take tiles of two units."""


def cache_bytes(bits: float, group: int | None) -> float:
    """Bytes of a cached element of some bits, with a scale and an offset of 16 bits for each group (KIVI, XQuant) [B]."""
    return bits / 8.0 + (4.0 / group if group else 0.0)


def quantised(numerics: Numerics, scheme: Scheme, model: Model, *, kv: bool = True) -> Numerics:
    """Return the formats of a model under a scheme; ``kv`` says whether the scheme decides on the cache too."""
    stored = scheme.weight_bytes
    if scheme.outliers:
        graph = build(model, Shape(1, 1, 0, "prefill"))
        rows = sum(
            float(m.outputs * m.count * min(scheme.outliers, float(m.inputs))) * count
            for block, count in zip(graph.blocks, graph.counts, strict=True)
            for operator in block.operators
            for m in operator.matrices
        )
        weights = sum(float(b.parameters) * n for b, n in zip(graph.blocks, graph.counts, strict=True))
        stored += (FORMAT_BYTES["int8"] - FORMAT_BYTES[scheme.weights]) * rows / weights
    cached = numerics.kv_bytes
    if kv and scheme.kv:
        cached = cache_bytes(8.0 * FORMAT_BYTES[scheme.kv], scheme.kv_group)
    return replace(numerics, compute=scheme.compute or numerics.compute, weight_bytes=stored, kv_bytes=cached)


def products(work: Matmul, scheme: Scheme, cost: CostModel) -> tuple[Work, ...]:
    """Return the kernels of one product under a scheme: the product, and un-scaling as far as nothing hides it.

    Parameters
    ----------
    work : Matmul
        A linear layer; m may be an array of token counts.
    scheme : Scheme
    cost : CostModel
        Of the device, which says how long the product takes without.
    """
    if scheme.compute:
        work = replace(work, left_bytes=scheme.activation_bytes, format=scheme.compute)
    if scheme.outliers:
        # one kernel: outlier channels take the matrix units as long as that many more narrow ones
        outliers = np.minimum(scheme.outliers, work.k)
        slower = peak_flops(cost.device, scheme.weights) / peak_flops(cost.device, "int8")
        wider = 1.0 + outliers / work.k * (FORMAT_BYTES["int8"] / FORMAT_BYTES[scheme.weights] - 1.0)
        longer = work.k + outliers * (slower - 1.0)
        right, left = (
            (bytes_ * wider * work.k / longer) for bytes_ in (scheme.weight_bytes, work.left_bytes)
        )
        work = replace(work, k=longer, right_bytes=float(right), left_bytes=float(left))
    flops = unscaling_flops(work, scheme, float(cost.kernels.constants["matmul"]["tile_m"]))
    if not np.any(flops):
        return (work,)
    rate = peak_flops(cost.device, "fp32", False)
    product = cost.price(work)
    longest: Any = np.maximum(product.compute, product.memory)
    exposed = np.maximum(product.compute + flops / rate - longest, 0.0)
    return work, Elementwise(0.0 * exposed, 0.0, exposed * rate, kernels=0)


def paired_tile(rows: Any) -> tuple[Any, Any]:
    """Return rows and columns of a unit's tile in NVFP4 products of data-centre Blackwell, which do not cut k.

    Up to 256 rows two units share a tile of 256 rows and 128 columns, however few the rows are, each with the weights of 64
    columns; beyond, each has a tile of its own (vllm-project/vllm, csrc/quantization/fp4/nvfp4_scaled_mm_kernels.cu). In
    aiconfigurator's nvfp4 rows for B200 times rise in steps of 74 such tiles.
    """
    few = np.asarray(rows) <= PAIRED_ROWS
    return np.where(few, 256.0, 128.0), np.where(few, 64.0, 128.0)


def unscaling_flops(work: Matmul, scheme: Scheme, tile: float) -> Any:
    """Vector FLOPs that a product's kernel spends on scales.

    Notes
    -----
    Weight-only: k·n weights are widened for each of ceil(m / tile) tiles of rows. Scaled partial sums: m·n of them for each
    of k / group groups.
    """
    if scheme.compute is None:
        each = WIDEN_BYTE_FLOPS if FORMAT_BYTES[scheme.weights] == 1.0 else WIDEN_FLOPS
        return each * work.k * work.n * work.count * np.ceil(np.asarray(work.m, float) / tile)
    if scheme.rescaled:
        return RESCALE_FLOPS * work.m * work.n * work.count * (work.k / scheme.group)
    return 0.0
