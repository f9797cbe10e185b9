"""Experts that are cut otherwise than attention: their work on one rank, and how tokens get there and back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from simulator.cost import Cost, CostModel
from simulator.graph import Block, Collective, ModelGraph, Numerics, Partition, Shape, Work, build
from simulator.graph.work import CollectiveKind
from simulator.serving.layout import Layout, busiest_place
from simulator.serving.workload import Floats
from simulator.specs import Model, Span

ROUTED = frozenset(("moe.dispatch", "moe.up", "moe.activation", "moe.down", "moe.combine"))
"""Operators that see the tokens of all ranks of a stage."""
EXCHANGE_UNITS = 24
"""Streaming multiprocessors that normal kernels of dispatch and combine are given (DeepEP's default)."""


@dataclass(frozen=True)
class Experts:
    """The routed experts of one rank of a stage."""

    model: Model
    numerics: Numerics
    layout: Layout
    cost: CostModel
    layers: range

    def graph(self, tokens: Floats | float) -> ModelGraph:
        """Return the graph whose routed operators see ``tokens`` tokens of each rank of the stage."""
        layout, moe = self.layout, self.model.moe
        everybody = tokens * layout.data
        if moe is not None and layout.balanced:
            everybody = everybody * busiest_place(
                moe.num_experts, layout.expert, layout.redundant, layout.skew, float(np.mean(everybody))
            )
        partition = Partition(
            layout.expert_tensor, layout.expert, expert_skew=0.0 if layout.balanced else layout.skew
        )
        graph = build(self.model, Shape(1, everybody / layout.expert, 0, "prefill"), partition, self.numerics)
        return cut(graph, self.layers)

    @property
    def parameters(self) -> float:
        """Elements of the experts of one rank, redundant ones among them."""
        moe = self.model.moe
        if moe is None:
            return 0.0
        more = 1.0 + self.layout.redundant / moe.num_experts
        graph = self.graph(1.0)
        return more * sum(
            float(block.expert_parameters) * count
            for block, count in zip(graph.blocks, graph.counts, strict=True)
        )

    def works(self, tokens: Floats) -> Iterable[tuple[Work, int]]:
        """Products, activations and local sorting of the layers; no exchange."""
        graph = self.graph(tokens)
        for block, count in zip(graph.blocks, graph.counts, strict=True):
            for operator in block.operators:
                if operator.name in ROUTED:
                    yield from (
                        (work, count) for work in operator.forward if not isinstance(work, Collective)
                    )

    def exchanges(self, tokens: Floats, *, low_latency: bool) -> Iterable[tuple[Cost, int]]:
        """Price what moves ``tokens`` tokens of each rank to the experts of a layer and back.

        Where all ranks have the same tokens, partial outputs are reduced in the tensor-parallel group: the caller prices that.
        """
        layout, moe = self.layout, self.model.moe
        count = sum(n for block, n in self._blocks() if _is_routed(block))
        if layout.data == 1 or not count or moe is None:
            return
        hidden, width = float(self.model.hidden_size), self.numerics.activation_bytes
        everybody = tokens * layout.data
        if layout.exchange == "collective":
            size = everybody * hidden * width
            yield self._collective("all-gather", layout.data_span, size), count
            yield self._collective("reduce-scatter", layout.data_span, size), count
            if layout.tensor > 1:
                yield self._collective("all-reduce", layout.tensor_span, tokens * hidden * width), count
            return
        # ranks of a tensor-parallel group send a part of its tokens each
        own = tokens / layout.tensor * layout.sent_share
        span = layout.stage_span
        if low_latency or len(span.tiers) == 1:
            for step in ("dispatch", "combine"):
                yield (
                    self.cost.expert_exchange(
                        step, span, own, hidden, moe.num_experts_per_tok, moe.num_experts, low_latency=low_latency,
                        units=EXCHANGE_UNITS,
                    ),
                    count,
                )  # fmt: skip
            return
        nodes = float(np.prod([tier.size for tier in span.tiers[1:]]))
        nodes = min(nodes, float(layout.nodes or nodes))
        sent = own * moe.num_experts_per_tok * hidden
        for bytes_ in (1.0 + 4.0 / 128.0, 2.0):
            work = Collective(
                "all-to-all", "expert", sent * bytes_, copies=moe.num_experts_per_tok, nodes=nodes
            )
            yield self.cost.price(work, span), count

    def _blocks(self) -> Iterable[tuple[Block, int]]:
        graph = self.graph(1.0)
        return zip(graph.blocks, graph.counts, strict=True)

    def _collective(self, kind: CollectiveKind, span: Span, size: Floats) -> Cost:
        return self.cost.price(Collective(kind, "expert", size), span)


def cut(graph: ModelGraph, layers: range) -> ModelGraph:
    """Return a graph of some of its layers; a block that none of them is stays, with a count of 0."""
    if len(layers) == len(graph.layers):
        return graph
    return ModelGraph(
        graph.name, graph.embedding, graph.blocks, graph.layers[layers.start : layers.stop], graph.head, graph.numerics
    )  # fmt: skip


def _is_routed(block: Block) -> bool:
    return any(operator.name in ROUTED for operator in block.operators)
