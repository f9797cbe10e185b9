"""Tasks of a schedule: their order, where they run, what they may hold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulator.offload.task_packs.layers import Layers
from simulator.offload.task_packs.packing import Pack, Schedule

FORWARD, BACKWARD = "forward", "backward"


@dataclass(frozen=True, slots=True)
class Task:
    """One pack in one pass on one GPU."""

    which: str
    pack: Pack
    rank: int
    micro_batch: int
    count: int
    """Micro-batches."""

    @property
    def layers(self) -> slice:
        """Its layers."""
        return slice(*self.pack)

    @property
    def label(self) -> str:
        """What it is called in traces."""
        return f"{self.which} task {self.pack[0]}-{self.pack[1] - 1}"


def order(schedule: Schedule, minibatch: int, gpus: int, mode: str) -> tuple[Task, ...]:
    """Return the tasks in order: forward packs, then backward packs from the last; round the GPUs in a pipeline."""
    samples = minibatch if mode == "pipeline" else minibatch // gpus
    found = []
    passes = [(FORWARD, pack) for pack in schedule.forward_packs]
    passes += [(BACKWARD, pack) for pack in reversed(schedule.backward_packs)]
    for index, (which, pack) in enumerate(passes):
        size = schedule.forward_micro_batch if which == FORWARD else schedule.backward_micro_batch
        rank = index % gpus if mode == "pipeline" else 0
        found.append(Task(which, pack, rank, size, samples // size))
    return tuple(found)


def all_reduce_time(size: float, gpus: int, rate: float) -> float:
    """Return the seconds of a ring all-reduce over peers: 2·(N - 1)/N·size/rate."""
    return 2.0 * (gpus - 1) / gpus * size / rate if gpus > 1 else 0.0


def reserved_memory(layers: Layers, schedule: Schedule) -> float:
    """Return the most bytes that a task may hold with double buffers: Harmony's own estimate (CofTask).

    Forward: its pack, one more input, one more output, and the inputs that it stashes. Backward: its pack, two more
    inputs (the stashed one and its gradient), the gradient of its output, and that of its input.
    """
    stash = {low for low, high in schedule.backward_packs if high < layers.count}
    most = 0.0
    for which, size, packs in (
        (FORWARD, schedule.forward_micro_batch, schedule.forward_packs),
        (BACKWARD, schedule.backward_micro_batch, schedule.backward_packs),
    ):
        table = layers.at(size)
        for low, high in packs:
            held = float(table.pack_memory(which, np.array([low, high]))[0])
            entering, leaving = float(table.inputs[low]), float(table.inputs[high])
            if which == FORWARD:
                held += entering + leaving
                held += sum(float(table.inputs[layer]) for layer in stash if low <= layer < high)
            else:
                held += 2.0 * entering + leaving + (entering if low else 0.0)
            most = max(most, held)
    return most
