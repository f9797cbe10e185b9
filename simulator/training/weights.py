"""The weight tensors of a rank by shape, which optimizers that look at more than single elements need.

Projections that share one product (queries, keys and values; gate and up) are matrices of their own to an optimizer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from simulator.cost.numeric import larger, smaller
from simulator.graph import Block, Gather, Matmul, ModelGraph, Numeric
from simulator.graph.graph import Operator
from simulator.specs import Model

Role = Literal["matrix", "embedding", "head", "vector"]


@dataclass(frozen=True, slots=True)
class Weights:
    """``count`` equal weight tensors on one rank."""

    name: str
    rows: Numeric
    """Outputs of a matrix, words of a table, elements of a vector."""
    columns: Numeric = 1
    count: Numeric = 1
    role: Role = "matrix"
    expert: bool = False
    """Held by the ranks of the expert-parallel group in turn."""
    trained: Numeric = 1.0
    """Share of the elements that are trained."""
    whole: tuple[Numeric, Numeric] | None = None
    """Rows and columns of the tensor that tensor-parallel ranks hold together; its own if absent."""
    stored: Numeric | None = None
    """Bytes of all of them through a step, copies in all formats; as the strategy stores parameters if absent."""

    @property
    def elements(self) -> Numeric:
        """Of all of them."""
        return self.rows * self.columns * self.count

    @property
    def updated(self) -> Numeric:
        """Elements that are trained."""
        return self.elements * self.trained

    @property
    def shape(self) -> tuple[Numeric, Numeric]:
        """Rows and columns of the whole tensor."""
        return self.whole or (self.rows, self.columns)


def stage_weights(
    graph: ModelGraph,
    layers: Sequence[int],
    model: Model,
    *,
    embedding: bool,
    head: bool,
    whole: ModelGraph | None = None,
) -> tuple[Weights, ...]:
    """Return the weights of the given layers on one rank, with embedding and head where they are.

    Parameters
    ----------
    graph : ModelGraph
        Of one rank's share.
    layers : sequence of int
        Indices into the model's layers.
    model : Model
        Says which projections share a product.
    embedding, head : bool
        Whether the rank holds them.
    whole : ModelGraph, optional
        The same model without tensor parallelism; for optimizers that need whole matrices.
    """
    found: list[Weights] = []
    if embedding:
        found += block_weights(graph.embedding, model, whole.embedding if whole else None)
    for kind, times in Counter(graph.layers[layer] for layer in layers).items():
        block = block_weights(graph.blocks[kind], model, whole.blocks[kind] if whole else None)
        found += [_repeated(weights, times) for weights in block]
    if head:
        found += block_weights(graph.head, model, whole.head if whole else None)
    return tuple(found)


def block_weights(block: Block, model: Model, whole: Block | None = None) -> tuple[Weights, ...]:
    """Return the weights of a block on one rank, operator by operator; ``whole`` is the block without tensor parallelism."""
    shapes = {
        part.name: part.shape
        for operator in (whole.operators if whole else ())
        for part in _operator_weights(operator, model)
    }
    return tuple(
        replace(part, whole=shapes.get(part.name))
        for operator in block.operators
        for part in _operator_weights(operator, model)
    )


def _repeated(weights: Weights, times: int) -> Weights:
    stored = None if weights.stored is None else weights.stored * times
    return replace(weights, count=weights.count * times, stored=stored)


def _operator_weights(operator: Operator, model: Model) -> Iterator[Weights]:
    total: Numeric = operator.parameters
    held, trained = operator.stored, operator.trained
    if not np.any(np.asarray(total) > 0):
        if held is not None and np.any(np.asarray(held) > 0):  # a frozen reference's, nobody's parameters
            yield Weights(operator.name, 0, stored=held, expert=operator.expert)
        return
    shapes = _shapes(operator, model)
    matrices = sum((weights.elements for weights in shapes), start=0.0)
    rest = total - matrices
    # a bias is what is trained where less is than a matrix has
    rest_trained = smaller(trained, rest)
    parts = [(weights, (trained - rest_trained) / matrices) for weights in shapes]
    if np.any(np.asarray(rest) > 0):
        vector = Weights(f"{operator.name}.vector", rest, role="vector")
        parts.append((vector, rest_trained / larger(rest, 1.0)))
    for weights, share in parts:
        stored = None if held is None else held * weights.elements / total
        yield replace(weights, trained=share, expert=operator.expert, stored=stored)


def _shapes(operator: Operator, model: Model) -> tuple[Weights, ...]:
    """Matrices and tables of an operator; empty where it has vectors alone."""
    if operator.matrices:
        return tuple(
            Weights(f"{operator.name}.{matrix.name}", matrix.outputs, matrix.inputs, matrix.count)
            for matrix in operator.matrices
            if not np.any(np.asarray(matrix.outputs) <= 1)
        )
    for work in operator.forward:
        if isinstance(work, Gather):
            width = model.embedding_size or model.hidden_size
            return (Weights(operator.name, operator.parameters / width, width, role="embedding"),)
        if isinstance(work, Matmul) and not np.any(np.asarray(operator.parameters < work.n * work.k)):
            return (Weights(operator.name, work.n, work.k, role="head"),)
    return ()
