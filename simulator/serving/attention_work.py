"""Attention of an iteration: what a graph has of it, sized for prompt pieces and for decodes."""

from __future__ import annotations

import numpy as np

from simulator.graph import Attention, ModelGraph, Numeric
from simulator.serving.accounts import FLOPS, TRAFFIC
from simulator.serving.workload import Integers


def attentions(graph: ModelGraph) -> dict[Attention, int]:
    """Return the different attention works of a graph's layers and how many layers have each."""
    found: dict[Attention, int] = {}
    for block, count in zip(graph.blocks, graph.counts, strict=True):
        for work in block.works():
            if isinstance(work, Attention):
                found[work] = found.get(work, 0) + count
    return found


def together(attention: Attention, new: Integers, keys: Integers) -> Attention:
    """Return prompt pieces of several sequences as one kernel: as many equal pieces with the same query-key pairs in all."""
    count = len(new)
    if count == 1:
        return sized(attention, 1, int(new[0]), int(keys[0]))
    queries, reach = float(new.mean()), float(keys.mean())
    if not np.isfinite(attention.window):
        pairs = float(np.mean(new * (keys - new) + new * (new + 1) / 2.0))
        reach = pairs / queries + (queries - 1.0) / 2.0
    return sized(attention, count, queries, reach)


def sized(a: Attention, batch: Numeric, queries: Numeric, keys: Numeric) -> Attention:
    """Return an attention for another batch, count of queries and of keys."""
    # several times as fast as dataclasses.replace, and called for each iteration
    return Attention(
        batch, a.heads, a.kv_heads, queries, keys, a.qk_dim, a.v_dim, a.kv_width, a.causal, a.window, a.decode,
        a.backward, a.format, a.kv_bytes, a.activation_bytes, a.stores,
    )  # fmt: skip


def slopes(attention: Attention, queries: int = 1) -> tuple[tuple[int, float, float], ...]:
    """Return FLOPs and bytes of a decode's queries as lines over the positions that they see: (place, offset, slope)."""
    one, two = (sized(attention, 1, queries, float(queries + keys)) for keys in (0, 1))
    points = ((FLOPS, float(one.flops), float(two.flops)), (TRAFFIC, float(one.bytes), float(two.bytes)))
    return tuple(
        (place, first - queries * (second - first), second - first) for place, first, second in points
    )
