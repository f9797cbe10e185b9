"""What one pass of a micro-batch through a model chunk costs and keeps: seconds by part, bytes saved."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from types import MappingProxyType
from typing import Any, Literal

from simulator.cost import Breakdown, CostModel, Overlap
from simulator.cost.codec import codec_times
from simulator.cost.numeric import larger
from simulator.graph import Axis, Block, Collective, Elementwise, ModelGraph, Numeric, Operator, Route, Work
from simulator.specs import Span, TrainingStrategy
from simulator.specs.trainable_spec import Codec
from simulator.training.liveness import Liveness, chain, liveness
from simulator.training.schedules import Part

PARTS: tuple[Part, ...] = ("forward", "backward", "input-gradient", "weight-gradient")
Issue = Literal["eager", "engine", "captured"]
EXCHANGE = "expert link"
"""What binds a pass that waits for tokens on their way to experts and back."""


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
    reads: bool = False
    """Whether the CPU waits for all before, to read how many tokens go where, before it issues this one."""

    @property
    def time(self) -> float:
        """Seconds from the end of the operator before to its own."""
        return self.device + self.waiting


@dataclass(frozen=True, slots=True)
class Issued:
    """Operators that a CPU issues one after the other to a stream that runs them in order.

    An operator starts when it is issued and the one before has ended. Where the CPU reads what the device has counted (tokens of
    each expert), it goes on when all before has ended. From when the CPU is free and when the device is to when they are again,
    the largest sum over any way counts (a max-plus matrix of two by two), so that sequences compose.
    """

    host: float = 0.0
    """From CPU to CPU: seconds of issuing, and of waiting for what was issued."""
    device: float = 0.0
    """From device to device: seconds of kernels, and of issuing what the CPU waits to issue."""
    end: float = 0.0
    """From CPU to device: seconds of the whole sequence when both begin together."""
    read: float = -math.inf
    """From device to CPU: seconds until it goes on behind what it waits for; none where it waits for nothing."""
    busy: float = 0.0
    """Seconds of kernels."""

    def then(self, other: Issued) -> Issued:
        """Return this sequence and another one behind it."""
        return Issued(
            max(self.host + other.host, self.end + other.read),
            max(self.device + other.device, self.read + other.end),
            max(self.end + other.device, self.host + other.end),
            max(self.read + other.host, self.device + other.read),
            self.busy + other.busy,
        )

    def times(self, count: int) -> Issued:
        """Return the sequence ``count`` times."""
        total, power = Issued(), self
        while count > 0:
            total = total.then(power) if count % 2 else total
            power, count = power.then(power), count // 2
        return total


def issued(operators: Iterable[OperatorPass]) -> Issued:
    """Return the sums of a sequence of operators."""
    total = Issued()
    for op in operators:
        both = op.host + op.device
        read = (
            Issued(op.host, both, both, op.host, op.device)
            if op.reads
            else Issued(op.host, op.device, both, busy=op.device)
        )
        total = total.then(read)
    return total


@dataclass(frozen=True, slots=True)
class LayerPass:
    """The passes of one micro-batch through one block: a layer, the embedding or the head with the loss."""

    block: Block
    operators: Mapping[Part, tuple[OperatorPass, ...]]
    """In execution order; repeated forward operators stand before the backward ones that need them."""
    times: Mapping[Part, Breakdown]
    issued: Mapping[Part, Issued]
    memory: Liveness


@dataclass(frozen=True)
class ChunkPass:
    """The passes of one micro-batch through a model chunk: its layers, with embedding or head where it has them."""

    layers: tuple[LayerPass, ...]
    """In forward order."""
    operators: Mapping[Part, tuple[tuple[OperatorPass, ...], ...]]
    """Of each layer, in execution order (backward from the last layer), with what the device waits for the CPU."""
    times: Mapping[Part, Breakdown]

    def order(self, part: Part) -> range:
        """Indices of layers in execution order."""
        count = len(self.layers)
        return range(count) if part == "forward" else range(count - 1, -1, -1)

    def seconds(self, part: Part) -> float:
        """Seconds of a pass [s]."""
        return float(self.times[part].time)

    def exchange(self, part: Part) -> float:
        """Seconds of a pass that are bound by exchanges with experts [s]."""
        return float(self.times[part].by_bound.get(EXCHANGE, 0.0))

    @cached_property
    def memory(self) -> Liveness:
        """What one micro-batch keeps in the chunk, and needs beyond at the fullest moments of its passes."""
        return chain(layer.memory for layer in self.layers)


def paired_seconds(seconds: Numeric, exchange: Numeric, occupancy: float) -> Any:
    """Return the seconds of passes that run together: expert exchanges of each beside the rest of the others.

    DeepSeek-AI 2024 (arXiv:2412.19437), section 3.2.1. The exchanges' kernels take the share ``occupancy`` of the units.

    Parameters
    ----------
    seconds : number or array
        Of the passes one after the other [s].
    exchange : number or array
        Of these, the expert exchanges [s].
    occupancy : float
    """
    rest = seconds - exchange
    return rest + larger(exchange - rest, occupancy * exchange)


def issue(strategy: TrainingStrategy) -> Issue:
    """Return what issues the operators of a strategy."""
    if strategy.cuda_graphs:
        return "captured"
    return "engine" if strategy.transformer_engine else "eager"


class PassPricer:
    """Prices the passes of model chunks; equal blocks are priced once.

    Parameters
    ----------
    graph, cost, spans
        What is priced, by whom, over which groups.
    parts : tuple of str
        Which passes there are: the backward pass as one, its input and weight gradients apart, or both.
    issue : str
        What issues operators: the CPU one by one (``eager``), the same with Transformer Engine's modules (``engine``), or nothing
        in a ``captured`` graph.
    dropless : bool
        Whether shapes depend on how many tokens go to an expert, so that the CPU waits for the counts.
    overlap : str
        What tensor-parallel collectives run beside: ``none``, ``backward`` products, or ``chunked`` beside their own.
    shared_experts : bool
        Whether shared experts run beside the dispatch to the others.
    codec : Codec, optional
        Of the activations that are kept for the backward pass.
    """

    def __init__(
        self, graph: ModelGraph, cost: CostModel, spans: Mapping[Axis, Span], *,
        parts: tuple[Part, ...] = PARTS[:2], issue: Issue = "eager", dropless: bool = True, overlap: Overlap = "backward",
        shared_experts: bool = False, codec: Codec | None = None,
    ) -> None:  # fmt: skip
        self._graph, self._cost, self._spans, self.parts = graph, cost, spans, parts
        self._overlap, self._shared_experts, self._codec = overlap, shared_experts, codec
        self._groups = {axis: span.size for axis, span in spans.items()}
        training = cost.calibration.training
        seconds = {"eager": training.eager_operator, "engine": training.engine_operator, "captured": 0.0}
        self._operator = float(seconds[issue] or 0.0)
        self._dropless = dropless and issue != "captured"
        self._layers: dict[tuple[int, frozenset[str]], LayerPass] = {}

    def chunk(self, layers: Sequence[tuple[Block, frozenset[str]]]) -> ChunkPass:
        """Return the passes through blocks, each with the names of its operators that are computed again."""
        sequence = [self.layer(block, again) for block, again in layers]
        operators: dict[Part, tuple[tuple[OperatorPass, ...], ...]] = {}
        times: dict[Part, Breakdown] = {}
        for part in self.parts:
            ordered = sequence if part == "forward" else sequence[::-1]
            times[part] = _repeated([layer.times[part] for layer in ordered])
            found = [layer.operators[part] for layer in ordered]
            waiting = _waiting(_sequence([layer.issued[part] for layer in ordered]))
            if waiting > 0.0:
                times[part] = times[part] + _host(waiting)
                found = _paced(found)
            operators[part] = tuple(found)
        return ChunkPass(tuple(sequence), MappingProxyType(operators), MappingProxyType(times))

    def layer(self, block: Block, again: frozenset[str] = frozenset()) -> LayerPass:
        """Return the passes through one block."""
        key = (id(block), again)
        found = self._layers.get(key)
        if found is None:
            found = self._layers[key] = self._price(block, again)
        return found

    def _price(self, block: Block, again: frozenset[str]) -> LayerPass:
        priced = {
            apart: self._cost.block_times(
                block, self._spans, overlap=self._overlap, apart=apart, shared_experts=self._shared_experts
            )
            for apart in {part in ("input-gradient", "weight-gradient") for part in self.parts}
        }
        repeated = [op for op in block.operators if op.name in again]
        passes: dict[Part, tuple[OperatorPass, ...]] = {}
        for part in self.parts:
            times = priced[part in ("input-gradient", "weight-gradient")]
            found = []
            for op in block.operators if part == "forward" else reversed(block.operators):
                works = _works(op, part)
                if works:
                    found.append(self._pass(op.name, getattr(times[op.name], part.replace("-", "_")), works))
            if part in ("backward", "input-gradient"):
                once_more = [
                    self._pass(f"{op.name} (again)", times[op.name].forward, op.forward) for op in repeated
                ]
                found = _insert(once_more, found, again)
            passes[part] = tuple(found)
        memory = liveness(
            block,
            again,
            numerics=self._graph.numerics,
            groups=self._groups,
            placeholders=block is self._graph.head,
        )
        if self._codec is not None and float(memory.saved):
            passes, memory = _coded(passes, memory, self._codec)
        return LayerPass(
            block,
            MappingProxyType(passes),
            MappingProxyType({part: _sum([op.breakdown for op in found]) for part, found in passes.items()}),
            MappingProxyType({part: issued(found) for part, found in passes.items()}),
            memory,
        )

    def _pass(self, name: str, breakdown: Breakdown, works: tuple[Work, ...]) -> OperatorPass:
        kernels = sum(
            float(work.kernels) if isinstance(work, Elementwise) else 1.0
            for work in works
            if not (isinstance(work, Collective) and self._spans[work.axis].size == 1)
        )
        reads = self._dropless and any(isinstance(work, Route) for work in works)
        return OperatorPass(name, breakdown, float(breakdown.time), kernels * self._operator, reads=reads)


def _coded(
    passes: dict[Part, tuple[OperatorPass, ...]], memory: Liveness, codec: Codec
) -> tuple[dict[Part, tuple[OperatorPass, ...]], Liveness]:
    """Code what a forward pass saves and decode it for the backward pass: beside other work as far as it comes in chunks."""
    encode, decode = codec_times(memory.saved, codec)

    def exposed(seconds: float, beside: tuple[OperatorPass, ...]) -> float:
        hidden = sum(op.time for op in beside) * (codec.chunks > 1)
        return max(seconds - hidden, seconds / codec.chunks)

    found = dict(passes)
    back: Part = "backward" if "backward" in passes else "input-gradient"
    coded: tuple[tuple[Part, float, str], ...] = (
        ("forward", float(encode), "encode activations"),
        (back, float(decode), "decode activations"),
    )
    for part, seconds, name in coded:
        time = exposed(seconds, passes[part])
        operator = OperatorPass(
            name, Breakdown({"transfer": time}, {"memory": time}, 0.0, {"transfer": time**2}), time, 0.0
        )
        own = passes[part]
        found[part] = (*own, operator) if part == "forward" else (operator, *own)
    small = {name: size / codec.ratio for name, size in memory.by_tensor.items()}
    less = memory.saved - memory.saved / codec.ratio
    return found, replace(
        memory, saved=memory.saved / codec.ratio, by_tensor=small,
        forward_peak=memory.forward_peak + less, backward_peak=memory.backward_peak + less,
        between=memory.between / codec.ratio,
    )  # fmt: skip


def _works(operator: Operator, part: Part) -> tuple[Work, ...]:
    works: tuple[Work, ...] = getattr(operator, part.replace("-", "_"))
    return works


def _waiting(sums: Issued) -> float:
    """Seconds in which the device waits for the CPU; the noise of the sums is none."""
    waiting = sums.end - sums.busy
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
            issue = max(issue, end if op.reads else 0.0) + op.host
            waiting = max(0.0, issue - end)
            end += waiting + op.device
            found.append(replace(op, waiting=waiting) if waiting else op)
        paced.append(tuple(found))
    return paced


def _insert(
    repeated: list[OperatorPass], backward: list[OperatorPass], again: frozenset[str]
) -> list[OperatorPass]:
    """Place the repeated forward operators right before the backward pass of the last of them."""
    position = next((i for i, op in enumerate(backward) if op.name in again), 0)
    return [*backward[:position], *repeated, *backward[position:]]


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
