"""Mixture of experts: router, dispatch, grouped products, combine, shared experts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulator.graph.graph import Matrix, Operator
from simulator.graph.layers import (
    ACTIVATION_FLOPS,
    BlockBuilder,
    accumulated,
    elementwise,
    linear,
    mlp,
    quantised,
)
from simulator.graph.quantise import activation_width, dispatch_width, scaled, weight_width
from simulator.graph.routing import Routed, routed
from simulator.graph.work import Collective, CollectiveKind, Elementwise, Matmul, Numeric, Route, Work
from simulator.specs.model import MixtureOfExperts, Model

SHARED_EXPERTS = "moe.shared"
"""How names of operators of shared experts begin; they wait for no routed token."""


def moe_mlp(
    b: BlockBuilder, model: Model, moe: MixtureOfExperts, source: str, target: str, *, skew: float = 0.0
) -> str:
    """Add the MoE sublayer of a block.

    Experts are cut over the expert-parallel group and each expert over its own tensor-parallel group. Tokens of all ranks
    of both groups meet in the experts, so that the tokens of one local expert do not depend on the size of the
    expert-parallel group; the weights of experts that no token reaches are not read. With a capacity every expert has as many
    slots, sent and computed whether filled or not (see :func:`simulator.graph.routing.dropped_share`). ``skew`` is the
    exponent of the power law of the experts' loads (see :func:`simulator.graph.routing.routed`); the rank described is then
    the busiest. 0 is uniform.
    """
    partition = b.partition
    ep = partition.expert
    tp = b.tp if partition.expert_tensor is None else partition.expert_tensor
    tokens, top_k, experts, width = (
        b.tokens,
        moe.num_experts_per_tok,
        moe.num_experts,
        moe.moe_intermediate_size,
    )
    own = tokens / b.cut
    linear(b.wide, "moe.router", source, "router", b.hidden, experts, bias=moe.router_bias, rows=own)
    elementwise(b, "moe.top_k", ("router",), "routing", own * experts, flops=4.0, saves=("router",))
    joined = tokens if partition.expert_axis == "tensor" else tokens * tp / b.tp
    load = routed(joined * ep, experts, top_k, ep, skew=skew, capacity=partition.expert_capacity)
    exchange = _Exchange(
        own * top_k * (partition.expert_capacity or 1.0) * b.hidden * b.width,
        joined * b.hidden * b.width,
        _where(ep, load.copies, joined) * b.hidden * b.width,
        load.copies * b.hidden * b.width,
        np.logical_and(np.asarray(ep) > 1, np.asarray(experts / ep) > 1) * 1,
        top_k,
    )
    dispatched = b.tensor("dispatched", load.copies * b.hidden)
    b.add(_permute(b, "moe.dispatch", source, dispatched, exchange, routes=load.copies))
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
    b.add(_permute(b, "moe.combine", down, combined, exchange, reduce=True))
    if not moe.num_shared_experts:
        return combined
    shared_width = moe.shared_intermediate_size or moe.num_shared_experts * width
    shared = mlp(
        b, SHARED_EXPERTS, source, "moe.shared.out", shared_width,
        gated=model.gated_mlp, activation=model.activation, bias=False,
    )  # fmt: skip
    if moe.shared_expert_gate:
        linear(b.wide, "moe.shared.gate", source, "moe.shared.gate.out", b.hidden, 1, rows=own)
    return elementwise(b, "moe.add", (combined, shared), target, tokens * b.hidden / b.cut)


@dataclass(frozen=True, slots=True)
class _Exchange:
    """Bytes that a rank exchanges with the others of its experts."""

    copies: Numeric
    """Of the copies of its own tokens."""
    tokens: Numeric
    """Of the tokens of all ranks that share each expert."""
    gathered: Numeric
    """That those ranks see after gathering: what has arrived, or all tokens where none had to go further."""
    arrived: Numeric
    """Of the copies that a rank's experts get."""
    sorts: Numeric
    """1 where copies arrive by sender and several experts need them by expert, else 0."""
    top_k: int


def _where(expert: Numeric, exchanged: Numeric, alone: Numeric) -> Numeric:
    if isinstance(expert, (int, float)):
        return exchanged if expert > 1 else alone
    return np.where(np.asarray(expert) > 1, exchanged, alone)


def _permute(
    b: BlockBuilder,
    name: str,
    source: str,
    target: str,
    exchange: _Exchange,
    *,
    routes: Numeric | None = None,
    reduce: bool = False,
) -> Operator:
    """Sort token copies by expert (``routes`` of them arrive) or back, with the all-to-all of the expert-parallel group.

    A rank sorts its own copies by receiver before it sends them, and what arrives by expert.
    With DeepSeek-V3's blocks what goes to experts (tokens forward, gradients backward) is cast before it is sent.
    Ranks that share each expert also gather what has arrived and reduce their partial outputs (Megatron-Core's all-to-all
    dispatcher); where they hold the same tokens anyway, they reduce tokens at the end.
    """
    to_experts = dispatch_width(b.numerics) / b.width
    forward, backward = (
        _crossing(b, exchange, share) for share in ((1.0, to_experts) if reduce else (to_experts, 1.0))
    )
    kind: CollectiveKind = "reduce-scatter" if reduce else "all-gather"
    backward_kind: CollectiveKind = "all-gather" if reduce else "reduce-scatter"
    axis = b.partition.expert_axis
    if routes is not None:  # the backward pass goes the way back that the forward pass has sorted
        forward.insert(0, Route(routes))
    if b.partition.sequence_parallel or axis != "tensor":
        forward.append(Collective(kind, axis, exchange.gathered))
        backward.append(Collective(backward_kind, axis, exchange.gathered))
    elif reduce:
        forward.append(Collective("all-reduce", axis, exchange.tokens))
    else:
        backward.append(Collective("all-reduce", axis, exchange.tokens))
    return Operator(name, tuple(forward), tuple(backward), (), 0, (source,), (target,))


def _crossing(b: BlockBuilder, exchange: _Exchange, share: float) -> list[Work]:
    """Sort copies by receiver, send them, sort what arrives by expert; ``share`` of their 16-bit bytes."""
    size, again = exchange.copies * share, exchange.sorts * exchange.arrived * share
    sent = Collective("all-to-all", "expert", size, copies=exchange.top_k, nodes=b.partition.expert_nodes)
    works: list[Work] = [Elementwise(size, size), sent]
    if np.any(again):
        works.append(Elementwise(again, again, kernels=exchange.sorts))
    return works


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
    numerics, width = b.numerics, b.width
    operand, weight = activation_width(numerics), weight_width(numerics)
    active = load.active
    rows = load.copies / np.maximum(active, 1e-9)
    written = b.tensor(target, load.copies * n)
    # rows of an expert are Poisson where routing is uniform
    spread = 0.0 if skew or load.even else np.maximum(rows, 1.0) ** -0.5

    def product(m: Numeric, n: Numeric, k: Numeric, right: float) -> Matmul:
        return Matmul(
            m,
            n,
            k,
            active,
            numerics.compute,
            operand,
            right,
            width,
            grouped=True,
            scaled=scaled(numerics),
            spread=spread,
            skew=skew,
            reach=load.reach,
        )

    biases = local * n if moe.expert_bias else 0
    operator = Operator(
        name, (product(rows, n, k, weight),), (product(rows, k, n, weight),),
        accumulated(b, k, n, rows, active, grouped=True),
        local * n * k + biases, (source,), (written,), (source,), expert=True,
        matrices=(Matrix(name, k, n, local, "row" if name.endswith("down") else "column"),), biases=biases,
    )  # fmt: skip
    b.add(quantised(b, operator, local * n * k, load.copies * n))
    return written
