"""Communication of a training step between ranks that hold the same parameters and between stages, as the engine sees it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from simulator.cost import CostModel, collective_traffic
from simulator.graph import FORMAT_BYTES, Block, Collective
from simulator.graph.work import CollectiveKind
from simulator.specs import Hardware, Span, TrainingStrategy
from simulator.training.plan import Plan
from simulator.training.work import Communication, LayerMessages, Message


class Messenger:
    """Prices messages between replicas and between stages.

    Parameters
    ----------
    cost, hardware, plan, strategy
        Of the step.
    """

    def __init__(self, cost: CostModel, hardware: Hardware, plan: Plan, strategy: TrainingStrategy) -> None:
        self.cost, self.hardware, self.plan, self.strategy = cost, hardware, plan, strategy
        self.spans = plan.groups.spans(hardware)
        self._layers: dict[tuple[float, float, float, float], LayerMessages] = {}
        self._prices: dict[tuple[CollectiveKind, float, Span], Message] = {}

    @cached_property
    def communication(self) -> Communication:
        """When replicas communicate under the strategy."""
        strategy = self.strategy
        stage = strategy.zero_stage
        overlapped = strategy.overlap_gradient_reduction or strategy.optimizer_update == "layer"
        occupancy = float(self.cost.calibration.collective.occupancy or 0.0)
        return Communication(
            "each" if stage >= 2 else "last" if overlapped else "end",
            "none" if stage == 0 else "each" if stage == 3 else "next" if strategy.overlap_parameter_gather else "end",
            strategy.reshard_after_forward, strategy.prefetch, occupancy,
        )  # fmt: skip

    def message(self, kind: CollectiveKind, size: float, span: Span) -> Message:
        """Return a collective as bytes over its outermost link, lasting what the cost model says."""
        found = self._prices.get((kind, size, span))
        if found is None:
            found = self._prices[kind, size, span] = self._price(kind, size, span)
        return found

    def _price(self, kind: CollectiveKind, size: float, span: Span) -> Message:
        cost = self.cost.price(Collective(kind, "data", size), span)
        moved = float(collective_traffic(kind, span, size)[-1])
        time, latency = float(cost.time), float(cost.latency)
        if time <= latency or moved <= 0.0:
            return Message(0.0, span.tiers[-1].bandwidth, time, np.inf)
        rate = moved / (time - latency)
        return Message(moved, max(span.tiers[-1].bandwidth, rate), latency, rate)

    def boundary(self, sender: int, receiver: int, size: float) -> Message:
        """Return the message of ``size`` bytes of activations of a context-parallel rank from one stage to another."""
        plan, strategy = self.plan, self.strategy
        scattered = strategy.sequence_parallel or strategy.optimize_pipeline_transfer
        span = plan.groups.boundary(self.hardware, sender, receiver)
        message = self.message("send", size / plan.tensor if scattered else size, span)
        if plan.tensor > 1 and scattered and not strategy.sequence_parallel:
            gather = self.cost.price(Collective("all-gather", "tensor", size), self.spans["tensor"])
            return Message(message.size, message.bandwidth, message.latency + float(gather.time), message.rate)
        return message

    def layer(self, block: Block) -> LayerMessages:
        """Return what one layer exchanges with its replicas."""
        key = _elements(block)
        found = self._layers.get(key)
        if found is None:
            found = self._layers[key] = self._layer(*key)
        return found

    def _layer(self, dense: float, expert: float, trained: float, trained_expert: float) -> LayerMessages:
        communication = self.communication
        gathers: tuple[Message, ...] = ()
        if communication.gather == "each":
            gathers = self.gathers(dense, expert)
        elif communication.gather == "next":
            gathers = self.gathers(trained, trained_expert)
        reduce: tuple[Message, ...] = ()
        replicate: tuple[Message, ...] = ()
        if communication.reduce != "end":
            reduce = self.reductions(trained, trained_expert)
            replicate = self.replications(trained, trained_expert)
        apart = self.strategy.zero_stage >= 2
        return LayerMessages(
            gathers, reduce, replicate,
            (dense + expert) * self.gathered_width if communication.gather == "each" else 0.0,
            (trained + trained_expert) * self.reduced_width if apart else 0.0,
        )  # fmt: skip

    def gathers(self, dense: float, expert: float) -> tuple[Message, ...]:
        """Return the gathers of parameters that are cut over replicas."""
        groups, width = self.plan.groups, self.gathered_width
        return self._messages(
            "all-gather",
            [(dense * width, groups.shards(self.hardware)[0]), (expert * width, groups.expert_shards(self.hardware)[0])],
        )

    def reductions(self, dense: float, expert: float) -> tuple[Message, ...]:
        """Return the reductions of gradients inside the groups that states are cut over, or of all replicas."""
        groups, width = self.plan.groups, self.reduced_width
        if not self.strategy.zero_stage:
            experts = groups.expert_shards(self.hardware)[0]
            return self._messages("all-reduce", [(dense * width, groups.dense(self.hardware)), (expert * width, experts)])
        return self._messages(
            "reduce-scatter",
            [(dense * width, groups.shards(self.hardware)[0]), (expert * width, groups.expert_shards(self.hardware)[0])],
        )

    def replications(self, dense: float, expert: float) -> tuple[Message, ...]:
        """Return the reductions of a rank's share of gradients between replicas of the shard group (HSDP)."""
        if not self.strategy.zero_stage:
            return ()
        groups, width = self.plan.groups, self.reduced_width
        inside, outside = groups.shards(self.hardware)
        expert_inside, expert_outside = groups.expert_shards(self.hardware)
        return self._messages(
            "all-reduce",
            [
                (dense * width / inside.size, outside),
                (expert * width / expert_inside.size, expert_outside),
            ],
        )

    def copies(self, elements: float, stage: int, other: int) -> tuple[Message, ...]:
        """Return the reduction between two stages that hold the same layers (DualPipe's two copies)."""
        if stage == other or not elements:
            return ()
        span = self.plan.groups.boundary(self.hardware, stage, other)
        return self._messages("all-reduce", [(elements * self.reduced_width, span)])

    def _messages(self, kind: CollectiveKind, parts: Sequence[tuple[float, Span]]) -> tuple[Message, ...]:
        return tuple(self.message(kind, size, span) for size, span in parts if size and span.size > 1)

    @property
    def gathered_width(self) -> float:
        """Bytes of a parameter on its way to the ranks that compute with it."""
        strategy = self.strategy
        wide = FORMAT_BYTES[strategy.precision] if strategy.precision in ("fp32", "tf32") else 2.0
        stored = FORMAT_BYTES[strategy.parameter_precision] if strategy.parameter_precision else wide
        return min(stored, wide)

    @property
    def reduced_width(self) -> float:
        """Bytes of a gradient on its way."""
        return FORMAT_BYTES[self.strategy.gradient_precision]


def _elements(block: Block) -> tuple[float, float, float, float]:
    """Dense and expert parameters of one rank, held and trained."""
    expert, trained_expert = float(block.expert_parameters), float(block.trainable_expert_parameters)
    return (
        float(block.parameters) - expert, expert, float(block.trainable_parameters) - trained_expert, trained_expert,
    )  # fmt: skip
