"""Joined projections as products of their own: queries, keys and values, gate and up (models written in plain PyTorch)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from simulator.graph.graph import Block, Operator, Tensor
from simulator.graph.work import Elementwise, Matmul, Numeric, Work

VALUES = "v_proj"
"""The projection that operators in place (rotary embedding) do not touch."""


def separate(block: Block) -> Block:
    """Return a block whose joined linear layers are one product for each projection, with an output of its own each.

    Casts, gathers and reductions stay with the first projection, which all share; gradients of the input that the projections
    have in common are added up. Operators are named ``attention.qkv.q_proj``, ``mlp.up.gate_proj`` and so on.
    """
    parts: dict[str, tuple[str, ...]] = {}
    tensors = dict(block.tensors)
    operators: list[Operator] = []
    for op in block.operators:
        if len(op.matrices) < 2:
            operators.append(_reading(op, parts))
            continue
        if op.cast_copy in op.outputs:  # one cast for all projections, made by the first
            op, copy = _with_copy(op), tensors.pop(op.cast_copy)
            tensors[op.outputs[1]] = replace(copy, name=op.outputs[1])
        joined = op.outputs[0]
        parts[joined] = tuple(f"{joined}.{matrix.name}" for matrix in op.matrices)
        whole = sum((matrix.outputs for matrix in op.matrices), start=0.0)
        size = tensors.pop(joined).size
        for name, matrix in zip(parts[joined], op.matrices, strict=True):
            tensors[name] = Tensor(name, size * (matrix.outputs / whole))
        operators += _projections(op, parts[joined], tensors[op.inputs[0]].size)
    return replace(block, operators=tuple(operators), tensors=tensors)


def _with_copy(op: Operator) -> Operator:
    copy = f"{op.name}.{op.matrices[0].name}.input"
    return replace(
        op,
        outputs=tuple(copy if name == op.cast_copy else name for name in op.outputs),
        saves=tuple(copy if name == op.cast_copy else name for name in op.saves),
    )


def _projections(op: Operator, outputs: tuple[str, ...], read: Numeric) -> list[Operator]:
    whole = sum((matrix.outputs for matrix in op.matrices), start=0.0)
    found = []
    for place, (matrix, output) in enumerate(zip(op.matrices, outputs, strict=True)):
        share, first = matrix.outputs / whole, place == 0
        summed = Elementwise(2.0 * read, read)
        input_gradient = _cut(op.input_gradient, share, first=first, inner=True)
        found.append(
            replace(
                op,
                name=f"{op.name}.{matrix.name}",
                forward=_cut(op.forward, share, first=first),
                input_gradient=input_gradient if first else (*input_gradient, summed),
                weight_gradient=_cut(op.weight_gradient, share, first=first),
                parameters=op.parameters * share,
                outputs=(output, *(op.outputs[1:] if first else ())),
                matrices=(matrix,),
                biases=op.biases * share,
                trainable=None if op.trainable is None else op.trainable * share,
                stored=None if op.stored is None else op.stored * share,
                step=op.step if first else (),
            )
        )
    return found


def _cut(works: Iterable[Work], share: Numeric, *, first: bool, inner: bool = False) -> tuple[Work, ...]:
    """Products with a share of the outputs (in a product's inner dimension where it is); other work is the first one's."""

    def part(work: Work) -> Work:
        if not isinstance(work, Matmul):
            return work
        return replace(work, k=work.k * share) if inner else replace(work, n=work.n * share)

    return tuple(part(work) for work in works if first or isinstance(work, Matmul))


def _reading(op: Operator, parts: Mapping[str, tuple[str, ...]]) -> Operator:
    """Return an operator that reads, writes and keeps projections where it did their joined output."""
    if not any(name in parts for name in (*op.inputs, *op.outputs, *op.saves)):
        return op
    in_place = set(op.inputs) & set(op.outputs)

    def each(names: Iterable[str]) -> tuple[str, ...]:
        found: list[str] = []
        for name in names:
            split = parts.get(name, (name,))
            found += [part for part in split if not (name in in_place and part.endswith(VALUES))]
        return tuple(found)

    return replace(op, inputs=each(op.inputs), outputs=each(op.outputs), saves=each(op.saves))
