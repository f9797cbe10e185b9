"""Mixture of experts: router, dispatch, grouped products, combine, shared experts."""

from __future__ import annotations

import numpy as np

from simulator.graph.graph import Operator
from simulator.graph.layers import ACTIVATION_FLOPS, BlockBuilder, accumulated, elementwise, linear, mlp
from simulator.graph.routing import Routed, routed
from simulator.graph.work import Collective, CollectiveKind, Elementwise, Matmul, Numeric, Route, Work
from simulator.specs.model import MixtureOfExperts, Model


def moe_mlp(
    b: BlockBuilder, model: Model, moe: MixtureOfExperts, source: str, target: str, *, skew: float = 0.0
) -> str:
    """Add the MoE sublayer of a block.

    Experts are cut over the expert-parallel group and each expert over the tensor-parallel group. Tokens of all ranks
    of the expert-parallel group meet in its experts, so that the tokens of one local expert do not depend on the
    group's size; the weights of experts that no token reaches are not read. ``skew`` is the exponent of the power law of the
    experts' loads (see :func:`simulator.graph.routing.routed`); the rank described is then the busiest. 0 is uniform.
    """
    ep, tp = b.partition.expert, b.tp
    tokens, top_k, experts, width = (
        b.tokens,
        moe.num_experts_per_tok,
        moe.num_experts,
        moe.moe_intermediate_size,
    )
    linear(b, "moe.router", source, "router", b.hidden, experts, bias=moe.router_bias)
    elementwise(b, "moe.top_k", ("router",), "routing", tokens * experts, flops=4.0, saves=("router",))
    copies = tokens * top_k / b.cut
    load = routed(tokens * ep, experts, top_k, ep, skew=skew)
    dispatched = b.tensor("dispatched", load.copies * b.hidden)
    b.add(_permute(b, "moe.dispatch", source, dispatched, copies * b.hidden, routes=load.copies))
    gated = 2 if model.gated_mlp else 1
    up = _grouped(
        b, "moe.up", dispatched, "moe.up.out", load, skew, experts / ep, gated * width / tp, b.hidden, moe
    )
    activated = elementwise(
        b, "moe.activation", (up,), "moe.activation.out", load.copies * width / tp,
        flops=ACTIVATION_FLOPS[model.activation], saves=(up,),
    )  # fmt: skip
    down = _grouped(
        b, "moe.down", activated, "moe.down.out", load, skew, experts / ep, b.hidden, width / tp, moe
    )
    combined = "moe.combined" if moe.num_shared_experts else target
    b.tensor(combined, tokens * b.hidden / b.cut)
    b.add(_permute(b, "moe.combine", down, combined, copies * b.hidden, reduce=True))
    if not moe.num_shared_experts:
        return combined
    shared_width = moe.shared_intermediate_size or moe.num_shared_experts * width
    shared = mlp(
        b, "moe.shared", source, "moe.shared.out", shared_width,
        gated=model.gated_mlp, activation=model.activation, bias=False,
    )  # fmt: skip
    if moe.shared_expert_gate:
        linear(b, "moe.shared.gate", source, "moe.shared.gate.out", b.hidden, 1)
    return elementwise(b, "moe.add", (combined, shared), target, tokens * b.hidden / b.cut)


def _permute(
    b: BlockBuilder,
    name: str,
    source: str,
    target: str,
    elements: Numeric,
    *,
    routes: Numeric | None = None,
    reduce: bool = False,
) -> Operator:
    """Sort token copies by expert (``routes`` of them arrive) or back, with the all-to-all of the expert-parallel group.

    With tensor parallelism the experts' partial outputs are also reduced over the tensor-parallel group.
    """
    size = elements * b.width
    works: list[Work] = [Elementwise(size, size), Collective("all-to-all", "expert", size)]
    kind: CollectiveKind = "reduce-scatter" if reduce else "all-gather"
    backward_kind: CollectiveKind = "all-gather" if reduce else "reduce-scatter"
    scattered = b.partition.sequence_parallel
    full = b.tokens * b.hidden * b.width
    # the backward pass goes the way back that the forward pass has sorted
    forward = [*works] if routes is None else [Route(routes), *works]
    backward = [*works]
    if scattered:
        forward.append(Collective(kind, "tensor", full))
        backward.append(Collective(backward_kind, "tensor", full))
    elif reduce:
        forward.append(Collective("all-reduce", "tensor", full))
    else:
        backward.append(Collective("all-reduce", "tensor", full))
    return Operator(name, tuple(forward), tuple(backward), (), 0, (source,), (target,))


def _grouped(
    b: BlockBuilder,
    name: str,
    source: str,
    target: str,
    load: Routed,
    skew: float,
    local: Numeric,
    n: Numeric,
    k: Numeric,
    moe: MixtureOfExperts,
) -> str:
    compute, width, weight = b.numerics.compute, b.width, b.numerics.weight_bytes
    active = load.active
    rows = load.copies / np.maximum(active, 1e-9)
    written = b.tensor(target, load.copies * n)
    # rows of an expert are Poisson where routing is uniform
    spread = 0.0 if skew else np.maximum(rows, 1.0) ** -0.5

    def product(m: Numeric, n: Numeric, k: Numeric, right: float) -> Matmul:
        return Matmul(
            m,
            n,
            k,
            active,
            compute,
            width,
            right,
            width,
            grouped=True,
            spread=spread,
            skew=skew,
            reach=load.reach,
        )

    parameters = local * (n * k + (n if moe.expert_bias else 0))
    b.add(
        Operator(
            name, (product(rows, n, k, weight),), (product(rows, k, n, weight),),
            accumulated(b, k, n, rows, active, grouped=True),
            parameters, (source,), (written,), (source,), expert=True,
        )
    )  # fmt: skip
    return written
