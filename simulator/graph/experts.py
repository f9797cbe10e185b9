"""Mixture of experts: router, dispatch, grouped products, combine, shared experts."""

from __future__ import annotations

import numpy as np

from simulator.graph.graph import Operator
from simulator.graph.layers import ACTIVATION_FLOPS, BlockBuilder, accumulated, elementwise, linear, mlp
from simulator.graph.work import Collective, CollectiveKind, Elementwise, Matmul, Numeric, Work
from simulator.specs.model import MixtureOfExperts, Model


def active_experts(experts: Numeric, per_token: Numeric, tokens: Numeric) -> Numeric:
    """Expected count of experts that at least one of ``tokens`` tokens is routed to, for uniform routing.

    E·(1 - (1 - k/E)^T): each token picks k of E experts; an expert is idle only if no token picks it.
    """
    return experts * -np.expm1(
        tokens * np.log1p(-np.minimum(per_token / np.asarray(experts, float), 1.0 - 1e-12))
    )


def moe_mlp(b: BlockBuilder, model: Model, moe: MixtureOfExperts, source: str, target: str) -> str:
    """Add the MoE sublayer of a block.

    Experts are cut over the expert-parallel group and each expert over the tensor-parallel group. Tokens of all ranks
    of the expert-parallel group meet in its experts, so that the tokens of one local expert do not depend on the
    group's size; the weights of experts that no token reaches are not read.
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
    dispatched = b.tensor("dispatched", tokens * top_k * b.hidden)
    b.add(_permute(b, "moe.dispatch", source, dispatched, copies * b.hidden, exchange=True))
    active = active_experts(experts, top_k, tokens * ep) / ep
    rows = tokens * top_k / active
    gated = 2 if model.gated_mlp else 1
    up = _grouped(
        b, "moe.up", dispatched, "moe.up.out", rows, active, experts / ep, gated * width / tp, b.hidden, moe
    )
    activated = elementwise(
        b, "moe.activation", (up,), "moe.activation.out", tokens * top_k * width / tp,
        flops=ACTIVATION_FLOPS[model.activation], saves=(up,),
    )  # fmt: skip
    down = _grouped(
        b, "moe.down", activated, "moe.down.out", rows, active, experts / ep, b.hidden, width / tp, moe
    )
    combined = "moe.combined" if moe.num_shared_experts else target
    b.tensor(combined, tokens * b.hidden / b.cut)
    b.add(_permute(b, "moe.combine", down, combined, copies * b.hidden, exchange=True, reduce=True))
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
    exchange: bool,
    reduce: bool = False,
) -> Operator:
    """Sort token copies by expert (or back), with the all-to-all of the expert-parallel group.

    With tensor parallelism the experts' partial outputs are also reduced over the tensor-parallel group.
    """
    size = elements * b.width
    copy = Elementwise(size, size)
    works: list[Work] = [copy]
    if exchange:
        works.append(Collective("all-to-all", "expert", size))
    kind: CollectiveKind = "reduce-scatter" if reduce else "all-gather"
    backward_kind: CollectiveKind = "all-gather" if reduce else "reduce-scatter"
    scattered = b.partition.sequence_parallel
    full = b.tokens * b.hidden * b.width
    forward = [*works]
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
    rows: Numeric,
    active: Numeric,
    local: Numeric,
    n: Numeric,
    k: Numeric,
    moe: MixtureOfExperts,
) -> str:
    compute, width, weight = b.numerics.compute, b.width, b.numerics.weight_bytes
    written = b.tensor(target, rows * active * n)

    def product(m: Numeric, n: Numeric, k: Numeric, right: float) -> Matmul:
        return Matmul(m, n, k, active, compute, width, right, width, grouped=True)

    parameters = local * (n * k + (n if moe.expert_bias else 0))
    b.add(
        Operator(
            name, (product(rows, n, k, weight),), (product(rows, k, n, weight),),
            accumulated(b, k, n, rows, active, grouped=True),
            parameters, (source,), (written,), (source,), expert=True,
        )
    )  # fmt: skip
    return written
