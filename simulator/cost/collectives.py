"""Collectives over a hierarchy of tiers by α-β: what each rank sends over each tier, and how long it takes.

References: Thakur, Rabenseifner & Gropp 2005, *Optimization of Collective Communication Operations in MPICH*;
Sanders, Speck & Träff 2009, *Two-tree algorithms for full bandwidth broadcast, reduction and scan*; NCCL's
rings (one through every rail of a node), trees and in-switch reduction (NVLink SHARP).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from simulator.cost.numeric import Parts
from simulator.graph.work import CollectiveKind, Numeric
from simulator.specs.machine import Span, Tier

NODE = "node"
"""Name of the tier inside a machine; the others are networks."""


class Algorithm(NamedTuple):
    """What one rank sends over each tier as shares of the tensor, whether switches reduce, and hops."""

    name: str
    traffic: tuple[float, ...]
    in_switch: tuple[bool, ...]
    hops: tuple[float, ...]


def collective_time(
    kind: CollectiveKind,
    span: Span,
    size: Numeric,
    *,
    bandwidth_efficiency: float,
    network_efficiency: float,
    in_switch_efficiency: float,
    base_latency: float,
    hop_latency: float,
    handshake: float,
    low_latency_share: float,
) -> Parts:
    """Return the time of a collective.

    Parameters
    ----------
    kind : str
        ``all-reduce``, ``all-gather``, ``reduce-scatter``, ``all-to-all`` or ``send``.
    span : Span
        What the group spans, innermost tier first. One rank communicates with nobody: no time.
    size : number or array
        The whole tensor's bytes, as :class:`simulator.graph.work.Collective` defines them.
    bandwidth_efficiency, network_efficiency, in_switch_efficiency : float
    base_latency, hop_latency, handshake, low_latency_share : float
        Constants; see :class:`simulator.specs.calibration.CollectiveConstants`.

    Returns
    -------
    Parts
        Seconds; link is the time of the slowest tier.

    Notes
    -----
    time = base + hops·α + max over tiers of bytes/(bandwidth·efficiency): a chunked ring or tree keeps all
    tiers busy at once, so that the slowest binds. The library takes the best of its algorithms
    (:func:`algorithms`) and of two protocols: a handshake and full bandwidth, or no handshake and a share of
    it (NCCL's Simple and LL).
    """
    if span.size == 1:
        return Parts(0.0 * size, 0.0, 0.0, 0.0 * size, 0.0)
    best: Parts | None = None
    for algorithm in algorithms(kind, span):
        slowest, hops = 0.0, 0.0
        for tier, share, in_switch, count in zip(span.tiers, *algorithm[1:], strict=True):
            efficiency = bandwidth_efficiency if tier.name == NODE else network_efficiency
            slowest = max(
                slowest, share / (tier.bandwidth * (in_switch_efficiency if in_switch else efficiency))
            )
            hops += count * (tier.latency + hop_latency)
        for wait, share in _protocols(algorithm, handshake, low_latency_share):
            latency, link = base_latency + hops + wait, size * (slowest / share)
            tried = Parts(latency + link, 0.0, 0.0, link, latency)
            best = tried if best is None else _faster(tried, best)
    assert best is not None  # every kind has an algorithm
    # nothing to send is nothing to wait for
    some = size > 0
    return Parts(best.time * some, 0.0, 0.0, best.link, best.latency * some)


def collective_traffic(kind: CollectiveKind, span: Span, size: float) -> tuple[float, ...]:
    """Return the bytes that one rank sends over each tier, with the algorithm for large messages [B]."""
    if span.size == 1:
        return tuple(0.0 for _ in span.tiers)
    choices = algorithms(kind, span)
    best = min(
        choices, key=lambda a: max(t / tier.bandwidth for t, tier in zip(a.traffic, span.tiers, strict=True))
    )
    return tuple(size * share for share in best.traffic)


def algorithms(kind: CollectiveKind, span: Span) -> tuple[Algorithm, ...]:
    """Return the algorithms for a collective over a span of two ranks or more.

    *Ring*: (P-1)/P of the tensor passes every link of a ring through all P ranks; where a node has g ranks
    and g rails, g rings carry 1/g each, so that a tier sends (P-1)/P · n / inner, with inner the ranks below
    it. An all-reduce is a reduce-scatter and an all-gather (Thakur et al. 2005, section 4.4). Hops: P-1, each
    at the latency of its tier.

    *Tree* (all-reduce over networks, or where a switch reduces): reduce-scatter inside, all-reduce of the
    shard across, all-gather inside. Across it runs as two binary trees, 2·n for 2·log2(p) hops and n for two
    ranks (Sanders et al. 2009). A switch that reduces takes n and returns n, and each rank's own share passes
    twice: n·(1 + 1/p).

    *All-to-all*: of the P-1 shares of n/P, a tier carries those whose ranks first meet there.

    *Send*: the message over the outermost tier.
    """
    if kind == "send":
        idle = (0.0,) * (len(span.tiers) - 1)
        return (Algorithm("send", (*idle, 1.0), (False,) * len(span.tiers), (*idle, 1.0)),)
    if kind == "all-to-all":
        return (_all_to_all(span),)
    ring = _ring(span, 2.0 if kind == "all-reduce" else 1.0)
    if kind == "all-reduce" and any(tier.reduces or tier.name != NODE for tier in span.tiers):
        return ring, _tree(span)
    return (ring,)


def _protocols(
    algorithm: Algorithm, handshake: float, low_latency_share: float
) -> tuple[tuple[float, float], ...]:
    """Return (latency, share of the bandwidth) of each protocol; a switch reduces only at full bandwidth."""
    if any(algorithm.in_switch):
        return ((2.0 * handshake, 1.0),)
    return (handshake, 1.0), (0.0, low_latency_share)


def _ring(span: Span, passes: float) -> Algorithm:
    ranks, inner = span.size, 1
    traffic: list[float] = []
    hops: list[float] = []
    for tier in span.tiers:
        traffic.append(passes * (ranks - 1) / ranks / inner)
        hops.append(passes * (ranks // inner - ranks // (inner * tier.size)))
        inner *= tier.size
    return Algorithm("ring", tuple(traffic), (False,) * len(traffic), tuple(hops))


def _tree(span: Span) -> Algorithm:
    tiers = [
        _tree_tier(tier, outermost=index == len(span.tiers) - 1) for index, tier in enumerate(span.tiers)
    ]
    inner = [math.prod(tier.size for tier in span.tiers[:index]) for index in range(len(tiers))]
    traffic = tuple(share / below for (share, _, _), below in zip(tiers, inner, strict=True))
    return Algorithm("tree", traffic, tuple(tier[2] for tier in tiers), tuple(tier[1] for tier in tiers))


def _tree_tier(tier: Tier, *, outermost: bool) -> tuple[float, float, bool]:
    """Return the share of what arrives at a tier that a rank sends, hops, and whether the switch reduces."""
    size = tier.size
    scatter = 2.0 * (size - 1) / size
    if tier.reduces and 1.0 + 1.0 / size < scatter:
        return 1.0 + 1.0 / size, 2.0, True
    if not outermost or tier.name == NODE:
        return scatter, 2.0 * (size - 1), False
    return (1.0 if size == 2 else 2.0), 2.0 * math.ceil(math.log2(size)), False


def _all_to_all(span: Span) -> Algorithm:
    ranks, inner = span.size, 1
    traffic: list[float] = []
    hops: list[float] = []
    for tier in span.tiers:
        traffic.append(inner * (tier.size - 1) / ranks)
        inner *= tier.size
        # messages to all peers are in flight together; posting and matching them grows slowly
        hops.append(math.ceil(math.log2(tier.size)))
    return Algorithm("all-to-all", tuple(traffic), (False,) * len(traffic), tuple(hops))


def _faster(a: Parts, b: Parts) -> Parts:
    first = a.time <= b.time
    if isinstance(first, bool):
        return a if first else b
    return Parts(
        np.where(first, a.time, b.time),
        0.0,
        0.0,
        np.where(first, a.link, b.link),
        np.where(first, a.latency, b.latency),
    )
