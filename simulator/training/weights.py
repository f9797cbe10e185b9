"""The weight tensors of a rank by shape, which optimizers that look at more than single elements need.

A linear layer's matrix is found in its operator: a forward product of (m, k) by (k, n) and n·k parameters or a multiple.
What projections share one product (queries, keys and values; gate and up) are matrices of their own to an optimizer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from simulator.cost.numeric import floor, larger, smaller
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
        found += [replace(weights, count=weights.count * times) for weights in block]
    if head:
        found += block_weights(graph.head, model, whole.head if whole else None)
    return tuple(found)


def block_weights(block: Block, model: Model, whole: Block | None = None) -> tuple[Weights, ...]:
    """Return the weights of a block on one rank, operator by operator; ``whole`` is the block without tensor parallelism."""
    uncut = whole.operators if whole else block.operators
    found: list[Weights] = []
    for operator, other in zip(block.operators, uncut, strict=True):
        parts = tuple(_operator_weights(operator, model))
        if whole:
            others = _operator_weights(other, model)
            parts = tuple(
                replace(part, whole=(o.rows, o.columns)) for part, o in zip(parts, others, strict=True)
            )
        found += parts
    return tuple(found)


def _operator_weights(operator: Operator, model: Model) -> Iterator[Weights]:
    if not np.any(np.asarray(operator.parameters) > 0):
        return
    total: Numeric = operator.parameters
    trained = getattr(operator, "trainable", None)
    trained = total if trained is None else trained
    shapes = _shapes(operator, model, total)
    matrices = sum((w.elements for w in shapes), start=0.0)
    rest = total - matrices
    # a bias is what is trained where less is than a matrix has
    rest_trained = smaller(trained, rest)
    if shapes:
        share = (trained - rest_trained) / matrices
        for weights in shapes:
            yield replace(weights, trained=share, expert=operator.expert)
    if np.any(np.asarray(rest) > 0):
        share = rest_trained / larger(rest, 1.0)
        yield Weights(f"{operator.name}.vector", rest, role="vector", trained=share, expert=operator.expert)


def _shapes(operator: Operator, model: Model, total: Numeric) -> tuple[Weights, ...]:
    """Matrices and tables of an operator; empty where it has vectors alone."""
    for work in operator.forward:
        if isinstance(work, Gather):
            width = model.embedding_size or model.hidden_size
            return (Weights(operator.name, total / width, width, role="embedding"),)
        if isinstance(work, Matmul):
            count: Numeric = floor(total / (work.n * work.k) + 1e-9)
            if not np.all(np.asarray(count) >= 1) or np.any(np.asarray(work.n) <= 1):
                return ()
            role: Role = "head" if operator.name == "logits" else "matrix"
            return tuple(
                Weights(name, rows, work.k, count, role)
                for name, rows in _projections(operator.name, work.n, model)
            )
    return ()


def _projections(name: str, rows: Numeric, model: Model) -> tuple[tuple[str, Numeric], ...]:
    """The projections that share a product of ``rows`` outputs, with the outputs of each."""
    if name == "attention.qkv":
        heads, groups, width = model.num_attention_heads, model.kv_heads, model.attention_head_dim
        # a rank holds one key and value head at least
        queries = smaller(rows * heads / (heads + 2 * groups), rows - 2 * width)
        keys = (rows - queries) / 2
        return ("attention.q", queries), ("attention.k", keys), ("attention.v", keys)
    if name == "cross.kv":
        return ("cross.k", rows / 2), ("cross.v", rows / 2)
    if name.endswith(".up") and model.gated_mlp:
        return (name, rows / 2), (name.removesuffix("up") + "gate", rows / 2)
    return ((name, rows),)
