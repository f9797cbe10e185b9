"""Bytes that a rank holds through a whole step: weights, gradients, optimizer states, context."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.graph import FORMAT_BYTES, ModelGraph, Numeric
from simulator.specs import TrainingStrategy

MASTER_BYTES = 4.0
"""fp32 copy of a 16-bit parameter that the optimizer updates (Micikevicius et al. 2018, section 3.1)."""
STATE_BYTES = {"adam": 8.0, "sgd": 4.0}
"""fp32 moments of an element: Adam's two (Kingma & Ba 2015), SGD's momentum."""


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


def bytes_per_parameter(strategy: TrainingStrategy) -> tuple[float, float, float]:
    """Return bytes of weight, gradient and optimizer state for one element.

    Mixed precision with Adam: 2 + 4 (fp32 gradients) + 12 = 18 (Megatron-LM), or 2 + 2 + 12 = 16 with 16-bit gradients
    (Rajbhandari et al. 2020, section 3.1).
    """
    full = strategy.precision in ("fp32", "tf32")
    weight = 4.0 if full else 2.0
    master = 0.0 if full else MASTER_BYTES
    return weight, FORMAT_BYTES[strategy.gradient_precision], master + STATE_BYTES[strategy.optimizer]


def model_states(
    strategy: TrainingStrategy,
    parameters: Numeric,
    data_parallel: int,
    expert_parameters: Numeric = 0,
    expert: int = 1,
) -> ModelStates:
    """Return the bytes of weights, gradients and optimizer states of one rank.

    Parameters
    ----------
    strategy : TrainingStrategy
        Precisions, optimizer and ZeRO stage.
    parameters, expert_parameters : number or array
        Elements on this rank; experts are part of ``parameters``.
    data_parallel, expert : int
        Degrees; ZeRO-1 cuts the optimizer state over replicas of the same parameter (Rajbhandari et al. 2020, section 5.1).
    """
    weight, gradient, state = bytes_per_parameter(strategy)
    dense = parameters - expert_parameters
    shards = data_parallel if strategy.zero_stage >= 1 else 1
    expert_shards = max(1, data_parallel // expert) if strategy.zero_stage >= 1 else 1
    return ModelStates(
        parameters * weight,
        parameters * gradient,
        (dense / shards + expert_parameters / expert_shards) * state,
    )


def graph_parameters(
    graph: ModelGraph, layers: tuple[int, ...], *, embedding: bool, head: bool
) -> tuple[float, float]:
    """Return (all, expert) parameters of the given layers on one rank, with embedding and head where they are."""
    blocks = [graph.blocks[graph.layers[layer]] for layer in layers]
    blocks += [graph.embedding] if embedding else []
    blocks += [graph.head] if head else []
    return sum(float(b.parameters) for b in blocks), sum(float(b.expert_parameters) for b in blocks)
