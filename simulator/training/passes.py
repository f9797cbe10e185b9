"""What one pass of a micro-batch through a model chunk costs and keeps: seconds by part, bytes saved."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from simulator.cost import Breakdown, CostModel
from simulator.graph import Axis, Block, Collective, Elementwise, ModelGraph, Operator, Work
from simulator.graph.graph import Recompute
from simulator.specs import Span


@dataclass(frozen=True, slots=True)
class OperatorPass:
    """One operator in a pass: its name and seconds; where a collective hides behind a product, only what is left over."""

    name: str
    breakdown: Breakdown
    device: float
    """Seconds of its kernels."""
    host: float
    """Seconds in which the CPU issues them."""
    waiting: float = 0.0
    """Seconds in which the device has nothing to do before its kernels are issued."""

    @property
    def time(self) -> float:
        """Seconds from the end of the operator before to its own."""
        return self.device + self.waiting


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
class Issued:
    """Operators that a CPU issues one after the other to a stream that runs them in order.

    An operator starts when it is issued and the one before has ended. Over a sequence the end is the largest, over the
    operators, of the host's seconds up to one and the device's from it on: composing two sequences needs these three sums.
    """

    host: float = 0.0
    device: float = 0.0
    end: float = 0.0

    def then(self, other: Issued) -> Issued:
        """Return this sequence and another one behind it."""
        return Issued(
            self.host + other.host,
            self.device + other.device,
            max(self.end + other.device, self.host + other.end),
        )

    def times(self, count: int) -> Issued:
        """Return the sequence ``count`` times: all but one at the pace of the slower side."""
        if count < 1:
            return Issued()
        return Issued(
            count * self.host, count * self.device, self.end + (count - 1) * max(self.host, self.device)
        )


def issued(operators: Iterable[OperatorPass]) -> Issued:
    """Return the sums of a sequence of operators."""
    total = Issued()
    for op in operators:
        total = total.then(Issued(op.host, op.device, op.host + op.device))
    return total


@dataclass(frozen=True, slots=True)
class _BlockPass:
    forward: tuple[OperatorPass, ...]
    backward: tuple[OperatorPass, ...]
    forward_time: Breakdown
    backward_time: Breakdown
    saved: float
    working: float
    forward_issued: Issued
    backward_issued: Issued


class PassPricer:
    """Prices the passes of model chunks; equal blocks are priced once.

    ``eager`` where the CPU issues every operator in every pass; a captured graph is issued at once. ``overlap`` where
    collectives of the backward pass run beside the products that may hide them.
    """

    def __init__(
        self, graph: ModelGraph, cost: CostModel, spans: Mapping[Axis, Span], recompute: Recompute, *,
        eager: bool = True, overlap: bool = True,
    ) -> None:  # fmt: skip
        self._graph, self._cost, self._spans, self._recompute = graph, cost, spans, recompute
        self._overlap = overlap
        self._operator = float(cost.calibration.training.eager_operator or 0.0) if eager else 0.0
        self._blocks: dict[tuple[int, Recompute], _BlockPass] = {}

    def chunk(self, layers: tuple[int, ...], *, embedding: bool, head: bool) -> ChunkPass:
        """Return the passes through consecutive layers, with the embedding before or the head behind them."""
        parts = [self._block(self._graph.blocks[self._graph.layers[i]], self._recompute) for i in layers]
        first = [self._block(self._graph.embedding, "none")] if embedding else []
        last = [self._block(self._graph.head, "none")] if head else []
        sequence = [*first, *parts, *last]
        forward = [part.forward for part in sequence]
        backward = [part.backward for part in reversed(sequence)]
        forward_time = _repeated([part.forward_time for part in sequence])
        backward_time = _repeated([part.backward_time for part in sequence])
        by_layer = [part.backward_time for part in reversed(parts)]
        if head:
            by_layer[0] = last[0].backward_time + by_layer[0]
        if embedding:
            by_layer[-1] = by_layer[-1] + first[0].backward_time
        waits = _sequence([part.forward_issued for part in sequence])
        if _waiting(waits) > 0.0:
            forward_time = forward_time + _host(_waiting(waits))
            forward = _paced(forward)
        waits = _sequence([part.backward_issued for part in reversed(sequence)])
        if _waiting(waits) > 0.0:
            backward_time = backward_time + _host(_waiting(waits))
            backward = _paced(backward)
            by_layer = _with_waits(by_layer, backward, head=head, embedding=embedding)
        return ChunkPass(
            tuple(op for part in forward for op in part),
            tuple(op for part in backward for op in part),
            tuple(by_layer),
            forward_time,
            backward_time,
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
        times = {
            op.name: self._cost.operator_times(op if self._overlap else _exposed(op), self._spans)
            for op in block.operators
        }
        forward = tuple(self._pass(op.name, times[op.name].forward, op.forward) for op in block.operators)
        again = block.recomputed(recompute)
        backward = [
            self._pass(op.name, times[op.name].backward, op.backward)
            for op in reversed(block.operators)
            if op.backward
        ]
        repeated = [self._pass(f"{op.name} (again)", times[op.name].forward, op.forward) for op in again]
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
            issued(forward),
            issued(ordered),
        )

    def _pass(self, name: str, breakdown: Breakdown, works: tuple[Work, ...]) -> OperatorPass:
        kernels = sum(
            work.kernels if isinstance(work, Elementwise) else 1
            for work in works
            if not (isinstance(work, Collective) and self._spans[work.axis].size == 1)
        )
        return OperatorPass(name, breakdown, float(breakdown.time), kernels * self._operator)


def _exposed(operator: Operator) -> Operator:
    """Return an operator whose collectives hide behind nothing."""

    def plain(works: tuple[Work, ...]) -> tuple[Work, ...]:
        return tuple(replace(work, hidden_by="") if isinstance(work, Collective) else work for work in works)

    return replace(
        operator,
        input_gradient=plain(operator.input_gradient),
        weight_gradient=plain(operator.weight_gradient),
    )


def _waiting(sums: Issued) -> float:
    """Seconds in which the device waits for the CPU; the noise of the sums is none."""
    waiting = sums.end - sums.device
    return waiting if waiting > 1e-12 * sums.end else 0.0


def _host(seconds: float) -> Breakdown:
    """Return time in which the device waits for the CPU: nobody's kernel."""
    return Breakdown({"host": seconds}, {"host": seconds}, 0.0, {"host": seconds * seconds})


def _sequence(parts: Sequence[Issued]) -> Issued:
    """Return parts one after the other; runs of equal ones at once."""
    total = Issued()
    for part, run in groupby(parts):
        total = total.then(part.times(len(list(run))))
    return total


def _paced(parts: Sequence[tuple[OperatorPass, ...]]) -> list[tuple[OperatorPass, ...]]:
    """Return the operators of a pass, each with how long the device waits for it."""
    issue = end = 0.0
    paced: list[tuple[OperatorPass, ...]] = []
    for part in parts:
        found: list[OperatorPass] = []
        for op in part:
            issue += op.host
            waiting = max(0.0, issue - end)
            end += waiting + op.device
            found.append(replace(op, waiting=waiting) if waiting else op)
        paced.append(tuple(found))
    return paced


def _with_waits(
    layers: list[Breakdown], parts: Sequence[tuple[OperatorPass, ...]], *, head: bool, embedding: bool
) -> list[Breakdown]:
    """Add what each layer of a backward pass waits; head and embedding belong to their neighbours."""
    waits = [sum(op.waiting for op in part) for part in parts]
    if head:
        waits[:2] = [waits[0] + waits[1]]
    if embedding:
        waits[-2:] = [waits[-2] + waits[-1]]
    return [layer + _host(wait) if wait else layer for layer, wait in zip(layers, waits, strict=True)]


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
