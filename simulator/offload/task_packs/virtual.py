"""Virtualised GPU memory: tensors swapped on demand, the least recently used out first, micro-batch by micro-batch.

What task swapping is compared with (Li et al. 2021, HotOS, section on the costs of virtualisation): every eviction writes
the tensor back, as the migration of a page does; nothing is fetched ahead, so that copies and computation take turns. Each
layer keeps its input from the forward to the backward pass, which computes the rest again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simulator.cost import CostModel
from simulator.engine import Timeline, execute
from simulator.graph import Elementwise
from simulator.offload.columns import BOTTLENECKS, COLUMNS, Rows
from simulator.offload.emit import COPYING, Emitter
from simulator.offload.task_packs.layers import Layers
from simulator.offload.task_packs.server import Server
from simulator.offload.task_packs.tasks import all_reduce_time
from simulator.offload.tiers import DRAM, GPU

WEIGHTS, GRADIENTS, STATES, ACTIVATIONS = "weights", "gradients", "optimizer states", "activations"
Tensor = tuple[str, int, int]
"""What it is, its layer, and its micro-batch (-1 for what all share)."""


@dataclass(frozen=True, slots=True)
class Step:
    """One operation: a layer's forward or backward pass of a micro-batch, or its update; bytes moved before it."""

    which: str
    layer: int
    fetched: float
    evicted: float


@dataclass(frozen=True)
class Demand:
    """The operations of an iteration on one GPU, and what they swap."""

    micro_batch: int
    micro_batches: int
    steps: tuple[Step, ...]
    flushed: float
    """Bytes written back at the end."""
    swapped: dict[str, float]
    """Bytes in both directions by what they are."""
    peak: float
    """Most bytes in use."""


def demand(layers: Layers, capacity: float, micro_batch: int, micro_batches: int) -> Demand | None:
    """Return what an iteration swaps on demand; None where an operation alone exceeds the memory.

    Parameters
    ----------
    layers : Layers
        What is trained.
    capacity : float
        Bytes of the GPU.
    micro_batch, micro_batches : int
        Samples of one, and how many.
    """
    return _Memory(layers, capacity, micro_batch, micro_batches).run()


class _Memory:
    def __init__(self, layers: Layers, capacity: float, micro_batch: int, micro_batches: int) -> None:
        self.layers, self.capacity, self.count = layers, capacity, micro_batches
        self.table = layers.at(micro_batch)
        self.micro_batch = micro_batch
        self.resident: OrderedDict[Tensor, float] = OrderedDict()
        self.away: dict[Tensor, float] = {}
        self.used = self.peak = 0.0
        self.swapped: dict[str, float] = {}
        self.steps: list[Step] = []
        edges = np.arange(layers.count + 1)
        weights, gradients, inputs = layers.weights, layers.gradients, self.table.inputs[:-1]
        self.working = {
            "forward": self.table.pack_memory("forward", edges) - weights - inputs,
            "backward": self.table.pack_memory("backward", edges) - weights - gradients - inputs,
        }

    def run(self) -> Demand | None:
        layers, last = self.layers, self.layers.count - 1
        for layer in range(layers.count):
            self.away[WEIGHTS, layer, -1] = float(layers.weights[layer])
            self.away[STATES, layer, -1] = float(layers.state[layer])
        for batch in range(self.count):
            self.away[ACTIVATIONS, 0, batch] = float(self.table.inputs[0])
            for layer in range(last + 1):
                if not self._step("forward", layer, (self._weights(layer), self._input(layer, batch))):
                    return None
                if layer < last:
                    self._make(self._input(layer + 1, batch), float(self.table.inputs[layer + 1]))
            for layer in range(last, -1, -1):
                needed = [self._weights(layer), self._input(layer, batch)]
                needed += [self._output_gradient(layer, batch)] if layer < last else []
                needed += [self._gradient(layer)] if batch else []
                if not self._step("backward", layer, needed):
                    return None
                if batch == 0:
                    self._make(self._gradient(layer), float(layers.gradients[layer]))
                self._free(self._input(layer, batch))
                if layer < last:
                    self._free(self._output_gradient(layer, batch))
                if layer:
                    self._make(self._output_gradient(layer - 1, batch), float(self.table.inputs[layer]))
        for layer in range(layers.count):
            needed = [self._weights(layer), self._gradient(layer), (STATES, layer, -1)]
            if not self._step("update", layer, needed):
                return None
            self._free(self._gradient(layer))
        flushed = sum(self.resident.values())
        for tensor, size in self.resident.items():
            self._count(tensor, size)
        return Demand(self.micro_batch, self.count, tuple(self.steps), flushed, self.swapped, self.peak)

    def _step(self, which: str, layer: int, needed: Sequence[Tensor]) -> bool:
        """Bring what an operation needs, making room for it and for what it needs while it runs."""
        working = max(0.0, float(self.working[which][layer])) if which in self.working else 0.0
        fetched = evicted = 0.0
        missing = [tensor for tensor in needed if tensor not in self.resident]
        coming = sum(self.away[tensor] for tensor in missing)
        for tensor in needed:
            if tensor in self.resident:
                self.resident.move_to_end(tensor)
        keep = set(needed)
        while self.used + coming + working > self.capacity:
            oldest = next((tensor for tensor in self.resident if tensor not in keep), None)
            if oldest is None:
                return False
            size = self.resident.pop(oldest)
            self.used -= size
            self.away[oldest] = size
            evicted += size
            self._count(oldest, size)
        for tensor in missing:
            size = self.away.pop(tensor)
            self.resident[tensor] = size
            self.used += size
            fetched += size
            self._count(tensor, size)
        self.peak = max(self.peak, self.used + working)
        self.steps.append(Step(which, layer, fetched, evicted))
        return True

    def _count(self, tensor: Tensor, size: float) -> None:
        self.swapped[tensor[0]] = self.swapped.get(tensor[0], 0.0) + size

    def _make(self, tensor: Tensor, size: float) -> None:
        """Keep what an operation has written: it was in its working memory."""
        self.resident[tensor] = size
        self.used += size

    def _free(self, tensor: Tensor) -> None:
        self.used -= self.resident.pop(tensor)

    @staticmethod
    def _weights(layer: int) -> Tensor:
        return WEIGHTS, layer, -1

    @staticmethod
    def _gradient(layer: int) -> Tensor:
        return GRADIENTS, layer, -1

    @staticmethod
    def _input(layer: int, batch: int) -> Tensor:
        return ACTIVATIONS, layer, batch

    @staticmethod
    def _output_gradient(layer: int, batch: int) -> Tensor:
        return ACTIVATIONS, -1 - layer, batch


def update_rows(layers: Layers, cost: CostModel) -> Rows:
    """Return the seconds of each layer's update on the GPU by columns: a kernel that streams weights, gradients, states."""
    rows = np.zeros((layers.count, len(COLUMNS)))
    for layer in range(layers.count):
        written = float(layers.stored[layer] + layers.state[layer])
        found = cost.price(Elementwise(written + float(layers.gradients[layer]), written))
        rows[layer, COLUMNS.index("memory")] = rows[layer, COLUMNS.index("elementwise")] = float(found.time)
    return rows


def virtual_time(found: Demand, layers: Layers, server: Server, updates: Rows) -> float:
    """Return the seconds of an iteration swapped on demand: copies and computation one after the other."""
    table, channels = layers.at(found.micro_batch), server.ranks[0].channels
    ways = channels[DRAM, GPU], channels[GPU, DRAM]
    ahead = table.forward[:, : len(BOTTLENECKS)].sum(axis=1)
    back = ahead + table.backward[:, : len(BOTTLENECKS)].sum(axis=1)
    computing = found.micro_batches * float(ahead.sum() + back.sum()) + float(
        updates[:, : len(BOTTLENECKS)].sum()
    )
    copying = sum(ways[0].seconds(step.fetched) + ways[1].seconds(step.evicted) for step in found.steps)
    reducing = all_reduce_time(float(layers.gradients.sum()), server.twins, server.peer_rate)
    return computing + copying + ways[1].seconds(found.flushed) + reducing


def run_virtual(
    name: str, found: Demand, layers: Layers, server: Server, updates: Rows
) -> tuple[Emitter, Timeline, float]:
    """Execute an iteration swapped on demand; returns the emitter, what ran, and the seconds of computation."""
    emit = Emitter(name, server.ranks, channels=server.channels, serial=True)
    table = layers.at(found.micro_batch)
    computing = 0.0
    for step in found.steps:
        label = f"layer {step.layer}, {step.which}"
        for source, target, size in ((GPU, DRAM, step.evicted), (DRAM, GPU, step.fetched)):
            if size:
                emit.copy(source, target, size, [], "swap", f"swap for {label}")
        if step.which == "update" and server.twins > 1:
            size = float(layers.gradients[step.layer])
            seconds = all_reduce_time(size, server.twins, server.peer_rate)
            emit.work(
                emit.gpu, seconds, COPYING["host link"], [], "all-reduce", f"all-reduce of layer {step.layer}"
            )
        row = {
            "forward": table.forward[step.layer],
            "backward": table.forward[step.layer] + table.backward[step.layer],
            "update": updates[step.layer],
        }[step.which]
        time = float(row[: len(BOTTLENECKS)].sum())
        computing += time
        emit.work(emit.gpu, time, row / (time or 1.0), [], step.which, label)
    if found.flushed:
        emit.copy(GPU, DRAM, found.flushed, [], "swap", "write back at the end")
    emit.keep(GPU, found.peak, "tensors", "tensors in use and working memory at their peak")
    held = float((layers.stored + layers.gradients + layers.state).sum())
    emit.keep(DRAM, held, "weights, gradients and states", "weights, gradients and optimizer states")
    return emit, execute(emit.program), computing
