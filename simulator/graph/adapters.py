"""Trained branches behind or beside frozen sublayers: bottlenecks, experts of bottlenecks, lite residuals."""

from __future__ import annotations

from dataclasses import replace

from simulator.graph.graph import Matrix, Operator
from simulator.graph.layers import BlockBuilder, accumulated, elementwise
from simulator.graph.routing import Routed, routed
from simulator.graph.work import Elementwise, Matmul, Numeric, Work
from simulator.specs.errors import MemroofError

SUBLAYERS = {"attention.out": "attention.norm.out", "mlp.out": "mlp.norm.out", "cross.out": "cross.norm.out"}
"""Outputs of sublayers, before the residual, and what enters them."""
ACTIVATION = 10.0
"""FLOP of an element's GELU."""


def add_bottlenecks(b: BlockBuilder, width: int) -> None:
    """Add a bottleneck of ``width`` with a residual of its own behind every sublayer (Houlsby et al. 2019, section 2.1)."""
    hidden = _hidden(b)
    for target in SUBLAYERS:
        source = _renamed(b, target)
        if source:
            rows = b.tensors[source].size / b.width / hidden
            prefix = f"{target.removesuffix('.out')}.adapter"
            added = [
                *_branch(b, prefix, source, f"{target}.adapter.up", rows, hidden, width),
                *_collected(b, f"{prefix}.add", (f"{target}.adapter.up", source), target, rows * hidden),
            ]
            _insert_behind(b, source, added)


def add_lite_residuals(b: BlockBuilder, width: int, pool: int) -> None:
    """Add a branch of ``width`` over every ``pool`` positions averaged beside each sublayer (Cai et al. 2020, section 3.2)."""
    hidden = _hidden(b)
    for target, entering in SUBLAYERS.items():
        source = _renamed(b, target)
        if not source:
            continue
        entered = entering if entering in b.tensors else b.operators[0].inputs[0]
        rows, prefix = b.tensors[source].size / b.width / hidden, f"{target.removesuffix('.out')}.lite"
        few = rows / pool
        pooled, up = f"{prefix}.pooled", f"{prefix}.up.out"
        added = [
            *_collected(b, f"{prefix}.pool", (entered,), pooled, few * hidden),
            *_branch(b, prefix, pooled, up, few, hidden, width),
            *_collected(b, f"{prefix}.add", (up, source), target, rows * hidden),
        ]
        _insert_behind(b, source, added)


def add_expert_bottlenecks(b: BlockBuilder, width: int, experts: int, per_token: int) -> None:
    """Make the MLP a mixture: ``experts`` share its frozen weights and have a bottleneck each behind a trained router.

    The shared MLP runs once a token, whatever its experts (Wu et al. 2024, PESC, section 3.2).

    Raises
    ------
    MemroofError
        If the layer has experts of its own.
    """
    if any(op.name.startswith("moe.") for op in b.operators):
        raise MemroofError("strategy.trainable.experts: the model has experts already; leave this out")
    hidden, target = _hidden(b), "mlp.out"
    source = _renamed(b, target)
    if not source:
        return
    prefix, entered = (
        "mlp.adapter",
        "mlp.norm.out" if "mlp.norm.out" in b.tensors else b.operators[0].inputs[0],
    )
    rows = b.tensors[source].size / b.width / hidden
    load = routed(rows, experts, per_token, 1)
    scores, sent = b.tensor(f"{prefix}.scores", rows * experts), f"{prefix}.sent"
    added = [
        _linear(b, f"{prefix}.router", entered, scores, rows, hidden, experts),
        *_collected(b, f"{prefix}.top_k", (scores,), f"{prefix}.routing", rows * experts, saves=(scores,)),
        *_collected(b, f"{prefix}.dispatch", (source, f"{prefix}.routing"), sent, load.copies * hidden),
        *_branch(b, prefix, sent, f"{prefix}.up.out", load.copies, hidden, width, load, experts),
        *_collected(b, f"{prefix}.combine", (f"{prefix}.up.out", source), target, rows * hidden),
    ]
    _insert_behind(b, source, added)


def _branch(
    b: BlockBuilder,
    prefix: str,
    source: str,
    target: str,
    rows: Numeric,
    hidden: Numeric,
    width: int,
    load: Routed | None = None,
    experts: int = 1,
) -> list[Operator]:
    """Return down projection, activation and up projection; one for each expert where there are any, without biases."""
    low, active = b.tensor(f"{prefix}.low", rows * width), f"{prefix}.active"
    b.tensor(target, rows * hidden)
    return [
        _linear(b, f"{prefix}.down", source, low, rows, hidden, width, load, experts),
        *_collected(b, f"{prefix}.activation", (low,), active, rows * width, flops=ACTIVATION, saves=(low,)),
        _linear(b, f"{prefix}.up", active, target, rows, width, hidden, load, experts),
    ]


def _linear(
    b: BlockBuilder,
    name: str,
    source: str,
    target: str,
    rows: Numeric,
    k: Numeric,
    n: Numeric,
    load: Routed | None = None,
    experts: int = 1,
) -> Operator:
    count: Numeric = load.active if load else 1
    each = rows / count if load else rows
    grouped, width = load is not None, b.width
    forward = Matmul(each, n, k, count, b.numerics.compute, width, width, width, grouped)
    gradients: tuple[Work, ...] = accumulated(b, k, n, each, count, grouped=grouped)
    biases: Numeric = 0
    if load is None and not name.endswith("router"):
        biases, gradients = n, (*gradients, Elementwise(rows * n * width, 0.0, rows * n))
    return Operator(
        name, (forward,), (replace(forward, n=k, k=n),), gradients, experts * k * n + biases, (source,), (target,), (source,),
        matrices=(Matrix(name, k, n, experts),), biases=biases,
    )  # fmt: skip


def _collected(
    b: BlockBuilder,
    name: str,
    sources: tuple[str, ...],
    target: str,
    elements: Numeric,
    *,
    flops: float = 1.0,
    saves: tuple[str, ...] = (),
) -> list[Operator]:
    """Return an elementwise operator instead of adding it at the block's end."""
    beside = replace(b, operators=[])
    elementwise(beside, name, sources, target, elements, flops=flops, saves=saves)
    return beside.operators


def _hidden(b: BlockBuilder) -> Numeric:
    return next(op.matrices[0].outputs for op in b.operators if op.name == "attention.output")


def _renamed(b: BlockBuilder, target: str) -> str:
    """Let a sublayer write another tensor, so that what is added can write the one that is read; its name, if there is one."""
    for index, op in enumerate(b.operators):
        if target in op.outputs:
            source = f"{target}.frozen"
            b.tensors[source] = replace(b.tensors[target], name=source)
            outputs = tuple(source if name == target else name for name in op.outputs)
            b.operators[index] = replace(op, outputs=outputs)
            return source
    return ""


def _insert_behind(b: BlockBuilder, source: str, added: list[Operator]) -> None:
    """Insert operators behind the one that writes a tensor."""
    position = next(i for i, op in enumerate(b.operators) if source in op.outputs)
    b.operators[position + 1 : position + 1] = added
