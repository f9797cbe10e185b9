"""Optimizers: the bytes of their states and the work of one update.

Each is a row of :data:`OPTIMIZERS`: bytes that it keeps for some weights beside the master copy, what a rank does to
update them, and whether it looks at shapes. States and work of sharded optimizers are a rank's share.

References
----------
Kingma & Ba 2015 (Adam); Dettmers et al. 2022, *8-bit Optimizers via Block-wise Quantization*; Shazeer & Stern 2018,
*Adafactor*; Jordan et al. 2024, *Muon*; Liu et al. 2025, *Muon is Scalable for LLM Training* (arXiv:2502.16982); Zhao et
al. 2024, *GaLore*; Lv et al. 2023, *LOMO* (updates layer by layer).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from simulator.cost import adam_bytes
from simulator.cost.numeric import larger, smaller
from simulator.graph import FORMAT_BYTES, Elementwise, Matmul, Numeric
from simulator.graph.work import Work
from simulator.specs import TrainingScenario, TrainingStrategy
from simulator.training.weights import Weights

MASTER_BYTES = 4.0
"""fp32 copy of a narrower parameter that the optimizer updates (Micikevicius et al. 2018, section 3.1)."""
FP8_BYTES = {"delayed": 1.0, "tensor": 1.0, "block": 1.0 + 4.0 / 128**2, "mxfp8": 2.0 * (1.0 + 1.0 / 32)}
"""Of an fp8 parameter with its scales: one a tensor, one for 128 x 128, or one for 32 in a row and again in a column, which
takes a copy for each direction that products read it in (OCP Microscaling Formats 1.0, section 5)."""
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

    @classmethod
    def of(cls, strategy: TrainingStrategy) -> Widths:
        """Read a strategy's formats: parameters are in 16 bits below fp32 unless it says otherwise."""
        stored = strategy.parameter_precision
        full = strategy.precision in ("fp32", "tf32")
        other = max(2.0, FORMAT_BYTES[stored]) if stored else 4.0 if full else 2.0
        weight = FP8_BYTES[strategy.fp8_recipe] if stored == "fp8" else other
        master = MASTER_BYTES if strategy.master_weights and other < MASTER_BYTES else 0.0
        return cls(
            weight, other, FORMAT_BYTES[strategy.gradient_precision], FORMAT_BYTES[strategy.moment_precision], master,
            strategy.optimizer_rank,
        )  # fmt: skip

    def stored(self, weights: Weights) -> float:
        """Bytes of one parameter of some weights."""
        return self.weight if weights.role == "matrix" else self.other

    def written(self, weights: Weights) -> tuple[float, float]:
        """Bytes of what an update reads and writes (the master copy, or the parameter) and of the copy that it writes."""
        stored = self.stored(weights)
        return (self.master, stored) if self.master else (stored, 0.0)


@dataclass(frozen=True, slots=True)
class Shards:
    """Ranks that dense and expert states are cut over; 1 where they are not. A share of 1 / n is n shards."""

    dense: Numeric = 1
    expert: Numeric = 1

    def over(self, weights: Weights) -> Numeric:
        """Those of some weights."""
        return self.expert if weights.expert else self.dense


UNCUT = Shards()
"""Every rank has all states of its parameters."""


@dataclass(frozen=True, slots=True)
class Portion:
    """Of some weights, what one rank updates."""

    elements: Numeric
    """Trained elements that it writes."""
    tensors: Numeric
    """Whole tensors that it works on, those that it shares with others among them."""


@dataclass(frozen=True, slots=True)
class Optimizer:
    """One row of the table."""

    source: str
    state: Callable[[Weights, Widths, Numeric], Numeric]
    """Bytes for the trained elements of weights that are cut over so many ranks, without the master copy."""
    update: Callable[[Weights, Widths, Portion], tuple[Work, ...]]
    """Kernels and products of one update; element-wise work is merged by :func:`update_works`."""
    shapes: bool = False
    """Whether states or work depend on more than the count of elements."""


def update_works(
    strategy: TrainingStrategy, weights: Sequence[Weights], shards: Shards = UNCUT
) -> tuple[Work, ...]:
    """Return the work of one update on a rank.

    Parameters
    ----------
    strategy : TrainingStrategy
        Optimizer, formats, and whether it updates a step or a layer at a time.
    weights : sequence of Weights
        On this rank; of one layer where layers are updated in turn.
    shards : Shards
        Ranks that states are cut over (ZeRO); a rank updates its share.

    Returns
    -------
    tuple of Work
        One element-wise kernel with all streams (gradients' norm, clipping and zeroing among them, unless gradients are
        not kept), then the products.
    """
    optimizer, widths = OPTIMIZERS[strategy.optimizer], Widths.of(strategy)
    scaled = strategy.precision == "fp16"
    passes = Elementwise(0.0, 0.0) if strategy.optimizer_update == "layer" else None
    works: list[Work] = []
    portions = _portions(weights, shards)
    for one, portion in portions:
        works += optimizer.update(one, widths, portion)
        if passes is None:
            width = _gradient_passes(widths.gradient, scaled=scaled)
            works.append(Elementwise(portion.elements * width, portion.elements * width))
    streams = [work for work in works if isinstance(work, Elementwise)]
    merged = Elementwise(
        sum((w.read for w in streams), start=0.0),
        sum((w.written for w in streams), start=0.0),
        sum((w.flops for w in streams), start=0.0),
    )
    return (merged, *(work for work in works if not isinstance(work, Elementwise)))


@dataclass(frozen=True, slots=True)
class Gathered:
    """Bytes of matrices that are gathered before an update, as they are there afterwards, by group."""

    tensor: Numeric = 0.0
    dense: Numeric = 0.0
    """Over the ranks that dense states are cut over."""
    expert: Numeric = 0.0
    """Over the ranks that the states of experts are cut over."""


def update_gathers(
    strategy: TrainingStrategy, weights: Sequence[Weights], shards: Shards = UNCUT
) -> Gathered:
    """Return what Muon gathers in bf16 to have whole matrices; nothing for the others.

    A rank lacks what it touches but does not hold of the matrices at the ends of its shard; an all-gather of
    ``(touched - held) n / (n - 1)`` brings as much. At most all matrices are gathered, a quarter of what Adam sends in
    fp32 (Liu et al. 2025, section 2.3).
    """
    if strategy.optimizer != "muon":
        return Gathered()
    tensor: Numeric = 0.0
    cut: dict[bool, Numeric] = {False: 0.0, True: 0.0}
    for one, portion in _portions(weights, shards):
        if one.role != "matrix":
            continue
        ranks = shards.over(one)
        size = 2.0 * one.rows * one.columns
        touched = portion.tensors * size
        lacking = larger(touched - 2.0 * portion.elements, 0.0)
        cut[one.expert] = cut[one.expert] + lacking * ranks / larger(ranks - 1, 1)
        rows, columns = one.shape
        parted = rows * columns > one.rows * one.columns
        tensor = tensor + parted * 2.0 * portion.tensors * rows * columns
    return Gathered(tensor, cut[False], cut[True])


def state_bytes(strategy: TrainingStrategy, weights: Iterable[Weights], shards: Shards = UNCUT) -> Numeric:
    """Return the bytes of optimizer states and master copies of a rank [B]."""
    optimizer, widths = OPTIMIZERS[strategy.optimizer], Widths.of(strategy)
    total: Numeric = 0.0
    for one in weights:
        ranks = shards.over(one)
        total = total + optimizer.state(one, widths, ranks) + one.updated * widths.master / ranks
    return total


def optimizer_faults(scenario: TrainingScenario, micro_batches: int = 1) -> list[str]:
    """Return the rules of optimizers and formats that a scenario breaks, a line each.

    ``micro_batches`` are those of a replica in a step: more than one means that gradients are summed.
    """
    strategy = scenario.strategy
    name, faults = strategy.optimizer, []
    if strategy.optimizer_rank is not None and name != "galore":
        faults.append(f"strategy.optimizer_rank: belongs to optimizer galore, found {name}")
    if name == "adam-8bit" and strategy.moment_precision != "fp32":
        faults.append(
            f"strategy.moment_precision: adam-8bit keeps its moments in 8 bits; leave out {strategy.moment_precision}, "
            f"or use optimizer adam"
        )
    if name == "galore" and strategy.zero_stage:
        faults.append(
            f"strategy.optimizer: galore projects whole gradients, which zero_stage {strategy.zero_stage} cuts; "
            f"use zero_stage 0"
        )
    if strategy.optimizer_update == "layer":
        faults += _layer_faults(strategy, micro_batches)
    return [*faults, *_format_faults(strategy)]


def _layer_faults(strategy: TrainingStrategy, micro_batches: int) -> list[str]:
    faults = []
    if micro_batches > 1:
        faults.append(
            f"strategy.optimizer_update: layer keeps no gradients, and {micro_batches} micro-batches sum them; "
            f"raise micro_batch until one is left"
        )
    if strategy.precision == "fp16":
        faults.append(
            "strategy.optimizer_update: layer updates before fp16's loss scale is known to have held for all gradients; "
            "use precision bf16"
        )
    return faults


def _format_faults(strategy: TrainingStrategy) -> list[str]:
    stored, faults = strategy.parameter_precision, []
    if strategy.precision in ("fp32", "tf32") and stored not in (None, "fp32"):
        faults.append(
            f"strategy.parameter_precision: {stored} is narrower than precision {strategy.precision}"
        )
    if stored == "fp8" and strategy.precision != "fp8":
        faults.append(f"strategy.parameter_precision: fp8 needs precision fp8, found {strategy.precision}")
    if {stored, strategy.precision} == {"bf16", "fp16"}:
        faults.append(
            f"strategy.parameter_precision: {stored} and precision {strategy.precision} differ in range; use one"
        )
    if stored == "fp8" and not strategy.master_weights:
        faults.append("strategy.master_weights: fp8 parameters are too coarse to be updated; leave it true")
    return faults


def _portions(weights: Sequence[Weights], shards: Shards) -> list[tuple[Weights, Portion]]:
    """What a rank updates of each: its share of the elements, and the tensors that this share touches.

    A shard is an interval of all elements in a row. One of length E / n touches a tensor of s elements with probability
    (E / n + s) / E, and never less than its share of them.
    """
    totals = {
        expert: sum((one.elements for one in weights if one.expert == expert), start=0.0)
        for expert in (False, True)
    }
    found = []
    for one in weights:
        share = 1.0 / shards.over(one)
        size = one.rows * one.columns
        touched = smaller(1.0, share + (share < 1.0) * size / larger(totals[one.expert], size))
        found.append((one, Portion(one.updated * share, one.count * one.trained * touched)))
    return found


def _gradient_passes(width: float, *, scaled: bool) -> float:
    """Bytes read (and as many written) for each gradient element before and after the update, as kernels of their own.

    The norm is read, the clipped gradient written back, the buffer zeroed for the next step; in fp16 the loss scale is
    divided out (and infinities are looked for) first (Micikevicius et al. 2018, section 3.2).
    """
    return 2.0 * width + (width if scaled else 0.0)


def _adam_state(weights: Weights, widths: Widths, shards: Numeric) -> Numeric:
    return weights.updated * 2.0 * widths.moment / shards


def _adam_update(weights: Weights, widths: Widths, portion: Portion) -> tuple[Work, ...]:
    return (_moments_update(weights, widths, portion.elements, widths.moment, 18.0),)


def _moments_update(
    weights: Weights, widths: Widths, elements: Numeric, moment: Numeric, flops: float
) -> Elementwise:
    """A kernel that reads gradients and two moments of ``moment`` bytes and writes moments and parameters."""
    read, written = adam_bytes(
        elements, gradient_bytes=widths.gradient, weight_bytes=widths.stored(weights), state_bytes=0.0,
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


def _adam_8bit_state(weights: Weights, widths: Widths, shards: Numeric) -> Numeric:
    return weights.updated * 2.0 * _quantized_width(weights) / shards


def _adam_8bit_update(weights: Weights, widths: Widths, portion: Portion) -> tuple[Work, ...]:
    # 18 as for Adam; each moment is scaled back, its block's largest value found, and scaled and rounded again
    return (_moments_update(weights, widths, portion.elements, _quantized_width(weights), 30.0),)


def _sgd_state(weights: Weights, widths: Widths, shards: Numeric) -> Numeric:
    return weights.updated * widths.moment / shards


def _sgd_update(weights: Weights, widths: Widths, portion: Portion) -> tuple[Work, ...]:
    return (_moments_update(weights, widths, portion.elements, widths.moment / 2.0, 6.0),)


def _adafactor_state(weights: Weights, widths: Widths, shards: Numeric) -> Numeric:
    """Second moments as the outer product of a row and a column (section 3), vectors' in full, no first moment.

    A shard holds rows: their factor is cut with them, that of the columns is every rank's.
    """
    if weights.role == "vector":
        return weights.updated * widths.moment / shards
    factors = weights.rows / shards + weights.columns
    return weights.count * weights.trained * factors * widths.moment


def _adafactor_update(weights: Weights, widths: Widths, portion: Portion) -> tuple[Work, ...]:
    """Gradients are read for their statistics, for the size of the update and for the update itself (algorithm 4).

    The parameters are read once more for the relative step size (section 8).
    """
    kept, copy = widths.written(weights)
    moment = widths.moment if weights.role == "vector" else 0.0
    read = 3.0 * widths.gradient + 2.0 * kept + moment
    written = kept + copy + moment
    return (Elementwise(portion.elements * read, portion.elements * written, 14.0 * portion.elements),)


def _muon_state(weights: Weights, widths: Widths, shards: Numeric) -> Numeric:
    moments = 1.0 if weights.role == "matrix" else 2.0
    return weights.updated * moments * widths.moment / shards


def _muon_update(weights: Weights, widths: Widths, portion: Portion) -> tuple[Work, ...]:
    """Momentum of a matrix, orthogonalised: X <- aX + (bA + cA²)X with A = XXᵀ, five times in bf16.

    Embeddings, head, norms and biases are Adam's (Jordan et al. 2024; Liu et al. 2025, section 2.2). Equal matrices are
    one batch. The sums are part of the products, which read what they add to.
    """
    if weights.role != "matrix":
        return _adam_update(weights, widths, portion)
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


def _galore_state(weights: Weights, widths: Widths, shards: Numeric) -> Numeric:
    """Two moments of r x n and the projection of m x r in the gradient's format (Zhao et al. 2024, table 1)."""
    if weights.role != "matrix":
        return _adam_state(weights, widths, shards)
    short, long = _oriented(weights.rows, weights.columns)
    rank = _galore_rank(weights, widths)
    each = rank * (2.0 * long * widths.moment + short * widths.gradient)
    return weights.count * weights.trained * each / shards


def _galore_update(weights: Weights, widths: Widths, portion: Portion) -> tuple[Work, ...]:
    """R = PᵀG, Adam on R, W -= P R' (algorithm 2), and every 200 steps the singular vectors of G anew.

    Of the decomposition, arithmetic is 6nm² + 20m³ (Golub & Van Loan 2013, figure 8.6.1), and half of the reduction to two
    diagonals is products of matrix and vector, which read what is left of the matrix twice a column: 8/3 m³ bytes.
    """
    if weights.role != "matrix":
        return _adam_update(weights, widths, portion)
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


OPTIMIZERS: Mapping[str, Optimizer] = {
    "adam": Optimizer("Kingma & Ba 2015, arXiv:1412.6980", _adam_state, _adam_update),
    "adam-8bit": Optimizer(
        "Dettmers et al. 2022, arXiv:2110.02861", _adam_8bit_state, _adam_8bit_update, True
    ),
    "adafactor": Optimizer(
        "Shazeer & Stern 2018, arXiv:1804.04235", _adafactor_state, _adafactor_update, True
    ),
    "muon": Optimizer("Liu et al. 2025, arXiv:2502.16982", _muon_state, _muon_update, True),
    "sgd": Optimizer("Sutskever et al. 2013 (momentum)", _sgd_state, _sgd_update),
    "galore": Optimizer("Zhao et al. 2024, arXiv:2403.03507", _galore_state, _galore_update, True),
}
"""By ``strategy.optimizer``."""
