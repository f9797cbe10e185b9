"""Communication of a training step between ranks that hold the same parameters and between stages, as the engine sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from simulator.cost import CostModel, collective_traffic
from simulator.cost.codec import compressed
from simulator.graph import FORMAT_BYTES, Block, Collective, Operator
from simulator.graph.quantise import gathered_bytes
from simulator.graph.work import CollectiveKind
from simulator.specs import Hardware, Span, TrainingStrategy
from simulator.specs.trainable_spec import Codec
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
        self._layers: dict[int, LayerMessages] = {}
        self._prices: dict[tuple[CollectiveKind, float, Span], Message] = {}

    @cached_property
    def communication(self) -> Communication:
        """When replicas communicate under the strategy."""
        strategy = self.strategy
        stage = strategy.zero_stage
        overlapped = strategy.overlap_gradient_reduction or strategy.optimizer_update == "layer"
        constants = self.cost.calibration.collective
        return Communication(
            "each" if stage >= 2 else "last" if overlapped else "end",
            "none" if stage == 0 else "each" if stage == 3 else "next" if strategy.overlap_parameter_gather else "end",
            strategy.reshard_after_forward, strategy.prefetch,
            float(constants.occupancy or 0.0), float(constants.crowding or 0.0),
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
        sent = size / plan.tensor if scattered else size
        message = coded(self.message("send", sent, span), sent, strategy.compression.boundaries)
        if plan.tensor > 1 and scattered and not strategy.sequence_parallel:
            gather = self.cost.price(Collective("all-gather", "tensor", size), self.spans["tensor"])
            return Message(
                message.size, message.bandwidth, message.latency + float(gather.time), message.rate
            )
        return message

    def layer(self, block: Block) -> LayerMessages:
        """Return what one layer exchanges with its replicas."""
        found = self._layers.get(id(block))
        if found is None:
            found = self._layers[id(block)] = self._layer(block)
        return found

    def _layer(self, block: Block) -> LayerMessages:
        communication = self.communication
        trained_expert = float(block.trainable_expert_parameters)
        trained = float(block.trainable_parameters) - trained_expert
        gathered = self.gathered_bytes(block) if communication.gather == "each" else (0.0, 0.0)
        gathers: tuple[Message, ...] = ()
        if communication.gather == "each":
            gathers = self.gathers(*gathered)
        elif communication.gather == "next":
            gathers = self.gathers(*self.updated_bytes(trained, trained_expert))
        reduce: tuple[Message, ...] = ()
        replicate: tuple[Message, ...] = ()
        if communication.reduce != "end":
            reduce = self.reductions(trained, trained_expert)
            replicate = self.replications(trained, trained_expert)
        held = (trained + trained_expert) * self.reduced_width if self.strategy.zero_stage >= 2 else 0.0
        if self.strategy.gather_unit == "tensor":
            return self._by_tensor(block, LayerMessages(gathers, reduce, replicate, sum(gathered), held))
        return LayerMessages(gathers, reduce, replicate, sum(gathered), held)

    def _by_tensor(self, block: Block, whole: LayerMessages) -> LayerMessages:
        """Return the messages of a layer with a collective for each tensor, one after the other and beside nothing.

        Each is copied to or from a list with an entry for each rank of the group, by a kernel each. The module that starts
        a collective waits for it: what a reduction leaves is copied out before the next layer runs. Layers that are computed
        again are gathered three times, of which both passes wait for half.
        """
        shares = [
            share for operator in block.operators for share in _tensors(operator, float(block.parameters))
        ]
        kernels = len(shares) * self.plan.groups.shard * float(self.cost.calibration.host.launch or 0.0)
        dense, expert = self.gathered_bytes(block)
        copies = kernels + float(self.cost.kernels.stream(2.0 * (dense + expert)).time)
        trained_expert = float(block.trainable_expert_parameters)
        trained = float(block.trainable_parameters) - trained_expert
        times = 1.5 if self.strategy.recompute == "full" else 1.0
        gather = _joined([m for share in shares for m in self.gathers(share * dense, share * expert)], times)
        reduce = _joined(
            [m for share in shares for m in self.reductions(share * trained, share * trained_expert)]
        )
        gather = tuple(replace(m, latency=m.latency + times * copies) for m in gather)
        return replace(whole, gather=gather, reduce=reduce, optimizer=copies * bool(reduce))

    def gathered_bytes(self, block: Block) -> tuple[float, float]:
        """Return the bytes in which dense and expert parameters of a block are gathered, in the format of products."""
        found = [0.0, 0.0]
        for operator in block.operators:
            packed = operator.stored is not None and self.plan.numerics.scaling == "none"
            size = operator.stored if packed else gathered_bytes(operator, self.plan.numerics)
            found[operator.expert] += float(size or 0.0)
        return found[0], found[1]

    def updated_bytes(self, dense: float, expert: float) -> tuple[float, float]:
        """Return the bytes of updated parameters."""
        width = self.plan.numerics.weight_bytes
        return dense * width, expert * width

    def gathers(self, dense: float, expert: float) -> tuple[Message, ...]:
        """Return the gathers of so many bytes of parameters that are cut over replicas."""
        groups = self.plan.groups
        return self._messages(
            "all-gather",
            [(dense, groups.shards(self.hardware)[0]), (expert, groups.expert_shards(self.hardware)[0])],
        )

    def reductions(self, dense: float, expert: float) -> tuple[Message, ...]:
        """Return the reductions of gradients inside the groups that states are cut over, or of all replicas."""
        groups, width = self.plan.groups, self.reduced_width
        if not self.strategy.zero_stage:
            experts = groups.expert_shards(self.hardware)[0]
            return self._messages(
                "all-reduce", [(dense * width, groups.dense(self.hardware)), (expert * width, experts)]
            )
        return self._messages(
            "reduce-scatter",
            [
                (dense * width, groups.shards(self.hardware)[0]),
                (expert * width, groups.expert_shards(self.hardware)[0]),
            ],
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
        codec = self.strategy.compression.gradients if kind != "all-gather" else None
        return tuple(
            coded(self.message(kind, size, span), size, codec)
            for size, span in parts
            if size and span.size > 1
        )

    @property
    def reduced_width(self) -> float:
        """Bytes of a gradient on its way."""
        return FORMAT_BYTES[self.strategy.gradient_precision]


def coded(message: Message, size: float, codec: Codec | None) -> Message:
    """Return a message of ``size`` bytes of tensor that a codec makes smaller."""
    if codec is None:
        return message
    moved = message.size / codec.ratio
    seconds = float(compressed(size, message.time, codec, message.latency)[1])
    return Message(
        moved,
        message.bandwidth,
        message.latency,
        moved / (seconds - message.latency) if moved else message.rate,
    )


def _tensors(operator: Operator, total: float) -> list[float]:
    """Return the shares of an operator's tensors in all parameters: its matrices, and what they leave over (a bias, a norm)."""
    found = [float(m.inputs * m.outputs) / total for m in operator.matrices for _ in range(int(m.count))]
    rest = float(operator.parameters) / total - sum(found)
    return [*found, rest] if rest > 1e-12 else found


def _joined(messages: Sequence[Message], times: float = 1.0) -> tuple[Message, ...]:
    """Return messages one after the other, so many times, as one."""
    flow = sum(m.time - m.latency for m in messages)
    if not messages:
        return ()
    size, latency = (
        times * sum(values) for values in ([m.size for m in messages], [m.latency for m in messages])
    )
    rate = size / (times * flow) if flow else np.inf
    return (Message(size, max(rate, *(m.bandwidth for m in messages)), latency, rate),)
