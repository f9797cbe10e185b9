"""Bytes that a rank holds through a whole step: weights, gradients and optimizer states, whole or cut over replicas."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from simulator.cost.numeric import ceil, larger
from simulator.graph import FORMAT_BYTES, ModelGraph, Numeric
from simulator.specs import TrainingStrategy
from simulator.training.optimizer_rules import Widths
from simulator.training.optimizers import OPTIMIZERS, UNCUT, Shards, state_bytes
from simulator.training.weights import Weights


@dataclass(frozen=True, slots=True)
class ModelStates:
    """Bytes of one rank that do not change during a step."""

    weights: Numeric
    gradients: Numeric
    optimizer: Numeric

    @property
    def total(self) -> Numeric:
        """Sum [B]."""
        return self.weights + self.gradients + self.optimizer


@dataclass(frozen=True, slots=True)
class Elements:
    """Parameters that a rank holds before replicas cut them, and those that are trained."""

    dense: Numeric
    expert: Numeric = 0
    """Cut over the expert-parallel group; not part of ``dense``."""
    trained_dense: Numeric | None = None
    """All of ``dense`` if absent."""
    trained_expert: Numeric | None = None
    largest_layer: Numeric = 0
    """Trained elements of the largest layer: the gradients that exist at once where layers are updated in turn."""
    weights: tuple[Weights, ...] = ()
    """The same elements as tensors, for optimizers that look at shapes and for shards that end between rows."""

    @classmethod
    def of(cls, weights: Sequence[Weights], largest_layer: Numeric = 0) -> Elements:
        """Count some weights."""

        def count(expert: bool, attribute: str) -> Numeric:
            return sum((getattr(one, attribute) for one in weights if one.expert == expert), start=0.0)

        return cls(
            count(False, "elements"), count(True, "elements"), count(False, "updated"), count(True, "updated"),
            largest_layer, tuple(weights),
        )  # fmt: skip

    @property
    def trained(self) -> tuple[Numeric, Numeric]:
        """Dense and expert elements that are trained."""
        return (
            self.dense if self.trained_dense is None else self.trained_dense,
            self.expert if self.trained_expert is None else self.trained_expert,
        )

    @property
    def tensors(self) -> tuple[Weights, ...]:
        """The weights, or a vector of each kind in their place."""
        if self.weights:
            return self.weights
        kinds = ((self.dense, self.trained[0], False), (self.expert, self.trained[1], True))
        return tuple(
            Weights("expert" if expert else "dense", held, expert=expert, trained=trained / larger(held, 1.0))
            for held, trained, expert in kinds
            if np.any(np.asarray(held) > 0)
        )


def model_states(strategy: TrainingStrategy, elements: Elements, shards: Shards = UNCUT) -> ModelStates:
    """Return the bytes of weights, gradients and optimizer states of one rank.

    Mixed precision with Adam: 2 + 4 (fp32 gradients) + 12 = 18 B an element (Megatron-LM), or 2 + 2 + 12 = 16 with 16-bit
    gradients (Rajbhandari et al. 2020, section 3.1). ZeRO-1 cuts optimizer states, ZeRO-2 gradients too, ZeRO-3 weights
    too (sections 5.1 to 5.3).

    Parameters
    ----------
    strategy : TrainingStrategy
        Precisions, optimizer and ZeRO stage.
    elements : Elements
        On this rank; numbers or arrays.
    shards : Shards
        Ranks that states are cut over where the ZeRO stage says so: all replicas, or a group of them (HSDP), fewer for
        experts. For a rank with a share s of its own (mixed GPUs), 1 / s; arrays give ranks side by side.

    Raises
    ------
    ValueError
        If the optimizer looks at shapes and ``elements`` has counts alone.
    """
    if OPTIMIZERS[strategy.optimizer].shapes and not elements.weights:
        raise ValueError(
            f"optimizer {strategy.optimizer} needs the shapes of the weights, found counts alone"
        )
    stage, widths = strategy.zero_stage, Widths.of(strategy)
    weights: Numeric = 0.0
    for one in elements.tensors:
        weights = weights + held_bytes(one, widths, shards.over(one) if stage >= 3 else 1)
    dense, expert = elements.trained
    cut = shards if stage >= 2 else UNCUT
    if strategy.optimizer_update == "layer":
        gradients: Numeric = elements.largest_layer
    else:
        gradients = dense / cut.dense + expert / cut.expert
    states = state_bytes(strategy, elements.tensors, shards if stage >= 1 else UNCUT)
    return ModelStates(weights, gradients * FORMAT_BYTES[strategy.gradient_precision], states)


def held_bytes(weights: Weights, widths: Widths, ranks: Numeric = 1) -> Numeric:
    """Return the bytes of weights on the fullest of ``ranks`` that hold a share of them [B]."""
    if weights.stored is not None:
        return weights.stored / ranks
    return (sharded(weights, ranks) if np.any(np.asarray(ranks) != 1) else weights.elements) * widths.stored(
        weights
    )


def sharded(weights: Weights, ranks: Numeric) -> Numeric:
    """Return the elements of the fullest rank when each tensor is cut by rows, as FSDP2 does; experts along their stack.

    The last ranks hold less, or padding, where rows are no multiple of the ranks (Zhao et al. 2023, *PyTorch FSDP*,
    section 3.2.3, pads a flat parameter likewise: rows of one column here).
    """
    if weights.expert:
        rows: Numeric = ceil(weights.rows * weights.count / ranks)
        return rows * weights.columns
    rows = ceil(weights.rows / ranks)
    return weights.count * rows * weights.columns


def checkpoint_bytes(
    strategy: TrainingStrategy, stages: Iterable[Elements], tensor: Numeric, experts: Numeric = 1
) -> Numeric:
    """Return the bytes of a checkpoint of all ranks: weights and optimizer states, of one replica.

    Parameters
    ----------
    strategy : TrainingStrategy
        Formats and optimizer.
    stages : iterable of Elements
        Of one rank of each pipeline stage.
    tensor, experts : number or array
        Ranks of a stage that hold different dense parameters, and different experts.
    """
    widths = Widths.of(strategy)
    total: Numeric = 0.0
    for elements in stages:
        for one in elements.tensors:
            holders = experts if one.expert else tensor
            total = total + holders * (held_bytes(one, widths) + state_bytes(strategy, (one,)))
    return total


def graph_parameters(
    graph: ModelGraph, layers: tuple[int, ...], *, embedding: bool, head: bool
) -> tuple[float, float]:
    """Return (all, expert) parameters of the given layers on one rank, with embedding and head where they are."""
    blocks = [graph.blocks[graph.layers[layer]] for layer in layers]
    blocks += [graph.embedding] if embedding else []
    blocks += [graph.head] if head else []
    return sum(float(b.parameters) for b in blocks), sum(float(b.expert_parameters) for b in blocks)
