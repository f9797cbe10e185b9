"""Lower one pass to a Program: accelerators, CPUs and copies of a layer side by side where nothing waits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulator.offload.columns import Price
from simulator.offload.emit import Emitter
from simulator.offload.host_compute.plan import Pass, Plan
from simulator.offload.host_compute.prices import HostWork, LayerPrice, PassPrice, price_pass
from simulator.offload.tiers import DRAM, GPU


@dataclass(frozen=True, slots=True)
class Resident:
    """What lies in memory throughout [B]."""

    weights_gpu: float
    """On each accelerator."""
    weights_dram: float
    cache_gpu: float
    """On each accelerator, at its fullest."""
    cache_dram: float


def lower(plan: Plan, each: Pass, resident: Resident) -> Emitter:
    """Return the program of a pass, with what is resident beside it."""
    return _Lowering(plan, price_pass(plan, each.shape), resident).emitted()


class _Lowering:
    def __init__(self, plan: Plan, price: PassPrice, resident: Resident) -> None:
        self.plan, self.price, self.resident = plan, price, resident
        self.emit = Emitter(plan.name, plan.place.ranks)
        self.done: list[int] = []
        """What the next layer waits for."""
        self.ahead = 1 if plan.strategy.prefetch is None else plan.strategy.prefetch
        """Layers whose weights come in ahead of the one that is computed."""
        self.on_cpus = False
        """Whether hidden states are in DRAM."""
        self.pending: list[int] = []
        """Deferred experts of the layer before."""
        self.loads: dict[int, list[int]] = {}
        self.last: dict[int, int] = {}
        """By layer, its last computation."""

    def emitted(self) -> Emitter:
        """Emit everything."""
        emit, resident = self.emit, self.resident
        for rank in range(self.plan.place.accelerators):
            emit.keep(GPU, resident.weights_gpu, "weights", "weights", rank=rank)
            emit.keep(GPU, resident.cache_gpu, "KV cache", "cache", rank=rank)
            emit.keep(GPU, self.price.workspace, "activations", "tensors of a layer", rank=rank)
        emit.keep(DRAM, resident.weights_dram, "weights", "weights")
        emit.keep(DRAM, resident.cache_dram, "KV cache", "cache")
        for number in range(len(self.price.layers)):
            self._layer(number)
        self._buffers()
        return emit

    def _layer(self, number: int) -> None:
        layer = self.price.layers[number]
        self._load(number)
        for ahead in range(self.ahead):
            self._load(number + 1 + ahead)
        if layer.whole:
            self._host_layer(number, layer)
        else:
            self._gpu_layer(number, layer)

    def _host_layer(self, number: int, layer: LayerPrice) -> None:
        assert layer.now is not None
        self.on_cpus = True
        self.done = [self._host(layer.now, self.done, layer.name)]
        self.last[number] = self.done[0]

    def _gpu_layer(self, number: int, layer: LayerPrice) -> None:
        emit = self.emit
        after = [*self.done, *self.loads.get(number, [])]
        if self.on_cpus:
            self.on_cpus = False
            size = self.price.hidden
            after.append(
                emit.copy(DRAM, GPU, size, self.done, "hidden states", f"{layer.name}: hidden states")
            )
        task = self._gpu(layer.before, after if not layer.streamed else self.done, f"{layer.name}")
        ends = [task]
        arrived: list[int] = []
        if layer.now is not None:
            sent = emit.copy(GPU, DRAM, layer.sent, ends, "inputs", f"{layer.name}: inputs", queue="inputs")
            experts = self._host(layer.now, [sent], f"{layer.name}: experts")
            arrived = [
                emit.copy(
                    DRAM, GPU, layer.returned, [experts, *self.pending], "outputs", f"{layer.name}: outputs",
                    queue="outputs",
                )
            ]  # fmt: skip
            self.pending = []
            if layer.later is not None:
                self.pending = [self._host(layer.later, [sent], f"{layer.name}: deferred experts")]
        if _some(layer.shared):
            ends = [self._gpu(layer.shared, ends, f"{layer.name}: shared experts")]
        if _some(layer.routed):
            ends = [self._gpu(layer.routed, [*ends, *after], f"{layer.name}: routed experts")]
        if _some(layer.after) or arrived:
            ends = [self._gpu(layer.after, [*ends, *arrived], f"{layer.name}: sum")]
        self.done = ends
        self.last[number] = ends[-1]

    def _load(self, number: int) -> None:
        """Copy the weights of a layer that is streamed, into the first buffer that is free again."""
        if number >= len(self.price.layers) or number in self.loads:
            return
        layer = self.price.layers[number]
        if not layer.streamed:
            return
        vacated = number - self.ahead - 1
        free = [self.last[vacated]] if vacated in self.last else []
        ranks = self.plan.place.accelerators
        self.loads[number] = [
            self.emit.copy(
                DRAM, GPU, layer.streamed / ranks, free, "weights", f"{layer.name}: weights", rank=rank
            )
            for rank in range(ranks)
        ]

    def _buffers(self) -> None:
        for number, tasks in self.loads.items():
            size = self.price.layers[number].streamed / len(tasks)
            for rank, task in enumerate(tasks):
                until = [self.last[number]]
                self.emit.keep(GPU, size, "buffers", "streamed weights", at=task, until=until, rank=rank)

    def _gpu(self, price: Price, after: list[int], name: str) -> int:
        return self.emit.compute(price, 0, after, "computation", name)

    def _host(self, work: HostWork, after: list[int], name: str) -> int:
        return self.emit.host_work(
            self.plan.place.host, work.size, work.time, after, "computation on CPUs", name
        )


def _some(price: Price) -> bool:
    return bool(np.any(price.rows))
