"""What of a graph is trained: frozen parts, adapters, biases, sampled layers, zeroth order, reversible layers.

A transformation behind :func:`simulator.graph.build.build`: operators that are not trained lose their weight gradients and the
tensors that those alone need, and where nothing below needs a gradient the backward pass ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from simulator.graph.adapters import add_bottlenecks, add_expert_bottlenecks, add_lite_residuals
from simulator.graph.graph import Block, ModelGraph, Operator, Partition, Tensor
from simulator.graph.layers import BlockBuilder
from simulator.graph.low_rank import (
    add_low_rank,
    check_targets,
    in_four_bits,
    low_rank_sparse,
    targeted,
)
from simulator.graph.quantise import one_copy
from simulator.graph.work import Elementwise
from simulator.specs.errors import MemroofError
from simulator.specs.trainable_spec import (
    AdjointTraining,
    BiasTraining,
    BottleneckAdapter,
    ForwardOnly,
    FullTraining,
    LayerTraining,
    LowRankAdaptation,
    LowRankSparse,
    QuantisedLowRankAdaptation,
    ReversibleTraining,
    Trainable,
)

PERTURBATIONS = 4
"""Passes over the weights in a zeroth-order step: to one side, to the other, back, and the update (Malladi et al. 2023,
algorithm 1); the directions come from a seed and are never kept."""
Rewrite = Callable[[BlockBuilder], None]


def subset(graph: ModelGraph, trainable: Trainable | None, partition: Partition = Partition()) -> ModelGraph:
    """Return the graph of a training method.

    Parameters
    ----------
    graph : ModelGraph
        As built, everything trained.
    trainable : Trainable, optional
        The method and its options; all parameters if absent.
    partition : Partition
        The one that the graph was built with; adapters are cut by it.

    Returns
    -------
    ModelGraph
        With as many layers in the same order; layers of one kind differ where the backward pass ends or where only some are
        updated.

    Raises
    ------
    MemroofError
        For a target that names nothing, more updated layers than there are, a method that the number format forbids, or biases
        of a model that has none.
    """
    if trainable is None:
        return graph
    _check(graph, trainable)
    updated = _updated(graph, getattr(trainable, "updated_layers", None))
    writer = _Writer(graph, trainable, partition)
    embedding, entering = writer.written(graph.embedding, _embedding(trainable), entering=False)
    layer = _layer(trainable)
    blocks: list[Block] = []
    seen: dict[tuple[int, bool, bool], tuple[int, bool]] = {}
    layers: list[int] = []
    for index, kind in enumerate(graph.layers):
        active = updated is None or index in updated
        key = (kind, active, entering)
        if key not in seen:
            rewrite = layer if active else _then_frozen(layer)
            block, leaving = writer.written(graph.blocks[kind], rewrite, entering=entering)
            seen[key] = len(blocks), leaving
            blocks.append(replace(block, reversible=_is_reversible(trainable)))
        found, entering = seen[key]
        layers.append(found)
    head, _ = writer.written(graph.head, _head(trainable), entering=entering)
    if not isinstance(trainable, ForwardOnly) and not any(b.trains for b in (embedding, *blocks, head)):
        raise MemroofError(f"strategy.trainable.method: {trainable.method} trains nothing of {graph.name}")
    return replace(graph, embedding=embedding, blocks=tuple(blocks), layers=tuple(layers), head=head)


@dataclass(frozen=True)
class _Writer:
    """Rewrites the blocks of one graph."""

    graph: ModelGraph
    trainable: Trainable
    partition: Partition

    def written(self, block: Block, rewrite: Rewrite, *, entering: bool) -> tuple[Block, bool]:
        """Return the block after a rewrite, and whether its output needs a gradient."""
        b = BlockBuilder(
            block.name, 0, 0, self.partition, self.graph.numerics.wide, [*block.operators], {**block.tensors}
        )
        rewrite(b)
        b.operators[:] = [one_copy(op, self.graph.numerics) for op in b.operators]
        _add_reference(b, block, self.trainable)
        return _pruned(
            replace(block, operators=tuple(b.operators), tensors=dict(b.tensors)), entering=entering
        )


def _check(graph: ModelGraph, trainable: Trainable) -> None:
    quantised = isinstance(trainable, QuantisedLowRankAdaptation) or (
        isinstance(trainable, BottleneckAdapter) and trainable.quantised
    )
    if (quantised or isinstance(trainable, LowRankSparse)) and graph.numerics.scaling != "none":
        raise MemroofError(
            f"strategy.trainable.method: {trainable.method} forms 16-bit weights before each product; "
            "precision must be bf16 or fp16"
        )
    if isinstance(trainable, (LowRankAdaptation, QuantisedLowRankAdaptation, LowRankSparse)):
        check_targets(tuple(op for block in graph.blocks for op in block.operators), trainable.targets)


def _updated(graph: ModelGraph, count: int | None) -> frozenset[int] | None:
    """Return which layers are updated where some are drawn: at the expected places of the draw.

    The i-th smallest of n out of L numbers is i·(L + 1)/(n + 1) in the mean.
    """
    if count is None:
        return None
    total = len(graph.layers)
    if count > total:
        raise MemroofError(
            f"strategy.trainable.updated_layers: {count} exceeds {graph.name}'s {total} layers"
        )
    step = (total + 1) / (count + 1)
    return frozenset(math.floor(step * (i + 1) + 0.5) - 1 for i in range(count))


def _embedding(trainable: Trainable) -> Rewrite:
    """Return what a method does to the embedding."""
    if isinstance(trainable, BiasTraining) and trainable.updated_layers is None:
        return _only_biases
    return _head(trainable) if not getattr(trainable, "head", False) else _freeze


def _head(trainable: Trainable) -> Rewrite:
    """Return what a method does to the head."""
    if isinstance(trainable, ForwardOnly):
        return lambda b: _forward_only(b, trainable)
    whole = isinstance(trainable, (FullTraining, LowRankSparse, ReversibleTraining, AdjointTraining))
    ends = isinstance(trainable, LayerTraining) and trainable.ends
    head = isinstance(trainable, (BottleneckAdapter, BiasTraining)) and trainable.head
    return _leave if whole or ends or head else _freeze


def _layer(trainable: Trainable) -> Rewrite:
    """Return what a method does to a layer that it updates."""
    if isinstance(trainable, (LowRankAdaptation, QuantisedLowRankAdaptation)):
        return lambda b: _low_rank(b, trainable)
    if isinstance(trainable, BottleneckAdapter):
        return lambda b: _bottlenecks(b, trainable)
    if isinstance(trainable, BiasTraining):
        return lambda b: _biases(b, trainable)
    if isinstance(trainable, LowRankSparse):
        return lambda b: _low_rank_sparse(b, trainable)
    if isinstance(trainable, ForwardOnly):
        return lambda b: _forward_only(b, trainable)
    if isinstance(trainable, AdjointTraining):
        return lambda b: _evaluated(b, trainable)
    return _leave


def _leave(b: BlockBuilder) -> None:
    """Train everything."""


def _freeze(b: BlockBuilder) -> None:
    b.operators[:] = [_frozen(op) for op in b.operators]


def _then_frozen(rewrite: Rewrite) -> Rewrite:
    """Return what a method does to a layer that it does not update in this step."""

    def both(b: BlockBuilder) -> None:
        rewrite(b)
        _freeze(b)

    return both


def _low_rank(b: BlockBuilder, method: LowRankAdaptation | QuantisedLowRankAdaptation) -> None:
    found = targeted(b.operators, method.targets)
    _freeze(b)
    for op, matrix in reversed(found):
        add_low_rank(b, op, matrix, method.rank, method.dropout)
    if isinstance(method, QuantisedLowRankAdaptation):
        _pack(b, method.block, double=method.double_quantisation)


def _pack(b: BlockBuilder, block: int = 64, *, double: bool = True) -> None:
    b.operators[:] = [
        in_four_bits(b, op, block, double=double) if _is_frozen(op) else op for op in b.operators
    ]


def _bottlenecks(b: BlockBuilder, method: BottleneckAdapter) -> None:
    _freeze(b)
    if method.quantised:
        _pack(b)
    if method.experts:
        add_expert_bottlenecks(b, method.width, method.experts, method.experts_per_token)
    else:
        add_bottlenecks(b, method.width)


def _biases(b: BlockBuilder, method: BiasTraining) -> None:
    _only_biases(b)
    if method.residual_width:
        add_lite_residuals(b, method.residual_width, method.residual_pool)


def _only_biases(b: BlockBuilder) -> None:
    b.operators[:] = [_bias_trained(b, op) for op in b.operators]


def _bias_trained(b: BlockBuilder, op: Operator) -> Operator:
    """Return an operator whose biases alone are trained: the sum of its output's gradient needs no activation."""
    frozen = _frozen(op)
    if _nothing(op.biases):
        return frozen
    if not op.weight_gradient:  # a norm: its one backward kernel makes all gradients
        return replace(frozen, trainable=op.biases)
    size = b.tensors[op.outputs[0]].size
    return replace(frozen, trainable=op.biases, weight_gradient=(Elementwise(size, 0.0, size / b.width),))


def _low_rank_sparse(b: BlockBuilder, method: LowRankSparse) -> None:
    names = {op.name for op, _ in targeted(b.operators, method.targets)}
    b.operators[:] = [
        low_rank_sparse(b, op, method.rank, method.density) if op.name in names else op for op in b.operators
    ]


def _forward_only(b: BlockBuilder, method: ForwardOnly) -> None:
    """Run everything twice, differentiate nothing."""
    for index, op in enumerate(b.operators):
        moved = op.parameters * b.numerics.weight_bytes * PERTURBATIONS
        walks = method.perturbed == "weights" and not _nothing(op.parameters)
        step = (Elementwise(moved, moved, 4.0 * PERTURBATIONS * op.parameters, kernels=PERTURBATIONS),)
        b.operators[index] = replace(
            _frozen(op),
            forward=op.forward * 2,
            input_gradient=(),
            saves=(),
            step=(*op.step, *step) if walks else op.step,
        )


def _evaluated(b: BlockBuilder, method: AdjointTraining) -> None:
    """Run a layer several times with the same weights; where all of it is differentiated, every evaluation keeps its own."""
    if method.gradient == "adjoint":
        b.operators[:] = [
            replace(
                op,
                forward=op.forward * method.evaluations,
                input_gradient=op.input_gradient * method.evaluations,
                weight_gradient=op.weight_gradient * method.evaluations,
            )
            for op in b.operators
        ]
        return
    once, tensors = [*b.operators], dict(b.tensors)
    outer, leaving = once[0].inputs[0], once[-1].outputs[0]
    for evaluation in range(1, method.evaluations):

        def named(name: str, at: int = evaluation) -> str:
            if name == outer:
                return leaving if at == 1 else f"{leaving} ({at})"
            return f"{name} ({at + 1})"

        b.tensors.update({named(name): Tensor(named(name), tensors[name].size) for name in tensors})
        b.operators += [
            replace(
                op,
                name=f"{op.name} ({evaluation + 1})",
                inputs=tuple(map(named, op.inputs)),
                outputs=tuple(map(named, op.outputs)),
                saves=tuple(map(named, op.saves)),
                parameters=0,
                biases=0,
                matrices=(),
                trainable=0,
                stored=0.0,
                step=(),
            )
            for op in once
        ]


def _is_reversible(trainable: Trainable) -> bool:
    adjoint = isinstance(trainable, AdjointTraining) and trainable.gradient == "adjoint"
    return adjoint or isinstance(trainable, ReversibleTraining)


def _add_reference(b: BlockBuilder, block: Block, trainable: Trainable) -> None:
    """Let a frozen copy of the block run before it; its weights are the base's where the method leaves those alone."""
    if isinstance(trainable, ForwardOnly) or not trainable.reference:
        return
    shared = isinstance(trainable, (LowRankAdaptation, QuantisedLowRankAdaptation, BottleneckAdapter))
    own = {op.name: op for op in b.operators}
    frozen = [own[op.name] if shared else op for op in block.operators]
    b.operators[:0] = [
        Operator(
            f"reference.{op.name}", op.forward, detached=True,
            stored=0.0 if shared else op.stored_bytes(b.numerics), step=() if shared else op.step,
        )
        for op in frozen
    ]  # fmt: skip


def _frozen(op: Operator) -> Operator:
    """Return an operator without weight gradient and without what only that needs."""
    return replace(op, weight_gradient=(), saves=() if op.weight_gradient else op.saves, trainable=0)


def _is_frozen(op: Operator) -> bool:
    return op.trainable is not None and _nothing(op.trainable)


def _pruned(block: Block, *, entering: bool) -> tuple[Block, bool]:
    """Drop backward work that no trained element needs; return the block and whether its output needs a gradient.

    ``entering``: whether what comes from outside needs one, as anything trained below makes it.
    """
    produced: set[str] = set()
    needs: set[str] = set()
    kept: list[Operator] = []
    for op in block.operators:
        reads = any(name in needs or (entering and name not in produced) for name in op.inputs)
        trains = bool(op.weight_gradient) or not _nothing(op.trained)
        produced.update(op.outputs)
        if reads or trains:
            needs.update(op.outputs)
        if not reads and op.weight_gradient:
            op = replace(op, input_gradient=())
        elif not reads and not trains:
            op = replace(op, input_gradient=(), saves=())
        kept.append(op)
    last = block.operators[-1].outputs
    return replace(block, operators=tuple(kept)), bool(last) and last[0] in needs


def _nothing(count: object) -> bool:
    """Whether a count of elements is zero, everywhere where it is an array."""
    return not np.any(np.asarray(count))
