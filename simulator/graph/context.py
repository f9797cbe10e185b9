"""Context parallelism: how queries of one rank see the keys of another, in fused attention.

Every rank has 1/P of each sequence: two slices that mirror each other, so that causal work is the same on all.

References: Grattafiori et al. 2024, *The Llama 3 Herd of Models* (arXiv:2407.21783), section 3.3.2; Liu, Zaharia & Abbeel 2023,
*Ring Attention with Blockwise Transformers*; Brandon et al. 2023, *Striped Attention*; Jacobs et al. 2023, *DeepSpeed
Ulysses*, section 3.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from simulator.graph.graph import ContextExchange
from simulator.graph.work import Attention, Collective, Elementwise, Numeric, Work

SUM_BYTES = 4.0
"""Partial outputs of a ring's passes are summed in fp32."""

Passes = tuple[tuple[Work, ...], tuple[Work, ...]]


def exchanged(whole: Attention, ranks: Numeric, exchange: ContextExchange) -> Passes:
    """Return the forward and the backward work of one rank's share of attention over whole sequences.

    Parameters
    ----------
    whole : Attention
        Forward attention of all positions of the sequences.
    ranks : number or array
        Context-parallel ranks.
    exchange : str
        ``all-gather``: keys and values are gathered before attention, again in the backward pass, and their gradients
        reduced and scattered behind it. ``ring``: they pass round the ranks beside attention, a step each; in the backward
        pass with their gradients, which take one more step home. ``all-to-all``: ranks exchange positions for heads before
        and heads for positions after attention; KV heads are repeated where they are fewer than ranks.

    Returns
    -------
    tuple
        Works of the forward pass and of the input gradient.
    """
    return {"all-gather": _gathered, "ring": _ring, "all-to-all": _heads}[exchange](whole, ranks)


def _gathered(whole: Attention, ranks: Numeric) -> Passes:
    part = replace(whole, queries=whole.queries / ranks, ranks=ranks)
    size = _keys_and_values(whole)
    gather = Collective("all-gather", "context", size)
    scatter = Collective("reduce-scatter", "context", size)
    return (gather, part), (gather, replace(part, backward=True), scatter)


def _ring(whole: Attention, ranks: Numeric) -> Passes:
    part = replace(whole, queries=whole.queries / ranks, ranks=ranks, passes=ranks)
    size = _keys_and_values(whole) / ranks
    queries = part.batch * part.queries * part.heads
    forward = (
        part,
        Collective("ring", "context", size, hidden_by="forward"),
        _sums(queries * part.v_dim, part.activation_bytes, ranks - 1.0),
    )
    backward = (
        replace(part, backward=True),
        Collective("ring", "context", 2.0 * size, hidden_by="input-gradient"),
        _sums(queries * part.qk_dim + size / part.activation_bytes, part.activation_bytes, ranks - 1.0),
        Collective("send", "context", size),
    )
    return forward, backward


def _sums(elements: Numeric, width: float, times: Numeric) -> Elementwise:
    """Add a pass's result to the sum of those before."""
    return Elementwise(
        times * elements * (SUM_BYTES + width), times * elements * SUM_BYTES, times * elements, kernels=times
    )


def _heads(whole: Attention, ranks: Numeric) -> Passes:
    kv_heads: Numeric = np.maximum(whole.kv_heads, ranks)
    width = whole.kv_width * (kv_heads / whole.kv_heads)
    part = replace(whole, heads=whole.heads / ranks, kv_heads=kv_heads / ranks, kv_width=width / ranks)
    positions = whole.batch * whole.queries / ranks * whole.activation_bytes
    key = width * whole.qk_dim / (whole.qk_dim + whole.v_dim)
    query, keys, values, output = (
        Collective("all-to-all", "context", positions * elements)
        for elements in (whole.heads * whole.qk_dim, key, width - key, whole.heads * whole.v_dim)
    )
    return (query, keys, values, part, output), (
        output,
        replace(part, backward=True),
        query,
        keys,
        values,
    )


def _keys_and_values(whole: Attention) -> Numeric:
    return whole.batch * whole.keys * whole.kv_width * whole.activation_bytes
