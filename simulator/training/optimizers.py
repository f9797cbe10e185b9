"""Optimizers: the bytes of their states and the work of one update, of a rank's share.

Each is a row of :data:`OPTIMIZERS`; what the rows do is in :mod:`simulator.training.optimizer_rules`. Layers may also be
updated one by one in the backward pass, with no gradient kept (Lv et al. 2023, *LOMO*).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from simulator.cost.numeric import larger, smaller
from simulator.graph import Elementwise, Numeric
from simulator.graph.work import Work
from simulator.specs import TrainingScenario, TrainingStrategy
from simulator.training.optimizer_rules import (
    NARROW,
    Portion,
    Widths,
    adafactor_state,
    adafactor_update,
    adam_8bit_state,
    adam_8bit_update,
    adam_state,
    adam_update,
    galore_state,
    galore_update,
    muon_state,
    muon_update,
    sgd_state,
    sgd_update,
)
from simulator.training.weights import Weights


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
class Optimizer:
    """One row of the table."""

    source: str
    state: Callable[[Weights, Widths, Numeric], Numeric]
    """Bytes for the trained elements of weights that are cut over so many ranks, without the master copy."""
    update: Callable[[Weights, Widths, Portion], tuple[Work, ...]]
    """Kernels and products of one update; element-wise work is merged by :func:`update_works`."""
    shapes: bool = False
    """Whether states or work depend on more than the count of elements."""


OPTIMIZERS: Mapping[str, Optimizer] = {
    "adam": Optimizer("Kingma & Ba 2015, arXiv:1412.6980", adam_state, adam_update),
    "adam-8bit": Optimizer("Dettmers et al. 2022, arXiv:2110.02861", adam_8bit_state, adam_8bit_update, True),
    "adafactor": Optimizer("Shazeer & Stern 2018, arXiv:1804.04235", adafactor_state, adafactor_update, True),
    "muon": Optimizer("Liu et al. 2025, arXiv:2502.16982", muon_state, muon_update, True),
    "sgd": Optimizer("Sutskever et al. 2013 (momentum)", sgd_state, sgd_update),
    "galore": Optimizer("Zhao et al. 2024, arXiv:2403.03507", galore_state, galore_update, True),
}
"""By ``strategy.optimizer``."""


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
    passes = _gradient_passes(strategy, widths.gradient)
    works: list[Work] = []
    for one, portion in _portions(weights, shards):
        works += optimizer.update(one, widths, portion)
        works.append(Elementwise(portion.elements * passes, portion.elements * passes))
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
    if stored in NARROW and strategy.precision != stored:
        faults.append(
            f"strategy.parameter_precision: {stored} needs precision {stored}, found {strategy.precision}"
        )
    if {stored, strategy.precision} == {"bf16", "fp16"}:
        faults.append(
            f"strategy.parameter_precision: {stored} and precision {strategy.precision} differ in range; use one"
        )
    if stored in NARROW and not strategy.master_weights:
        faults.append(
            f"strategy.master_weights: {stored} parameters are too coarse to be updated; leave it true"
        )
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


def _gradient_passes(strategy: TrainingStrategy, width: float) -> float:
    """Bytes read (and as many written) for each gradient element before and after the update, as kernels of their own.

    The norm is read, the clipped gradient written back, the buffer zeroed for the next step; in fp16 the loss scale is
    divided out (and infinities are looked for) first (Micikevicius et al. 2018, section 3.2). Gradients that are not kept
    have no norm and no buffer.
    """
    if strategy.optimizer_update == "layer":
        return 0.0
    return 2.0 * width + (width if strategy.precision == "fp16" else 0.0)
