"""What each optimizer keeps of some weights, and what a rank does to update them.

States are bytes without the master copy; updates are kernels and products. Both take numbers or arrays.

References
----------
Kingma & Ba 2015 (Adam); Dettmers et al. 2022, *8-bit Optimizers via Block-wise Quantization*; Shazeer & Stern 2018,
*Adafactor*; Jordan et al. 2024, *Muon*; Liu et al. 2025, *Muon is Scalable for LLM Training* (arXiv:2502.16982); Zhao et
al. 2024, *GaLore*.
"""

from __future__ import annotations

from dataclasses import dataclass

from simulator.cost import adam_bytes
from simulator.cost.numeric import larger, smaller
from simulator.graph import FORMAT_BYTES, Elementwise, Matmul, Numeric
from simulator.graph.quantise import COPIES, RECIPES
from simulator.graph.work import Work
from simulator.specs import TrainingStrategy
from simulator.training.weights import Weights

NARROW = ("fp8", "fp4")
"""Formats of parameters with scales."""
MASTER_BYTES = 4.0
"""fp32 copy of a narrower parameter that the optimizer updates (Micikevicius et al. 2018, section 3.1)."""
BLOCK = 2048
"""Elements of an 8-bit moment that share an fp32 scale (Dettmers et al. 2022, section 2.1)."""
SMALLEST_QUANTIZED = 4096
"""Elements below which a tensor's moments stay in 32 bits (bitsandbytes' ``min_8bit_size``)."""
NEWTON_SCHULZ_STEPS = 5
"""Of Muon's orthogonalisation (Jordan et al. 2024)."""
SUBSPACE_INTERVAL = 200
"""Steps between two singular value decompositions of GaLore (Zhao et al. 2024, section 5)."""


@dataclass(frozen=True, slots=True)
class Widths:
    """Bytes an element of what an optimizer touches, and GaLore's rank."""

    weight: float
    """Of matrices."""
    other: float
    """Of vectors and tables, which are never below 16 bits."""
    gradient: float
    moment: float
    master: float
    """0 where the weights themselves are updated."""
    rank: int | None = None
    narrow: bool = False
    """Whether matrices are kept below 16 bits, with scales."""

    @classmethod
    def of(cls, strategy: TrainingStrategy) -> Widths:
        """Read a strategy's formats: parameters are in 16 bits below fp32 unless it says otherwise."""
        stored = strategy.parameter_precision
        full = strategy.precision in ("fp32", "tf32")
        other = max(2.0, FORMAT_BYTES[stored]) if stored else 4.0 if full else 2.0
        weight = other
        if stored in NARROW:
            weight = COPIES * RECIPES["nvfp4" if stored == "fp4" else strategy.fp8_recipe].weight
        master = MASTER_BYTES if strategy.master_weights and other < MASTER_BYTES else 0.0
        return cls(
            weight, other, FORMAT_BYTES[strategy.gradient_precision], FORMAT_BYTES[strategy.moment_precision], master,
            strategy.optimizer_rank, stored in NARROW,
        )  # fmt: skip

    def stored(self, weights: Weights) -> float:
        """Bytes of one parameter of some weights."""
        return self.weight if weights.role == "matrix" else self.other

    def written(self, weights: Weights) -> tuple[float, float]:
        """Bytes of what an update reads and writes (the master copy, or the parameter) and of the copy that it writes.

        Parameters below 16 bits are cast from the master copy by kernels that belong to the layer.
        """
        if not self.master:
            return self.stored(weights), 0.0
        cast = self.narrow and weights.role == "matrix"
        return self.master, 0.0 if cast else self.stored(weights)


@dataclass(frozen=True, slots=True)
class Portion:
    """Of some weights, what one rank updates."""

    elements: Numeric
    """Trained elements that it writes."""
    tensors: Numeric
    """Whole tensors that it works on, those that it shares with others among them."""


def adam_state(weights: Weights, widths: Widths, shards: Numeric) -> Numeric:
    """Two moments."""
    return weights.updated * 2.0 * widths.moment / shards


def adam_update(weights: Weights, widths: Widths, portion: Portion) -> tuple[Work, ...]:
    """Gradients and moments are read, moments and parameters written."""
    return (_moments_update(weights, widths, portion.elements, widths.moment, 18.0),)


def _moments_update(
    weights: Weights, widths: Widths, elements: Numeric, moment: Numeric, flops: float
) -> Elementwise:
    """A kernel that reads gradients and two moments of ``moment`` bytes and writes moments and parameters."""
    kept, copy = widths.written(weights)
    read, written = adam_bytes(
        elements, gradient_bytes=widths.gradient, weight_bytes=copy if widths.master else kept, state_bytes=0.0,
        master_bytes=widths.master,
    )  # fmt: skip
    moments = 2.0 * moment * elements
    return Elementwise(read + moments, written + moments, flops * elements)


def _quantized_width(weights: Weights) -> Numeric:
    """Bytes of one 8-bit moment; tables of words and short tensors stay in 32 bits (section 2.3: stable embedding)."""
    if weights.role == "embedding":
        return 4.0
    long = weights.rows * weights.columns >= SMALLEST_QUANTIZED
    return 4.0 - long * (3.0 - 4.0 / BLOCK)


def adam_8bit_state(weights: Weights, widths: Widths, shards: Numeric) -> Numeric:
    """Two moments of a byte, with a scale for every block."""
    return weights.updated * 2.0 * _quantized_width(weights) / shards


def adam_8bit_update(weights: Weights, widths: Widths, portion: Portion) -> tuple[Work, ...]:
    """As Adam, with moments scaled back before and scaled and rounded after."""
    # 18 as for Adam; each moment is scaled back, its block's largest value found, and scaled and rounded again
    return (_moments_update(weights, widths, portion.elements, _quantized_width(weights), 30.0),)


def sgd_state(weights: Weights, widths: Widths, shards: Numeric) -> Numeric:
    """Momentum."""
    return weights.updated * widths.moment / shards


def sgd_update(weights: Weights, widths: Widths, portion: Portion) -> tuple[Work, ...]:
    """As Adam, with momentum alone."""
    return (_moments_update(weights, widths, portion.elements, widths.moment / 2.0, 6.0),)


def adafactor_state(weights: Weights, widths: Widths, shards: Numeric) -> Numeric:
    """Second moments as the outer product of a row and a column (section 3), vectors' in full, no first moment.

    A shard holds rows: their factor is cut with them, that of the columns is every rank's.
    """
    if weights.role == "vector":
        return weights.updated * widths.moment / shards
    factors = weights.rows / shards + weights.columns
    return weights.count * weights.trained * factors * widths.moment


def adafactor_update(weights: Weights, widths: Widths, portion: Portion) -> tuple[Work, ...]:
    """Gradients are read for their statistics, for the size of the update and for the update itself (algorithm 4).

    The parameters are read once more for the relative step size (section 8).
    """
    kept, copy = widths.written(weights)
    moment = widths.moment if weights.role == "vector" else 0.0
    read = 3.0 * widths.gradient + 2.0 * kept + moment
    written = kept + copy + moment
    return (Elementwise(portion.elements * read, portion.elements * written, 14.0 * portion.elements),)


def muon_state(weights: Weights, widths: Widths, shards: Numeric) -> Numeric:
    """Momentum of matrices; Adam's moments of the others."""
    moments = 1.0 if weights.role == "matrix" else 2.0
    return weights.updated * moments * widths.moment / shards


def muon_update(weights: Weights, widths: Widths, portion: Portion) -> tuple[Work, ...]:
    """Momentum of a matrix, orthogonalised: X <- aX + (bA + cA²)X with A = XXᵀ, five times in bf16.

    Embeddings, head, norms and biases are Adam's (Jordan et al. 2024; Liu et al. 2025, section 2.2). Equal matrices are
    one batch. The sums are part of the products, which read what they add to.
    """
    if weights.role != "matrix":
        return adam_update(weights, widths, portion)
    short, long = _oriented(*weights.shape)
    elements, tensors = portion.elements, portion.tensors
    kept, copy = widths.written(weights)
    # momentum; its norm and scaled copy; the update of the parameters
    read = elements * (widths.gradient + widths.moment + kept + 2.0)
    written = elements * (widths.moment + 2.0 + kept + copy)
    whole = tensors * short * long
    added = NEWTON_SCHULZ_STEPS * tensors * (short * short + short * long)
    streams = Elementwise(
        read + 2.0 * (2.0 * whole + added), written + 2.0 * whole, 8.0 * elements + 3.0 * whole
    )
    count = NEWTON_SCHULZ_STEPS * tensors
    return (
        streams,
        Matmul(short, short, long, count),
        Matmul(short, short, short, count),
        Matmul(short, long, short, count),
    )


def _galore_rank(weights: Weights, widths: Widths) -> Numeric:
    short, _ = _oriented(weights.rows, weights.columns)
    wanted = larger(short / 4, 1) if widths.rank is None else widths.rank
    rank: Numeric = smaller(wanted, short)
    return rank


def galore_state(weights: Weights, widths: Widths, shards: Numeric) -> Numeric:
    """Two moments of r x n and the projection of m x r in the gradient's format (Zhao et al. 2024, table 1)."""
    if weights.role != "matrix":
        return adam_state(weights, widths, shards)
    short, long = _oriented(weights.rows, weights.columns)
    rank = _galore_rank(weights, widths)
    each = rank * (2.0 * long * widths.moment + short * widths.gradient)
    return weights.count * weights.trained * each / shards


def galore_update(weights: Weights, widths: Widths, portion: Portion) -> tuple[Work, ...]:
    """R = PᵀG, Adam on R, W -= P R' (algorithm 2), and every 200 steps the singular vectors of G anew.

    Of the decomposition, arithmetic is 6nm² + 20m³ (Golub & Van Loan 2013, figure 8.6.1), and half of the reduction to two
    diagonals is products of matrix and vector, which read what is left of the matrix twice a column: 8/3 m³ bytes.
    """
    if weights.role != "matrix":
        return adam_update(weights, widths, portion)
    short, long = _oriented(weights.rows, weights.columns)
    rank, tensors = _galore_rank(weights, widths), portion.tensors
    format, width = ("fp32", 4.0) if widths.gradient == 4.0 else ("bf16", 2.0)
    projected = tensors * rank * long
    kept, copy = widths.written(weights)
    moments = 2.0 * widths.moment
    now = tensors / SUBSPACE_INTERVAL
    read = projected * (moments + width) + portion.elements * (width + kept) + now * 8.0 / 3.0 * short**3
    written = projected * (moments + width) + portion.elements * (kept + copy)
    arithmetic = 18.0 * projected + 2.0 * portion.elements + now * (6.0 * long * short**2 + 20.0 * short**3)
    return (
        Elementwise(read, written, arithmetic),
        Matmul(rank, long, short, tensors, format, width, width, width),
        Matmul(short, long, rank, tensors, format, width, width, width),
    )


def _oriented(rows: Numeric, columns: Numeric) -> tuple[Numeric, Numeric]:
    """The shorter and the longer side."""
    return smaller(rows, columns), larger(rows, columns)
