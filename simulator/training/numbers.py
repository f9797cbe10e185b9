"""Passes and memory of model chunks for arrays of configurations: what :mod:`simulator.training.passes` says of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from simulator.cost.numeric import larger
from simulator.graph import Numeric
from simulator.training.dependencies import period_of
from simulator.training.layer_walk import Floats
from simulator.training.liveness import Liveness, chain
from simulator.training.passes import EXCHANGE, LayerPass, paired_seconds
from simulator.training.schedules import Part, Schedule, pipeline


@dataclass(frozen=True, slots=True)
class LayerNumbers:
    """The passes of one micro-batch through one layer: arrays (configurations) by part, as :class:`LayerPass` has them."""

    host: Mapping[Part, Floats]
    """Seconds in which the CPU issues a pass."""
    device: Mapping[Part, Floats]
    """Seconds of its kernels."""
    end: Mapping[Part, Floats]
    """Seconds of both, overlapped."""
    read: Mapping[Part, Floats]
    """Seconds from the kernels before to when the CPU goes on behind what it waits for (:class:`.passes.Issued`)."""
    exchange: Mapping[Part, Floats]
    """Seconds of exchanges with experts among those of the kernels."""
    memory: Liveness

    @classmethod
    def of(cls, layers: Sequence[LayerPass]) -> LayerNumbers:
        """Put the same layer of several configurations side by side."""
        parts = tuple(layers[0].times)

        def some(attribute: str) -> dict[Part, Floats]:
            return {
                part: np.array([getattr(one.issued[part], attribute) for one in layers]) for part in parts
            }

        exchange = {
            part: np.array([float(one.times[part].by_bound.get(EXCHANGE, 0.0)) for one in layers])
            for part in parts
        }

        def size(attribute: str) -> Floats:
            return np.array([float(getattr(one.memory, attribute)) for one in layers])

        memory = Liveness(size("saved"), size("forward_peak"), size("backward_peak"), size("between"))
        return cls(some("host"), some("device"), some("end"), some("read"), exchange, memory)


@dataclass(frozen=True, slots=True)
class ChunkNumbers:
    """The passes of one micro-batch through a model chunk."""

    layers: Mapping[Part, Floats]
    """(layers in execution order, configurations): seconds of each, with what the device waits for the CPU."""
    exchange: Mapping[Part, Floats]
    memory: Liveness
    by_layer: tuple[Liveness, ...]
    """Of each layer, in forward order."""

    @classmethod
    def of(cls, layers: Sequence[LayerNumbers]) -> ChunkNumbers:
        """Run layers, given in forward order, one after the other.

        A layer ends when its kernels have run behind those before it and have been issued
        (:class:`simulator.training.passes.Issued`).
        """
        seconds: dict[Part, Floats] = {}
        exchange: dict[Part, Floats] = {}
        for part in layers[0].device:
            host: Numeric = 0.0
            end: Numeric = 0.0
            ends = []
            for layer in layers if part == "forward" else reversed(layers):
                host, end = (
                    larger(host + layer.host[part], end + layer.read[part]),
                    larger(end + layer.device[part], host + layer.end[part]),
                )
                ends.append(end)
            seconds[part] = np.diff(np.stack(ends), axis=0, prepend=0.0)
            exchange[part] = sum((layer.exchange[part] for layer in layers), start=np.zeros(()))
        memory = tuple(layer.memory for layer in layers)
        return cls(seconds, exchange, chain(memory), memory)

    def seconds(self, part: Part) -> Floats:
        """Seconds of a pass, by configuration."""
        return np.asarray(self.layers[part].sum(axis=0))


def paired(forward: ChunkNumbers, backward: ChunkNumbers, occupancy: float) -> Floats:
    """Return the seconds of a forward and a backward pass that run together."""
    exchange = forward.exchange["forward"] + backward.exchange["backward"]
    seconds = forward.seconds("forward") + backward.seconds("backward")
    return np.asarray(paired_seconds(seconds, exchange, occupancy))


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a stage holds at once, in units of passes: a row for each different moment of its table, a column for each chunk."""

    rows: Floats
    """(moments, 5, chunks): micro-batches between a forward and a whole backward pass, between a forward pass and an input
    gradient, between a forward pass and a weight gradient of its own; whether a forward and whether a backward pass runs."""

    def peak(self, chunks: Sequence[Liveness], gathered: Floats | None = None) -> Floats:
        """Return the most bytes that passes hold at once, by configuration.

        ``gathered`` (chunks, configurations) are parameters that are held with the activations.
        """

        def column(name: str) -> Floats:
            return np.stack([np.asarray(getattr(chunk, name)) for chunk in chunks])

        saved, between = column("saved"), column("between")
        whole, kept, later, forward, backward = (self.rows[:, index] for index in range(5))
        held = whole @ saved + kept @ np.maximum(saved - between, 0.0) + later @ between
        held += forward @ column("forward_peak") + backward @ column("backward_peak")
        if gathered is not None:
            held += (whole + kept) @ gathered
        return np.asarray(held.max(axis=0))


@lru_cache(maxsize=4096)
def holdings(
    name: str, stages: int, micro_batches: int, chunks: int, *, pair: bool = False
) -> tuple[Holdings, ...]:
    """Return what each stage of a schedule holds; schedules that repeat are looked at as far as they fill up."""
    enough = 4 * stages + 8
    step = period_of(name, stages, chunks, pair=pair) if micro_batches > enough else 0
    if step:
        shorter = micro_batches - (micro_batches - enough) // step * step
        found, longer = (_tabled(name, stages, count, chunks, pair) for count in (shorter, shorter + step))
        if all(np.array_equal(a.rows, b.rows) for a, b in zip(found, longer, strict=True)):
            return found
    return _tabled(name, stages, micro_batches, chunks, pair)


def _tabled(name: str, stages: int, micro_batches: int, chunks: int, pair: bool) -> tuple[Holdings, ...]:
    table = pipeline(name, stages, micro_batches, chunks, pair=pair)
    return tuple(_holdings(orders, table.chunks, pair) for orders in table.orders)


def _holdings(orders: Schedule, chunks: int, pair: bool) -> Holdings:
    split = {(order.micro_batch, order.chunk) for order in orders if order.part == "weight-gradient"}
    moments: set[tuple[int, ...]] = set()
    whole, kept, later = ([0] * chunks for _ in range(3))
    rows = iter(orders)
    for row in rows:
        unit = (row, next(rows)) if pair and row.paired else (row,)
        forward, backward = [0] * chunks, [0] * chunks
        for order in unit:
            if order.part == "forward":
                apart = (order.micro_batch, order.chunk) in split
                whole[order.chunk] += not apart
                kept[order.chunk] += apart
                later[order.chunk] += apart
                forward[order.chunk] = 1
            elif order.part != "weight-gradient":
                backward[order.chunk] = 1
        moments.add((*whole, *kept, *later, *forward, *backward))
        for order in unit:
            whole[order.chunk] -= order.part == "backward"
            kept[order.chunk] -= order.part == "input-gradient"
            later[order.chunk] -= order.part == "weight-gradient"
    return Holdings(np.array(sorted(moments), dtype=np.float64).reshape(-1, 5, chunks))
