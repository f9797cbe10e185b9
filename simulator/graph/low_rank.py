"""Thin products in and beside weight matrices: LoRA, QLoRA's 4-bit base, SLTrain's low rank plus sparse.

Functions take a builder that holds the operators of a block and change them in place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from simulator.graph.graph import Matrix, Operator
from simulator.graph.layers import MASK_BYTES, BlockBuilder, accumulated
from simulator.graph.work import Collective, Elementwise, Matmul, Numeric, Work
from simulator.specs.errors import MemroofError, did_you_mean

GROUPS = ("attention", "mlp", "moe")
ROUTERS = ("moe.router", "moe.shared.gate")
"""Layers that no group means."""
INDEX_BYTES = 8.0
"""Of a nonzero's place: PyTorch's int64 (Han et al. 2024, SLTrain, section 3.3)."""
SCALE_BYTES, SCALES_A_BLOCK = 4.0, 256


def targeted(operators: Iterable[Operator], targets: tuple[str, ...]) -> list[tuple[Operator, Matrix]]:
    """Return the weight matrices that names mean: a group's projections, a projection, or an operator's joined product."""
    found: list[tuple[Operator, Matrix]] = []
    for op in operators:
        if not op.matrices:
            continue
        if op.name in targets:
            first = op.matrices[0]
            width = sum((matrix.outputs for matrix in op.matrices[1:]), start=first.outputs)
            found.append((op, replace(first, name=op.name, outputs=width)))
            continue
        group = op.name.split(".")[0] in targets and op.name not in ROUTERS
        found += [(op, matrix) for matrix in op.matrices if group or matrix.name in targets]
    return found


def check_targets(operators: Sequence[Operator], targets: tuple[str, ...]) -> None:
    """Refuse targets that name nothing.

    Raises
    ------
    MemroofError
        With the nearest name.
    """
    known = {*GROUPS}
    for op in operators:
        known |= {op.name} if op.matrices else set()
        known |= {matrix.name for matrix in op.matrices}
    for target in targets:
        if target not in known:
            raise MemroofError(
                f"strategy.trainable.targets: no layer is called {target!r}{did_you_mean(target, sorted(known))}"
            )
    if not targeted(operators, targets):
        raise MemroofError(
            f"strategy.trainable.targets: no layer of this model is among {', '.join(targets)}"
        )


def add_low_rank(b: BlockBuilder, op: Operator, matrix: Matrix, rank: int, dropout: float) -> None:
    """Add a low-rank adapter behind an operator: its output gets B·A·x, scaled.

    Cut as Megatron's parallel adapters are: beside a column-parallel product A shares its rank over the tensor-parallel group
    and gathers, B shares the outputs; beside a row-parallel one A shares the inputs and reduces, B shares the outputs and
    gathers. Gradients of the input are added before the base product's reduction. Experts have an adapter each.
    """
    prefix = op.name if matrix.name == op.name else f"{op.name}.{matrix.name}"
    base = _product(op)
    rows, count, source, target = base.m, base.count, op.inputs[0], op.outputs[0]
    cut = "none" if op.expert else matrix.cut
    inner = rank / b.tp if cut == "column" else rank
    outer = matrix.outputs / b.tp if cut == "row" else matrix.outputs
    if dropout:
        source = _dropped(b, op.name, f"{prefix}.lora_dropout", source, rows * count * matrix.inputs)
    low = b.tensor(f"{prefix}.low", rows * count * rank)
    size = rows * count * rank * b.width
    share = matrix.outputs / sum((each.outputs for each in op.matrices), start=0)
    result = b.tensors[target].size * share
    gather: list[Work] = [Collective("all-gather", "tensor", size)] if cut == "column" else []
    reduce: list[Work] = [Collective("all-reduce", "tensor", size)] if cut == "row" else []
    scatter: list[Work] = [Collective("reduce-scatter", "tensor", size)] if cut == "column" else []
    summed = [] if dropout else [Elementwise(2.0 * b.tensors[source].size, b.tensors[source].size)]
    a_gradient = _weight_gradient(b, matrix.inputs, inner, base)
    if (
        cut == "column" and b.partition.sequence_parallel and not dropout
    ):  # the kept input is this rank's slice
        whole = rows * matrix.inputs * b.width
        a_gradient = (Collective("all-gather", "tensor", whole, hidden_by="input-gradient"), *a_gradient)
    _insert_behind(
        b,
        f"{prefix}.lora_dropout" if dropout else op.name,
        Operator(
            f"{prefix}.lora_a", (_thin(b, base, inner, matrix.inputs), *gather, *reduce),
            (*scatter, _thin(b, base, matrix.inputs, inner), *summed), a_gradient, matrix.count * inner * matrix.inputs,
            (source,), (low,), (source,), expert=op.expert,
            matrices=(Matrix(f"{prefix}.lora_a", matrix.inputs, inner, matrix.count, cut),),
        ),
    )  # fmt: skip
    whole = rows * outer * (b.tp if cut == "row" else 1) * b.width
    spread: list[Work] = [Collective("all-gather", "tensor", whole)] if cut == "row" else []
    again = spread if b.partition.sequence_parallel else []
    scale = Elementwise(result, result, 0.0)
    _insert_behind(
        b,
        f"{prefix}.lora_a",
        Operator(
            f"{prefix}.lora_b",
            (_thin(b, base, outer, rank), *spread, Elementwise(3.0 * result, 2.0 * result, 0.0, kernels=2)),
            (*again, scale, _thin(b, base, rank, outer), *reduce), _weight_gradient(b, rank, outer, base),
            matrix.count * outer * rank, (low, target), (target,), (low,), expert=op.expert,
            matrices=(Matrix(f"{prefix}.lora_b", rank, outer, matrix.count, "column" if cut != "none" else cut),),
        ),
    )  # fmt: skip


def four_bit_bytes(block: int, *, double: bool) -> float:
    """Bytes of a weight in 4 bits with a scale for ``block`` of them (Dettmers et al. 2023, section 3).

    Examples
    --------
    >>> round((four_bit_bytes(64, double=True) - 0.5) * 8, 3), (four_bit_bytes(64, double=False) - 0.5) * 8
    (0.127, 0.5)
    """
    scale = 1.0 + SCALE_BYTES / SCALES_A_BLOCK if double else SCALE_BYTES
    return 0.5 + scale / block


def in_four_bits(b: BlockBuilder, op: Operator, block: int, *, double: bool) -> Operator:
    """Return a linear operator whose weights lie in 4 bits and are dequantised before each product that reads them."""
    if not op.matrices:
        return op
    weights = sum((matrix.elements for matrix in op.matrices), start=0)
    packed = weights * four_bit_bytes(block, double=double)
    wide = b.numerics.activation_bytes
    unpack = Elementwise(packed, weights * wide, 2.0 * weights)
    return replace(
        op,
        forward=(unpack, *op.forward),
        input_gradient=(unpack, *op.input_gradient) if op.input_gradient else (),
        stored=packed + (op.parameters - weights) * b.numerics.weight_bytes,
        formed=_largest(op) * wide,
    )


def low_rank_sparse(b: BlockBuilder, op: Operator, rank: int, density: float) -> Operator:
    """Return a linear operator with W = B·A + S in place of its weights.

    W is formed before each product and dropped behind it; its dense gradient is formed for one layer at a time and projected on
    A, B and the support of S (Han et al. 2024, section 3.3, algorithm 1).
    """
    width, gradient = b.width, b.numerics.gradient_bytes
    thin = sum((rank * (m.inputs + m.outputs) * m.count for m in op.matrices), start=0)
    nonzeros = density * sum((m.elements for m in op.matrices), start=0)
    form: list[Work] = [_dense(b, m.outputs, m.inputs, rank, m.count) for m in op.matrices]
    form.append(Elementwise(nonzeros * (INDEX_BYTES + 2.0 * width), nonzeros * width, nonzeros))
    gradients: list[Work] = [
        replace(work, out_bytes=width) if isinstance(work, Matmul) else work
        for work in op.weight_gradient
        if not (isinstance(work, Elementwise) and work.written)
    ]
    for m in op.matrices:
        gradients += [
            _dense(b, m.outputs, rank, m.inputs, m.count),
            _dense(b, rank, m.inputs, m.outputs, m.count),
        ]
    trained = thin + nonzeros
    gradients.append(Elementwise(nonzeros * INDEX_BYTES + trained * (width + gradient), trained * gradient))
    parameters = trained + op.biases
    factors = tuple(
        factor
        for m in op.matrices
        for factor in (
            Matrix(f"{m.name}.a", m.inputs, rank, m.count),
            Matrix(f"{m.name}.b", rank, m.outputs, m.count),
        )
    )
    return replace(
        op,
        forward=(*form, *op.forward),
        input_gradient=(*form, *op.input_gradient),
        weight_gradient=tuple(gradients),
        parameters=parameters,
        stored=parameters * b.numerics.weight_bytes + nonzeros * INDEX_BYTES,
        matrices=factors,
        formed=_largest(op) * width,
    )


def _largest(op: Operator) -> Numeric:
    """Elements of an operator's largest matrix."""
    largest: Numeric = op.matrices[0].elements
    for matrix in op.matrices[1:]:
        largest = np.maximum(largest, matrix.elements)
    return largest


def _product(op: Operator) -> Matmul:
    return next(work for work in op.forward if isinstance(work, Matmul))


def _thin(b: BlockBuilder, base: Matmul, n: Numeric, k: Numeric) -> Matmul:
    """Return a 16-bit product over the rows of a base product."""
    width = b.width
    return replace(
        base,
        n=n,
        k=k,
        format=b.numerics.compute,
        left_bytes=width,
        right_bytes=width,
        out_bytes=width,
        scaled=0.0,
    )


def _dense(b: BlockBuilder, m: Numeric, n: Numeric, k: Numeric, count: Numeric) -> Matmul:
    return Matmul(m, n, k, count, b.numerics.compute, b.width, b.width, b.width)


def _weight_gradient(b: BlockBuilder, m: Numeric, n: Numeric, base: Matmul) -> tuple[Work, ...]:
    return accumulated(b, m, n, base.m, base.count, grouped=base.grouped)


def _dropped(b: BlockBuilder, behind: str, name: str, source: str, elements: Numeric) -> str:
    """Add the dropout of an adapter's input behind the operator that reads the same source."""
    size, mask = elements * b.width, b.tensor(f"{name}.mask", elements, MASK_BYTES)
    out = b.tensor(f"{name}.out", elements)
    bits = elements * MASK_BYTES
    backward = (Elementwise(size + bits, size, elements), Elementwise(2.0 * size, size, elements))
    dropout = Operator(
        name, (Elementwise(size, size + bits, elements),), backward, (), 0, (source,), (out, mask), (mask,)
    )
    _insert_behind(b, behind, dropout)
    return out


def _insert_behind(b: BlockBuilder, name: str, operator: Operator) -> None:
    position = next(i for i, op in enumerate(b.operators) if op.name == name)
    b.operators.insert(position + 1, operator)
