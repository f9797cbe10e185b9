"""What parts of layers cost: up to the gate, beside the routed experts, behind them; an expert by its tokens and by processor."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.cost import CostModel, peak_flops
from simulator.graph import Axis, Block, Elementwise, Matmul, ModelGraph, Numerics, Operator, Work
from simulator.graph.experts import SHARED_EXPERTS
from simulator.graph.layers import ACTIVATION_FLOPS
from simulator.offload.columns import BOTTLENECKS, COLUMNS, Rows
from simulator.offload.tiers import Channel
from simulator.specs import MemroofError, MixtureOfExperts, Model, Processor, Span

ROUTED = ("moe.up", "moe.activation", "moe.down")
"""Operators of routed experts, priced expert by expert."""
BEHIND = ("moe.combine", "moe.add")
"""Operators that wait for them."""
LINKS = {"tensor link": "network"}
_HOST = tuple(i for i, name in enumerate(COLUMNS) if name == "host")
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Part:
    """Work of a layer on the accelerator in each pass."""

    rows: Rows
    """Seconds by :data:`~simulator.offload.columns.COLUMNS`; shape (passes, columns)."""

    def time(self, index: int) -> float:
        """Seconds in a pass."""
        return float(self.rows[index, : len(BOTTLENECKS)].sum())


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer, the embedding or the head: what it computes before its experts, beside them and after."""

    name: str
    to_gate: Part
    """Up to the gate, which says which experts are needed; of a layer without experts: all of it."""
    beside: Part
    """What needs no routed expert: shared ones."""
    behind: Part
    moe: int | None
    """Number among the MoE layers; None of a dense one."""


@dataclass
class ExpertPrices:
    """Seconds of one expert by how many tokens it has.

    Parameters
    ----------
    model : Model
        Whose experts.
    numerics : Numerics
        Formats of products, activations and the experts' weights.
    cost : CostModel
        Of the accelerator.
    issue : float
        Host time of an operator that is issued by itself [s]; 0 where kernels are captured.
    ranks : int
        Accelerators that each expert is cut over.
    """

    model: Model
    numerics: Numerics
    cost: CostModel
    issue: float
    ranks: int
    _known: dict[int, Rows] = field(default_factory=dict, repr=False)

    @property
    def parameters(self) -> int:
        """Elements of one expert, biases among them."""
        moe = _moe(self.model)
        matrices = 3 if self.model.gated_mlp else 2
        hidden, width = self.model.hidden_size, moe.moe_intermediate_size
        biases = (matrices - 1) * width + hidden if moe.expert_bias else 0
        return matrices * hidden * width + biases

    @property
    def operators(self) -> int:
        """Operators of one expert that is called by itself: its products and the activation between them."""
        return 4 if self.model.gated_mlp else 3

    def rows(self, counts: Integers) -> Rows:
        """Return seconds on the accelerator by columns, for experts of so many tokens; shape (experts, columns)."""
        new = np.unique([n for n in counts.tolist() if n not in self._known])
        if len(new):
            found = _rows(
                self.cost, self._works(new.astype(np.float64)), len(new), {}, self.issue * self.operators
            )
            self._known.update(zip(new.astype(int).tolist(), found, strict=True))
        return np.array([self._known[n] for n in counts.tolist()]).reshape(len(counts), len(COLUMNS))

    def elsewhere(self, counts: Integers, device: Processor, count: int, rate: float) -> Rows:
        """Return seconds of experts on another processor by roofline: weights read once at ``rate`` [B/s], or its peak.

        ``count`` such processors compute together; where operators are issued one by one, an expert takes no less than the
        host needs for its own, whoever computes it. Shape (experts,).
        """
        parameters = self.parameters
        peak = _peak(device, self.numerics.compute)
        edge = array_edge(device, peak)
        flops = 2.0 * parameters * np.ceil(counts / edge) * edge
        size = parameters * self.numerics.weight_bytes
        seconds: Rows = np.maximum(size / rate, flops / (count * peak))
        seconds = np.maximum(seconds, self.issue * self.operators)
        return seconds

    def _works(self, tokens: Rows) -> list[Work]:
        model, numerics = self.model, self.numerics
        hidden, width = model.hidden_size, _moe(model).moe_intermediate_size / self.ranks
        wide = width * (2 if model.gated_mlp else 1)
        operand = numerics.activation_bytes
        up = Matmul(tokens, wide, hidden, 1, numerics.compute, operand, numerics.weight_bytes, operand)
        flops = ACTIVATION_FLOPS[model.activation] * tokens * width
        activation = Elementwise(tokens * wide * operand, tokens * width * operand, flops)
        down = Matmul(tokens, hidden, width, 1, numerics.compute, operand, numerics.weight_bytes, operand)
        return [up, activation, down]


def price_layers(
    graph: ModelGraph, cost: CostModel, spans: Mapping[Axis, Span], passes: int, issue: float
) -> list[Layer]:
    """Return embedding, layers that do anything, and head, in order, with what they cost in each of some passes.

    Parameters
    ----------
    graph : ModelGraph
        Of one rank.
    cost, spans : CostModel, mapping
        Prices, and what the groups of ranks span.
    passes : int
        Length of the arrays that the graph's dimensions hold.
    issue : float
        Host time of an operator that is issued by itself [s]; the accelerator waits where that is longer.
    """
    priced = {id(block): _parts(block, cost, spans, passes, issue) for block, _ in graph.all_blocks}
    found, moe = [], 0
    order = [graph.embedding, *(graph.blocks[index] for index in graph.layers), graph.head]
    for place, block in enumerate(order):
        routed = any(op.name in ROUTED for op in block.operators)
        if any(op.forward for op in block.operators):
            name = block.name if place in (0, len(order) - 1) else f"{block.name} {place - 1}"
            found.append(Layer(name, *priced[id(block)], moe if routed else None))
        moe += routed
    return found


def channel_of(name: str, links: Sequence[tuple[str, float]], efficiency: float) -> Channel:
    """Return the way from a memory to the processor that computes on it."""
    return Channel(name, tuple(links), 0.0, min(bandwidth for _, bandwidth in links) * efficiency)


def _parts(
    block: Block, cost: CostModel, spans: Mapping[Axis, Span], passes: int, issue: float
) -> tuple[Part, Part, Part]:
    groups: tuple[list[Operator], list[Operator], list[Operator]] = ([], [], [])
    behind = False
    for op in block.operators:
        if op.name in ROUTED or not op.forward:
            continue
        behind = behind or op.name in BEHIND
        groups[1 if op.name.startswith(SHARED_EXPERTS) else 2 if behind else 0].append(op)
    first, beside, after = (
        Part(_rows(cost, [w for op in ops for w in op.forward], passes, spans, issue * len(ops)))
        for ops in groups
    )
    return first, beside, after


def _rows(
    cost: CostModel, works: Iterable[Work], count: int, spans: Mapping[Axis, Span], issued: float
) -> Rows:
    total = cost.total(works, spans)
    rows = np.zeros((count, len(COLUMNS)))
    names: Mapping[Any, Any] = {**total.by_bound, **total.by_class}
    for name, seconds in names.items():
        column = LINKS.get(name, name)
        if column in COLUMNS:
            rows[:, COLUMNS.index(column)] += seconds
    waits = np.maximum(issued - rows[:, : len(BOTTLENECKS)].sum(axis=1), 0.0)
    rows[:, list(_HOST)] += waits[:, None]
    return rows


def array_edge(device: Processor, peak: float) -> int:
    """Return how many rows a MAC array computes at once, whether they are there or not; 1 where there is no array.

    Of square arrays that hold a tile of the output each: the root of the multiply-adds of a unit in a clock.
    """
    if device.kind != "npu" or not device.compute.matrix:
        return 1
    return max(1, round(math.sqrt(peak / (2.0 * device.compute.units * device.compute.clock))))


def _peak(device: Processor, format: str) -> float:
    """Return what a processor's fastest units for a format reach; 16-bit weights are widened where it has none for them."""
    try:
        return peak_flops(device, format)
    except MemroofError:
        return peak_flops(device, "fp32", matrix=False)


def _moe(model: Model) -> MixtureOfExperts:
    if model.moe is None:
        raise MemroofError(f"an expert cache needs a mixture of experts; {model.name} has none")
    return model.moe
