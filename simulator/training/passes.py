"""What one pass of a micro-batch through a model chunk costs and keeps: seconds by part, bytes saved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from simulator.cost import Breakdown, CostModel
from simulator.graph import Axis, Block, ModelGraph, Operator
from simulator.graph.graph import Recompute
from simulator.specs import Span


@dataclass(frozen=True, slots=True)
class OperatorPass:
    """One operator in a pass: its name and seconds; where a collective hides behind a product, only what is left over."""

    name: str
    breakdown: Breakdown


@dataclass(frozen=True, slots=True)
class ChunkPass:
    """The forward and backward pass of one micro-batch through a model chunk, operator by operator."""

    forward: tuple[OperatorPass, ...]
    backward: tuple[OperatorPass, ...]
    """In execution order; repeated forward operators stand before the backward ones that need them."""
    layer_backward: tuple[Breakdown, ...]
    """The backward pass cut at layers, in execution order (embedding and head belong to their neighbours)."""
    forward_time: Breakdown
    backward_time: Breakdown
    saved: float
    """Bytes kept from the forward pass until the backward pass."""
    working: float
    """Bytes that recomputation brings back, one layer at a time."""


@dataclass(frozen=True, slots=True)
class _BlockPass:
    forward: tuple[OperatorPass, ...]
    backward: tuple[OperatorPass, ...]
    forward_time: Breakdown
    backward_time: Breakdown
    saved: float
    working: float


class PassPricer:
    """Prices the passes of model chunks; equal blocks are priced once."""

    def __init__(
        self, graph: ModelGraph, cost: CostModel, spans: Mapping[Axis, Span], recompute: Recompute
    ) -> None:
        self._graph, self._cost, self._spans, self._recompute = graph, cost, spans, recompute
        self._blocks: dict[tuple[int, Recompute], _BlockPass] = {}

    def chunk(self, layers: tuple[int, ...], *, embedding: bool, head: bool) -> ChunkPass:
        """Return the passes through consecutive layers, with the embedding before or the head behind them."""
        parts = [self._block(self._graph.blocks[self._graph.layers[i]], self._recompute) for i in layers]
        first = [self._block(self._graph.embedding, "none")] if embedding else []
        last = [self._block(self._graph.head, "none")] if head else []
        sequence = [*first, *parts, *last]
        by_layer = [part.backward_time for part in reversed(parts)]
        if head:
            by_layer[0] = last[0].backward_time + by_layer[0]
        if embedding:
            by_layer[-1] = by_layer[-1] + first[0].backward_time
        return ChunkPass(
            tuple(op for part in sequence for op in part.forward),
            tuple(op for part in reversed(sequence) for op in part.backward),
            tuple(by_layer),
            _repeated([part.forward_time for part in sequence]),
            _repeated([part.backward_time for part in sequence]),
            sum(part.saved for part in sequence),
            max((part.working for part in sequence), default=0.0),
        )

    def _block(self, block: Block, recompute: Recompute) -> _BlockPass:
        key = (id(block), recompute)
        found = self._blocks.get(key)
        if found is None:
            found = self._blocks[key] = self._price(block, recompute)
        return found

    def _price(self, block: Block, recompute: Recompute) -> _BlockPass:
        times = {op.name: self._cost.operator_times(op, self._spans) for op in block.operators}
        forward = tuple(OperatorPass(op.name, times[op.name].forward) for op in block.operators)
        again = block.recomputed(recompute)
        backward = [
            OperatorPass(op.name, times[op.name].backward) for op in reversed(block.operators) if op.backward
        ]
        repeated = [OperatorPass(f"{op.name} (again)", times[op.name].forward) for op in again]
        ordered = _insert(repeated, backward, again)
        saved = float(block.saved_bytes(recompute))
        working = max(0.0, float(block.saved_bytes("none")) - saved) if again else 0.0
        return _BlockPass(
            forward,
            ordered,
            _sum([op.breakdown for op in forward]),
            _sum([op.breakdown for op in ordered]),
            saved,
            working,
        )


def _insert(
    repeated: list[OperatorPass], backward: list[OperatorPass], again: tuple[Operator, ...]
) -> tuple[OperatorPass, ...]:
    """Place the repeated forward operators right before the backward pass of the last of them."""
    if not again:
        return tuple(backward)
    names = {op.name for op in again}
    position = next((i for i, op in enumerate(backward) if op.name in names), 0)
    return (*backward[:position], *repeated, *backward[position:])


def _repeated(parts: list[Breakdown]) -> Breakdown:
    """Sum passes through layers; equal layers are the same kernels again."""
    counts: dict[int, int] = {}
    for part in parts:
        counts[id(part)] = counts.get(id(part), 0) + 1
    distinct = {id(part): part for part in parts}
    return _sum([distinct[key] * count if count > 1 else distinct[key] for key, count in counts.items()])


def _sum(parts: list[Breakdown]) -> Breakdown:
    total = Breakdown()
    for part in parts:
        total = total + part
    return total
