"""What each layer costs and holds at a micro-batch size: measured, or priced by the cost model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.cost import ALONE, CostModel
from simulator.graph import Block, ModelGraph, Numerics, Shape, build
from simulator.offload.columns import BOTTLENECKS, COLUMNS, Rows
from simulator.specs import MeasuredLayers, MemroofError, Model, TaskPacksStrategy

Integers = npt.NDArray[np.int64]
FLOAT32 = 4.0
STATES: Mapping[str, int] = {"adam": 2, "momentum": 1, "sgd": 0}
"""Values in fp32 that an optimizer keeps for each parameter, the parameter itself left out."""


@dataclass(frozen=True, slots=True)
class PassTable:
    """Layers at one micro-batch size; every array has one entry a layer unless said otherwise."""

    forward: Rows
    """Seconds of the forward pass by :data:`~simulator.offload.columns.COLUMNS`; shape (layers, columns)."""
    backward: Rows
    """Seconds of the backward pass alone, without the forward pass that it begins with; shape (layers, columns)."""
    inputs: Rows
    """Bytes of a layer's input, and of nothing behind the last; shape (layers + 1,)."""
    kept: Mapping[str, Rows]
    """By pass, the bytes that a layer adds to a pack, its input left out."""
    working: Mapping[str, Rows]
    """By pass, the bytes that a layer needs while it runs; of a pack, the largest counts."""

    def pack_memory(self, which: str, bounds: Integers) -> Rows:
        """Return the bytes of packs that lie between ascending layer numbers; shape (bounds - 1,).

        The first layer's input, what all layers add, and the most that one of them needs while it runs.
        """
        starts = bounds[:-1]
        kept = np.add.reduceat(self.kept[which][: bounds[-1]], starts)
        most: Rows = (
            self.inputs[starts] + kept + np.maximum.reduceat(self.working[which][: bounds[-1]], starts)
        )
        return most


@dataclass(frozen=True)
class Layers:
    """Layers of a model in order; the last computes the loss. Arrays have one entry a layer."""

    names: tuple[str, ...]
    weights: Rows
    """Bytes that computing a layer needs: parameters and buffers."""
    gradients: Rows
    """Bytes that leave the GPU after its backward pass: gradients and buffers."""
    stored: Rows
    """Bytes of weights and buffers in DRAM."""
    state: Rows
    """Bytes of optimizer states, and of fp32 copies, in DRAM."""
    update: Rows
    """Seconds of the optimizer's step on one GPU's CPU process, where measured; zeros where priced."""
    update_traffic: Rows
    """DRAM traffic of that step, where priced [B]; zeros where measured."""
    largest: Mapping[str, int]
    """By pass, the largest micro-batch that is known; the smallest is 1."""
    measured: bool
    find: Callable[[int], PassTable] = field(repr=False)
    graph: Callable[[int], ModelGraph] | None = field(default=None, repr=False)
    _tables: dict[int, PassTable] = field(default_factory=dict, repr=False, compare=False)

    @property
    def count(self) -> int:
        """Number of layers."""
        return len(self.names)

    def at(self, micro_batch: int) -> PassTable:
        """Return seconds and bytes at a micro-batch size."""
        if micro_batch not in self._tables:
            self._tables[micro_batch] = self.find(micro_batch)
        return self._tables[micro_batch]


# --- measured --------------------------------------------------------------------------------------------------------


def measured_layers(profile: MeasuredLayers) -> Layers:
    """Return the layers of a profile; between measured micro-batch sizes seconds and bytes are linear.

    A pack takes the sum of its layers' seconds, and of their bytes less the inputs that lie inside it: Harmony's rule
    (Li et al. 2022; analyze_profiles.py of its repository).
    """
    given = [layer for layer in profile.layers for _ in range(layer.count)]

    def column(key: str) -> Rows:
        return np.array([float(getattr(layer, key)) for layer in given])

    weights, buffers = column("weights"), column("buffers")
    count = len(given)
    inputs = np.append(column("input"), 0.0)
    sizes = {which: getattr(profile.micro_batches, which) for which in ("forward", "backward")}
    # interpolated once a kind of layer, then repeated
    counts = [layer.count for layer in profile.layers]

    def at(which: str, key: str, micro_batch: int) -> Rows:
        found = [
            np.interp(micro_batch, sizes[which], [float(v) for v in getattr(getattr(layer, which), key)])
            for layer in profile.layers
        ]
        return np.repeat(found, counts)

    def find(micro_batch: int) -> PassTable:
        forward, backward = (at(which, "time", micro_batch) for which in ("forward", "backward"))
        entering = inputs * micro_batch
        kept = {which: at(which, "memory", micro_batch) - entering[:-1] for which in ("forward", "backward")}
        # a backward pass was measured with the forward pass that it begins with
        later = np.maximum(backward - forward, 0.0)
        nothing = np.zeros(count)
        return PassTable(
            _computed(forward), _computed(later), entering, kept, {"forward": nothing, "backward": nothing}
        )

    return Layers(
        tuple(layer.name for layer in given), weights + buffers, weights + buffers, weights + buffers, column("state"),
        column("update"), np.zeros(count), {which: int(found[-1]) for which, found in sizes.items()}, True, find,
    )  # fmt: skip


def _computed(seconds: Rows) -> Rows:
    """Seconds of which only the sum is known count as computation of the class of products."""
    rows = np.zeros((len(seconds), len(COLUMNS)))
    rows[:, COLUMNS.index("compute")] = seconds
    rows[:, COLUMNS.index("matmul")] = seconds
    return rows


# --- priced ----------------------------------------------------------------------------------------------------------


def priced_layers(model: Model, sequence: int, cost: CostModel, strategy: TaskPacksStrategy) -> Layers:
    """Return embedding, layers and head of a model as the cost model prices them, one sequence a sample.

    A forward pass needs weights and the most activations alive at once; a backward pass what its recomputed forward pass
    saves, gradients of weights, and as much for gradients of activations as for the activations alive at once.
    """
    precision = strategy.precision or "fp32"
    numerics = Numerics.of(precision, gradients=precision)
    fused = strategy.fused_attention is not False
    trained = replace(cost, training=True)

    def graph(micro_batch: int) -> ModelGraph:
        shape = Shape(micro_batch, sequence)
        return build(model, shape, numerics=numerics, fused_attention=fused)

    first = graph(1)
    units = _units(first)
    parameters = np.array([float(block.parameters) for block in units])
    tied = np.zeros(len(units))
    if model.tie_word_embeddings:
        tied[-1] = model.vocab_size * (model.embedding_size or model.hidden_size)
    width = numerics.weight_bytes
    states = STATES[strategy.optimizer or "adam"]
    copies = 0.0 if width == FLOAT32 else FLOAT32
    state = parameters * (states * FLOAT32 + copies)
    # masters and states are read and written, gradients read, weights of fewer bits written
    traffic = parameters * (2.0 * FLOAT32 * (1 + states) + width + (width if copies else 0.0))
    needed = (parameters + tied) * width

    def find(micro_batch: int) -> PassTable:
        return _priced(graph(micro_batch), trained, needed)

    return Layers(
        tuple(_names(first)), needed, needed, parameters * width, state, np.zeros(len(units)), traffic,
        {"forward": 10**9, "backward": 10**9}, False, find, graph,
    )  # fmt: skip


def _units(graph: ModelGraph) -> list[Block]:
    return [graph.embedding, *(graph.blocks[index] for index in graph.layers), graph.head]


def _names(graph: ModelGraph) -> list[str]:
    middle = [f"{graph.blocks[index].name} {i}" for i, index in enumerate(graph.layers)]
    return [graph.embedding.name, *middle, graph.head.name]


def _priced(graph: ModelGraph, cost: CostModel, weights: Rows) -> PassTable:
    blocks = [graph.embedding, *graph.blocks, graph.head]
    order = [0, *(1 + index for index in graph.layers), len(blocks) - 1]
    forward = np.array([_row(cost, block, ("forward",)) for block in blocks])[order]
    backward = np.array([_row(cost, block, ("input_gradient", "weight_gradient")) for block in blocks])[order]
    entering = np.array([float(block.tensors[block.input].size) for block in blocks])[order]
    alive = np.array([block.live_bytes() for block in blocks])[order]
    saved = np.array([_saved(block) for block in blocks])[order]
    inputs = np.append(entering, 0.0)
    kept = {"forward": weights, "backward": 2.0 * weights + saved + inputs[1:]}
    return PassTable(forward, backward, inputs, kept, {"forward": alive, "backward": alive})


def _saved(block: Block) -> float:
    """Bytes of what a forward pass keeps for the backward pass, its input left out."""
    return sum(float(np.max(size)) for name, size in block.saved().items() if name != block.input)


def _row(cost: CostModel, block: Block, parts: tuple[Any, ...]) -> Rows:
    total = cost.total([work for part in parts for work in block.works(part)], ALONE)
    row = np.zeros(len(COLUMNS))
    named: dict[Any, Any] = {**total.by_bound, **total.by_class}
    for name, seconds in named.items():
        if name in COLUMNS:
            row[COLUMNS.index(name)] = float(seconds)
    return row


def seconds(rows: Rows) -> float:
    """Return the sum of rows' seconds [s]."""
    return float(rows[..., : len(BOTTLENECKS)].sum())


def known_micro_batches(layers: Layers, share: int, which: str, asked: int | None, key: str) -> list[int]:
    """Return the micro-batch sizes of a pass that cut a GPU's samples evenly: the one asked for, or all that are known.

    Raises
    ------
    MemroofError
        If the one asked for does not cut them evenly, or was not measured.
    """
    largest = layers.largest[which]
    if asked is None:
        return [size for size in range(1, min(share, largest) + 1) if share % size == 0]
    if share % asked:
        raise MemroofError(f"{key}: {asked} does not cut {share} samples evenly; choose a divisor of {share}")
    if asked > largest:
        raise MemroofError(f"{key}: {asked} exceeds the largest {which} micro-batch measured, {largest}")
    return [asked]
