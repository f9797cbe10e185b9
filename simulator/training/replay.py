"""The tensors of a step one after the other through PyTorch's allocator: what it holds for what they take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from simulator.graph.work import Numeric
from simulator.training.allocator import Allocation, CachingAllocator
from simulator.training.liveness import Liveness
from simulator.training.schedules import Part, Schedule, in_flight
from simulator.training.work import StageWork

Pass = tuple[int, int, Part]
"""Chunk, micro-batch, and which pass of it."""
GRADIENT = "gradient of "
OUTSIDE = ("context", "communication buffers")
"""Resident bytes that are not PyTorch's."""


@dataclass(frozen=True, slots=True)
class Shards:
    """Tensors of a block under fully sharded data parallelism [B]."""

    gathered: float
    """All its parameters, while it runs."""
    gradients: float
    """All its gradients, until they are reduced behind its backward pass."""
    reduced: float
    """The same in the format in which they are reduced."""
    kept: tuple[float, ...]
    """What stays of them on this rank until the optimizer step, by weight."""
    stays: bool = False
    """Whether parameters are kept from the forward pass to the backward pass."""


def replay(
    chunks: Sequence[Sequence[Liveness]],
    order: Sequence[Pass],
    resident: Iterable[float],
    late: Iterable[float] = (),
    *,
    shards: Sequence[Sequence[Shards]] = (),
    steps: int = 2,
) -> Allocation:
    """Return what PyTorch's allocator holds after some steps of a stage.

    Parameters
    ----------
    chunks : sequence of sequences of Liveness
        The blocks of each model chunk, in forward order.
    order : sequence of (chunk, micro-batch, pass)
        The passes of a step as the stage runs them.
    resident : iterable of number
        Sizes of what is allocated before the first step: parameters, gradient buffers, workspaces [B].
    late : iterable of number
        Sizes of what the first optimizer step allocates, where passes have left room: moments [B].
    shards : sequence of sequences of Shards, optional
        For each block of each chunk what is gathered of parameters that replicas share, and what of gradients stays.
    steps : int
        After the second one nothing changes.
    """
    return _replayed(_Stage(lambda chunk, _: chunks[chunk], shards), order, resident, late, steps)


def stage_allocation(stage: StageWork) -> Allocation:
    """Return what PyTorch's allocator holds of a stage's GPU; context and communication buffers are not its own.

    Moments of the optimizer are taken to be two thirds of its states, a tensor of the average size for each weight; they come
    with the first optimizer step. Gradients cut over replicas come with each backward pass. Of a long schedule only as many
    micro-batches are looked at as fill it up.
    """
    resident = {name: size for name, size in stage.resident.items() if name not in OUTSIDE}
    blocks = [layer for chunk in stage.chunks for layer in chunk.layers]
    weights = max(1, sum(float(op.parameters) > 0 for layer in blocks for op in layer.block.operators))
    states = resident.pop("optimizer states", 0.0)
    shards: list[list[Shards]] = []
    if stage.communication.gather == "each":
        gradients, alone = resident.pop("gradients", 0.0), in_flight(stage.schedule) == 1
        every = sum(message.gradients for held in stage.messages for message in held) or 1.0
        shards = [
            [
                Shards(
                    one.gathered,
                    one.gathered,
                    one.gradients,
                    (gradients * one.gradients / every,),
                    (one.stays and alone) or not stage.communication.reshard,
                )
                for one in held
            ]
            for held in stage.messages
        ]

    def parts(chunk: int, micro_batch: int) -> Sequence[Liveness]:
        return [layer.memory for layer in stage.chunk(chunk, micro_batch).layers]

    sizes = [*resident.values(), *([states / 3.0 / weights] * weights)]
    late = [states / 3.0 / weights] * (2 * weights)
    return _replayed(_Stage(parts, shards), _passes(stage.schedule), sizes, late, steps=2)


def _passes(schedule: Schedule) -> list[Pass]:
    """The passes of as many micro-batches of each chunk as fill the stage up, and two more."""
    limit = in_flight(schedule) + 2
    seen: dict[int, dict[int, None]] = {}
    found: list[Pass] = []
    for row in schedule:
        first = seen.setdefault(row.chunk, {})
        if len(first) < limit:
            first.setdefault(row.micro_batch)
        if row.micro_batch in first:
            found.append((row.chunk, row.micro_batch, row.part))
    return found


def _replayed(
    stage: _Stage, order: Sequence[Pass], resident: Iterable[float], late: Iterable[float], steps: int
) -> Allocation:
    for size in resident:
        stage.allocator.allocate(size)
    for step in range(steps):
        for chunk, micro_batch, part in order:
            stage.run(chunk, micro_batch, part)
        if step == 0:
            for size in late:
                stage.allocator.allocate(size)
        stage.zero_gradients()
    return stage.allocator.used


class _Stage:
    """What lives, by micro-batch, chunk, block and name."""

    def __init__(
        self, parts: Callable[[int, int], Sequence[Liveness]], shards: Sequence[Sequence[Shards]]
    ) -> None:
        self.parts, self.shards = parts, shards
        self.gradients: dict[tuple[int, int], list[int]] = {}
        self.gathered: list[int] = []
        self.kept: dict[tuple[int, int, int], int] = {}
        self.allocator = CachingAllocator()
        self.live: dict[tuple[int, int, int], dict[str, tuple[int, float]]] = {}

    def run(self, chunk: int, micro_batch: int, part: Part) -> None:
        """Run a pass; between the two halves of a backward pass a tensor takes what stays of each block."""
        if part == "forward":
            self.forward(chunk, micro_batch)
        elif part != "weight-gradient":
            self.backward(chunk, micro_batch, apart=part == "input-gradient")
        else:
            for layer in range(len(self.parts(chunk, micro_batch)) - 1, -1, -1):
                self._become(self.live.pop((micro_batch, chunk, layer)), {})

    def forward(self, chunk: int, micro_batch: int) -> None:
        entering: tuple[int, float] | None = None
        parts = self.parts(chunk, micro_batch)
        for layer, part in enumerate(parts):
            self._gather(micro_batch, chunk, layer, layer + 1)
            own: dict[str, tuple[int, float]] = {}
            if entering is not None:
                own["input"] = entering
            for moment in part.forward_moments:
                self._become(own, moment)
            kept = {**part.by_tensor, part.output: part.forward_moments[-1].get(part.output, 0.0)}
            self._become(own, {name: size for name, size in kept.items() if name in own})
            last = layer == len(parts) - 1
            entering = own[part.output] if last else own.pop(part.output)
            if last:
                self.allocator.release(own.pop(part.output)[0])
            self.live[(micro_batch, chunk, layer)] = own
        self._let_go(0)

    def backward(self, chunk: int, micro_batch: int, *, apart: bool) -> None:
        gradient: tuple[int, float] | None = None
        parts = self.parts(chunk, micro_batch)
        for layer in range(len(parts) - 1, -1, -1):
            part = parts[layer]
            self._gather(micro_batch, chunk, layer, layer - 1)
            own = self.live.pop((micro_batch, chunk, layer))
            if gradient is not None:
                own[f"{GRADIENT}{part.output}"] = gradient
            for moment in part.backward_moments:
                self._become(own, moment)
            gradient = own.pop(f"{GRADIENT}input", None)
            self._become(own, {"kept between": part.between} if apart else {})
            if apart:
                self.live[(micro_batch, chunk, layer)] = own
            self._reduce(chunk, layer)
            if (micro_batch, chunk, layer) in self.kept:
                self.allocator.release(self.kept.pop((micro_batch, chunk, layer)))
        self._let_go(0)
        if gradient is not None:
            self.allocator.release(gradient[0])

    def zero_gradients(self) -> None:
        """Free the gradients that a step has left."""
        for blocks in self.gradients.values():
            for block in blocks:
                self.allocator.release(block)
        self.gradients.clear()

    def _gather(self, micro_batch: int, chunk: int, layer: int, ahead: int) -> None:
        """Gather a block's parameters (the first one's) and, one ahead, the next one's; let go of those before."""
        if not self.shards:
            return
        if not self.gathered:
            self._fetch(micro_batch, chunk, layer)
        if 0 <= ahead < len(self.shards[chunk]):
            self._fetch(micro_batch, chunk, ahead)
        self._let_go(2)

    def _fetch(self, micro_batch: int, chunk: int, layer: int) -> None:
        own, key = self.shards[chunk][layer], (micro_batch, chunk, layer)
        if not own.stays:
            self.gathered.append(self.allocator.allocate(own.gathered))
        elif key not in self.kept:
            self.kept[key] = self.allocator.allocate(own.gathered)

    def _let_go(self, count: int) -> None:
        while len(self.gathered) > count:
            self.allocator.release(self.gathered.pop(0))

    def _reduce(self, chunk: int, layer: int) -> None:
        if not self.shards:
            return
        own = self.shards[chunk][layer]
        passing = [self.allocator.allocate(own.gradients), self.allocator.allocate(own.reduced)]
        if (chunk, layer) not in self.gradients:
            self.gradients[(chunk, layer)] = [self.allocator.allocate(size) for size in own.kept]
        for block in passing:
            self.allocator.release(block)

    def _become(self, own: dict[str, tuple[int, float]], moment: Mapping[str, Numeric]) -> None:
        """Free what is gone and allocate what is new; a gradient that goes by another name is the same one."""
        gone = [name for name in own if name not in moment]
        new = [name for name in moment if name not in own]
        for name in gone:
            block, size = own.pop(name)
            same = next((one for one in new if _passed_on(name, one) and float(moment[one]) == size), None)
            if same is None:
                self.allocator.release(block)
            else:
                new.remove(same)
                own[same] = (block, size)
        for name in new:
            size = float(moment[name])
            if size > 0:
                own[name] = (self.allocator.allocate(size), size)


def _passed_on(name: str, other: str) -> bool:
    return name.startswith(GRADIENT) and other.startswith(GRADIENT)
