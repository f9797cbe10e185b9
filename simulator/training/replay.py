"""The tensors of a step one after the other through PyTorch's allocator: what it holds for what they take."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from simulator.training.allocator import Allocation, CachingAllocator
from simulator.training.liveness import Liveness

Pass = tuple[int, int, Literal["forward", "backward"]]
"""Chunk, micro-batch, and which pass of it."""
GRADIENT = "gradient of "


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
    stage = _Stage(chunks, shards)
    for size in resident:
        stage.allocator.allocate(size)
    for step in range(steps):
        for chunk, micro_batch, direction in order:
            getattr(stage, direction)(chunk, micro_batch)
        if step == 0:
            for size in late:
                stage.allocator.allocate(size)
        stage.zero_gradients()
    return stage.allocator.used


class _Stage:
    """What lives, by micro-batch, chunk, block and name."""

    def __init__(self, chunks: Sequence[Sequence[Liveness]], shards: Sequence[Sequence[Shards]]) -> None:
        self.chunks, self.shards = chunks, shards
        self.gradients: dict[tuple[int, int], list[int]] = {}
        self.gathered: list[int] = []
        self.allocator = CachingAllocator()
        self.live: dict[tuple[int, int, int], dict[str, tuple[int, float]]] = {}

    def forward(self, chunk: int, micro_batch: int) -> None:
        entering: tuple[int, float] | None = None
        for layer, part in enumerate(self.chunks[chunk]):
            self._gather(chunk, layer, layer + 1)
            own: dict[str, tuple[int, float]] = {}
            if entering is not None:
                own["input"] = entering
            for moment in part.forward_moments:
                self._become(own, moment)
            kept = {**part.by_tensor, part.output: part.forward_moments[-1].get(part.output, 0.0)}
            self._become(own, {name: size for name, size in kept.items() if name in own})
            last = layer == len(self.chunks[chunk]) - 1
            entering = own[part.output] if last else own.pop(part.output)
            if last:
                self.allocator.release(own.pop(part.output)[0])
            self.live[(micro_batch, chunk, layer)] = own
        self._let_go(0)

    def backward(self, chunk: int, micro_batch: int) -> None:
        gradient: tuple[int, float] | None = None
        for layer in range(len(self.chunks[chunk]) - 1, -1, -1):
            part = self.chunks[chunk][layer]
            self._gather(chunk, layer, layer - 1)
            own = self.live.pop((micro_batch, chunk, layer))
            if gradient is not None:
                own[f"{GRADIENT}{part.output}"] = gradient
            for moment in part.backward_moments:
                self._become(own, moment)
            gradient = own.pop(f"{GRADIENT}input", None)
            self._become(own, {})
            self._reduce(chunk, layer)
        self._let_go(0)
        if gradient is not None:
            self.allocator.release(gradient[0])

    def zero_gradients(self) -> None:
        """Free the gradients that a step has left."""
        for blocks in self.gradients.values():
            for block in blocks:
                self.allocator.release(block)
        self.gradients.clear()

    def _gather(self, chunk: int, layer: int, ahead: int) -> None:
        """Gather a block's parameters (the first one's) and, one ahead, the next one's; let go of those before."""
        if not self.shards:
            return
        own = self.shards[chunk]
        if not self.gathered:
            self.gathered.append(self.allocator.allocate(own[layer].gathered))
        if 0 <= ahead < len(own):
            self.gathered.append(self.allocator.allocate(own[ahead].gathered))
        self._let_go(2)

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

    def _become(self, own: dict[str, tuple[int, float]], moment: Mapping[str, object]) -> None:
        """Free what is gone and allocate what is new; a gradient that goes by another name is the same one."""
        gone = [name for name in own if name not in moment]
        new = [name for name in moment if name not in own]
        for name in gone:
            block, size = own.pop(name)
            same = next((one for one in new if _passed_on(name, one) and float(moment[one]) == size), None)  # type: ignore[arg-type]
            if same is None:
                self.allocator.release(block)
            else:
                new.remove(same)
                own[same] = (block, size)
        for name in new:
            size = float(moment[name])  # type: ignore[arg-type]
            if size > 0:
                own[name] = (self.allocator.allocate(size), size)


def _passed_on(name: str, other: str) -> bool:
    return name.startswith(GRADIENT) and other.startswith(GRADIENT)
