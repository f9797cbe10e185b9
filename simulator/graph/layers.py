"""The operators that blocks are made of: linear, norm, attention, MLP, MoE, embedding, head.

Every function returns operators with their work forward and backward, parameters and saved tensors; a
:class:`BlockBuilder` collects them with the tensors between. Tensor parallelism is Megatron's (Shoeybi et al. 2019,
section 3; with sequence parallelism Korthikanti et al. 2022, section 4.2): column-parallel products gather or copy their
input, row-parallel products reduce their output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from simulator.graph.graph import Block, Cut, Matrix, Numerics, Operator, Partition, Tensor
from simulator.graph.quantise import (
    activation_width,
    cast,
    product_kernel,
    scaled,
    stored_weights,
    weight_width,
)
from simulator.graph.work import Collective, CollectiveKind, Elementwise, Matmul, Numeric, Work
from simulator.specs.model import Model

MASK_BYTES = 1.0
"""A dropout mask takes one byte an element (Korthikanti et al. 2022, section 4.1)."""
NORM_FLOPS = {"layernorm": 7.0, "rmsnorm": 4.0}
ACTIVATION_FLOPS = {"gelu": 10.0, "relu": 1.0, "silu": 6.0}


@dataclass
class BlockBuilder:
    """Collects the operators and tensors of one block for ``tokens`` tokens of width ``hidden``."""

    name: str
    tokens: Numeric
    hidden: int
    partition: Partition
    numerics: Numerics
    operators: list[Operator] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    @property
    def tp(self) -> Numeric:
        """Tensor-parallel degree."""
        return self.partition.tensor

    @property
    def cut(self) -> Numeric:
        """What norms, dropouts and residuals are cut by: the tensor-parallel degree with sequence parallelism."""
        return self.partition.tensor if self.partition.sequence_parallel else 1

    @property
    def context(self) -> Numeric | None:
        """Context-parallel degree; nothing where sequences are not cut."""
        return self.partition.context if self.partition.cuts_context else None

    @property
    def width(self) -> float:
        """Bytes of one activation."""
        return self.numerics.activation_bytes

    @property
    def wide(self) -> BlockBuilder:
        """The same block for operators that stay in 16 bits where linear layers are quantised."""
        return replace(self, numerics=self.numerics.wide)

    def tensor(self, name: str, elements: Numeric, width: float | None = None) -> str:
        """Register a tensor of ``elements`` on this rank; returns its name."""
        self.tensors[name] = Tensor(name, elements * (self.width if width is None else width))
        return name

    def add(self, operator: Operator) -> None:
        """Append an operator."""
        self.operators.append(operator)

    def build(self, *, kv_width: Numeric = 0, kv_window: float = float("inf")) -> Block:
        """Return the block, with the gradients of tensors that several operators read summed."""
        _sum_gradients(self.operators, self.tensors)
        return Block(self.name, tuple(self.operators), dict(self.tensors), "input", kv_width, kv_window)


def _sum_gradients(operators: list[Operator], tensors: dict[str, Tensor]) -> None:
    """Where a tensor feeds several operators, their gradients for it are added: two reads and a write for each further one.

    The first reader is the last to run in the backward pass and so pays. Attention kernels read disjoint parts (queries,
    keys, values) of one tensor, which need no sum.
    """
    readers: dict[str, list[int]] = {}
    for index, operator in enumerate(operators):
        for name in operator.inputs if operator.input_gradient else ():
            if not (operator.core and name in readers):
                readers.setdefault(name, []).append(index)
        for name in operator.outputs:
            if name in operator.inputs:  # in place: what follows reads another value
                readers.pop(name, None)
    for name, found in readers.items():
        further, size = len(found) - 1, tensors[name].size
        if further:
            first = operators[found[0]]
            added = Elementwise(2.0 * further * size, further * size)
            operators[found[0]] = replace(first, input_gradient=(*first.input_gradient, added))


def linear(
    b: BlockBuilder,
    name: str,
    source: str,
    target: str,
    inputs: Numeric,
    outputs: Numeric,
    *,
    parallel: Cut = "none",
    parts: Mapping[str, Numeric] | None = None,
    bias: bool = False,
    rows: Numeric | None = None,
    saves_input: bool = True,
    gathers: bool = True,
) -> str:
    """Add a linear layer ``source`` (rows, inputs) to ``target`` (rows, outputs).

    ``column`` cuts outputs over the tensor-parallel group and, with sequence parallelism, gathers the input first;
    ``row`` cuts inputs and reduces the output. In the backward pass the collective of the input gradient runs beside
    the weight-gradient product and the repeated gather beside the input-gradient product, as in Megatron-LM's
    asynchronous linear layers; each may also follow its own product chunk by chunk. ``gathers=False`` where an earlier
    column-parallel product has gathered already. ``parts`` are the projections that the layer joins, by name, with their outputs.

    Quantised training casts the input, keeps the cast copy for the weight gradient instead, casts the output's gradient, and
    gathers what it has cast (Transformer Engine's linear layers); weights are cast once a step.
    """
    rows = b.tokens if rows is None else rows
    tp, width = b.tp, b.width
    n = outputs / tp if parallel == "column" else outputs
    k = inputs / tp if parallel == "row" else inputs
    forward: list[Work] = [_matmul(b, rows, n, k)]
    input_gradient: list[Work] = [_matmul(b, rows, k, n)]
    weight_gradient: list[Work] = [*accumulated(b, k, n, rows)]
    full = rows * (inputs if parallel == "column" else outputs)
    narrow, full = full * activation_width(b.numerics), full * width
    scattered = b.partition.sequence_parallel
    if parallel == "column" and gathers:
        if scattered:
            forward.insert(0, Collective("all-gather", "tensor", narrow, chunked=True))
            weight_gradient.insert(0, Collective("all-gather", "tensor", narrow, hidden_by="input-gradient"))
        reduce: CollectiveKind = "reduce-scatter" if scattered else "all-reduce"
        input_gradient.append(
            Collective(reduce, "tensor", full, hidden_by="weight-gradient", chunked=scattered)
        )
    if parallel == "row":
        closing: CollectiveKind = "reduce-scatter" if scattered else "all-reduce"
        forward.append(Collective(closing, "tensor", full, chunked=scattered))
        if scattered:
            input_gradient.insert(0, Collective("all-gather", "tensor", narrow, chunked=True))
    written = b.tensor(target, rows * n / (b.cut if parallel == "row" else 1))
    if bias:  # its gradient is the sum of the output's gradient over rows
        weight_gradient.append(Elementwise(b.tensors[written].size, 0.0, rows * n))
    biases = (n if parallel != "row" else outputs) if bias else 0
    shared = outputs / n if parallel == "column" else 1
    matrices = tuple(
        Matrix(part, k, size / shared, 1, parallel) for part, size in (parts or {name: outputs}).items()
    )
    operator = Operator(
        name, tuple(forward), tuple(input_gradient), tuple(weight_gradient), n * k + biases,
        (source,), (written,), (source,) if saves_input else (), matrices=matrices, biases=biases,
    )  # fmt: skip
    b.add(quantised(b, operator, n * k, b.tensors[written].size / width))
    return written


def quantised(b: BlockBuilder, operator: Operator, weights: Numeric, outputs: Numeric) -> Operator:
    """Return a linear operator with the casts of its input, of its output's gradient and, once a step, of its weights.

    ``outputs`` are the elements of its output on this rank. Nothing changes where nothing is quantised on the way.
    """
    numerics = b.numerics
    source = operator.inputs[0]
    elements = b.tensors[source].size / b.width
    kernels = cast(numerics, elements)
    if not kernels:
        return operator
    copy = b.tensor(operator.cast_copy, elements, activation_width(numerics))
    return replace(
        operator,
        forward=(*kernels, *operator.forward),
        input_gradient=(*cast(numerics, outputs), *operator.input_gradient),
        outputs=(*operator.outputs, copy),
        saves=tuple(copy if name == source else name for name in operator.saves),
        stored=stored_weights(numerics, weights, operator.biases),
        step=cast(numerics, weights, weight=True),
    )


def _matmul(b: BlockBuilder, m: Numeric, n: Numeric, k: Numeric) -> Matmul:
    numerics = b.numerics
    left, right = activation_width(numerics), weight_width(numerics)
    return Matmul(
        m, n, k, 1, numerics.compute, left, right, b.width, scaled=scaled(numerics), kernel=product_kernel(numerics)
    )  # fmt: skip


def accumulated(
    b: BlockBuilder, m: Numeric, n: Numeric, k: Numeric, count: Numeric = 1, *, grouped: bool = False
) -> tuple[Work, ...]:
    """A weight gradient (m, n) from k rows, added to the sum over micro-batches: the sum is read and written.

    The product does so itself, or another kernel adds what the product has written (Megatron-LM before its fused weight
    gradients, PyTorch's autograd).
    """
    numerics = b.numerics
    written = 2.0 * numerics.gradient_bytes if numerics.fused_accumulation else b.width
    operand = activation_width(numerics)
    product = Matmul(
        m, n, k, count, numerics.compute, operand, operand, written, grouped, scaled=scaled(numerics),
        kernel=product_kernel(numerics),
    )  # fmt: skip
    if numerics.fused_accumulation:
        return (product,)
    elements = m * n * count
    added = Elementwise(
        elements * (b.width + numerics.gradient_bytes), elements * numerics.gradient_bytes, elements
    )
    return product, added


def elementwise(
    b: BlockBuilder,
    name: str,
    sources: tuple[str, ...],
    target: str,
    elements: Numeric,
    *,
    flops: float = 1.0,
    parameters: Numeric = 0,
    biases: Numeric = 0,
    saves: tuple[str, ...] = (),
    mask: Numeric | None = None,
    core: bool = False,
) -> str:
    """Add a kernel that reads ``sources`` and writes ``target`` of ``elements`` on this rank.

    The backward pass reads the output's gradient and what was saved, and writes one gradient for each source that the
    kernel does not merely pass on. ``mask`` is the count of elements of a dropout mask that is written and kept.
    """
    width = b.width
    written = b.tensor(target, elements)
    kept = saves
    extra: Numeric = 0.0
    if mask is not None:
        kept = (*saves, b.tensor(f"{target}.mask", mask, MASK_BYTES))
        extra = mask * MASK_BYTES
    read = sum((b.tensors[s].size for s in sources), start=0.0)
    saved = sum((b.tensors[s].size for s in kept), start=0.0)
    work = elements * flops
    forward = Elementwise(read, elements * width + extra, work)
    backward = Elementwise(elements * width + saved, b.tensors[sources[0]].size, 2.0 * work)
    outputs = (written, *kept[len(saves) :])
    b.add(
        Operator(name, (forward,), (backward,), (), parameters, sources, outputs, kept, core, biases=biases)
    )
    return written


def norm(
    b: BlockBuilder,
    name: str,
    source: str,
    target: str,
    kind: str,
    *,
    bias: bool,
    width: Numeric | None = None,
    elements: Numeric | None = None,
) -> str:
    """Add a layer norm or RMS norm; it keeps its input. ``width`` is the normed dimension (parameters)."""
    width = b.hidden if width is None else width
    elements = b.tokens * width / b.cut if elements is None else elements
    parameters = width * (2 if bias else 1)
    return elementwise(
        b, name, (source,), target, elements, flops=NORM_FLOPS[kind], parameters=parameters,
        biases=width if bias else 0, saves=(source,),
    )  # fmt: skip


def dropout_add(b: BlockBuilder, name: str, source: str, residual: str, target: str, *, dropout: bool) -> str:
    """Add bias, dropout and the residual in one kernel; keeps the mask."""
    elements = b.tokens * b.hidden / b.cut
    mask = elements if dropout else None
    return elementwise(b, name, (source, residual), target, elements, flops=3.0, mask=mask)


def mlp(
    b: BlockBuilder,
    prefix: str,
    source: str,
    target: str,
    intermediate: Numeric,
    *,
    gated: bool,
    activation: str,
    bias: bool,
    gathers: bool = True,
) -> str:
    """Add an MLP: up (and gate) projection, activation, down projection."""
    halves = ("gate_proj", "up_proj") if gated else ("up_proj",)
    up = linear(
        b, f"{prefix}.up", source, f"{prefix}.up.out", b.hidden, len(halves) * intermediate,
        parallel="column", parts=dict.fromkeys(halves, intermediate), bias=bias, gathers=gathers,
    )  # fmt: skip
    active = elementwise(
        b, f"{prefix}.activation", (up,), f"{prefix}.activation.out", b.tokens * intermediate / b.tp,
        flops=ACTIVATION_FLOPS[activation], saves=(up,),
    )  # fmt: skip
    return linear(
        b, f"{prefix}.down", active, target, intermediate, b.hidden,
        parallel="row", parts={"down_proj": b.hidden}, bias=bias,
    )  # fmt: skip


def norm_has_bias(model: Model) -> bool:
    """Whether norms carry a bias: layer norms do unless the model says no, RMS norms do not."""
    return model.normalization == "layernorm" if model.norm_bias is None else model.norm_bias
