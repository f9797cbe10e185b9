"""Collectives over a hierarchy of tiers by α-β: what each rank sends over each tier, and how long it takes.

References: Thakur, Rabenseifner & Gropp 2005, *Optimization of Collective Communication Operations in MPICH*;
Sanders, Speck & Träff 2009, *Two-tree algorithms for full bandwidth broadcast, reduction and scan*; NCCL's
rings (one through every rail of a node), trees and in-switch reduction (NVLink SHARP).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from simulator.cost.numeric import Parts, larger, smaller
from simulator.graph.work import CollectiveKind, Numeric
from simulator.specs.machine import Span, Tier

SWITCH_SHARPNESS = 4.0
"""Exponent of the step between protocols: from a fifth to four fifths of it within a factor of two in size."""
NODE = "node"
"""Name of the tier inside a machine; the others are networks."""
BULK_HOP = 5.2
"""A hop at full bandwidth over one of flags beside words: NCCL's tuning tables have 14 for 2.7 us over a network and 3.4 for
0.6 us over NVLink, since a whole chunk is written, fenced and then announced."""


class Algorithm(NamedTuple):
    """What one rank sends over each tier as shares of the tensor, whether switches reduce, and hops."""

    name: str
    traffic: tuple[float, ...]
    in_switch: tuple[bool, ...]
    hops: tuple[float, ...]


class LinkConstants(NamedTuple):
    """What :func:`collective_time` needs; see :class:`simulator.specs.calibration.CollectiveConstants`."""

    bandwidth_efficiency: float
    network_efficiency: float
    in_switch_efficiency: float
    exchange_efficiency: float
    staging_exponent: float
    base_latency: float
    hop_latency: float
    flag_bandwidth: float
    line_latency: float
    low_latency_share: float
    handshake: float
    switch_handshake: float
    exchange_handshake: float
    bulk_bytes: float
    network_bulk_bytes: float
    chunk_latency: float
    ring_edge: float


def collective_time(
    kind: CollectiveKind,
    span: Span,
    size: Numeric,
    constants: LinkConstants,
    *,
    copies: float = 1.0,
    nodes: float | None = None,
) -> Parts:
    """Return the time of a collective of the communication library.

    Parameters
    ----------
    kind : str
        ``all-reduce``, ``all-gather``, ``reduce-scatter``, ``all-to-all``, ``send`` or ``ring``.
    span : Span
        What the group spans, innermost tier first. One rank communicates with nobody: no time.
    size : number or array
        The whole tensor's bytes, as :class:`simulator.graph.work.Collective` defines them.
    constants : LinkConstants
    copies, nodes : float
        Of an all-to-all: see :func:`algorithms`.

    Returns
    -------
    Parts
        Seconds; latency is that of launch and hops, link the rest.

    Notes
    -----
    With λ = base + hops·α and β = max over tiers of bytes/(bandwidth·efficiency), a chunked ring or tree keeping all
    tiers busy so that the slowest binds, the library's protocols take

    - flags beside words (NCCL's LL): λ + bytes/flag_bandwidth;
    - flagged cache lines (LL128): λ + line_latency + β/low_latency_share;
    - full bandwidth (Simple): λ + handshake + β + sqrt(chunk_latency·β): a message cut in c chunks pays β/c to fill the
      pipeline and a latency for each chunk, and the best c leaves the geometric mean (Thakur et al. 2005, section 5, and
      Sanders et al. 2009, section 2, for pipelined broadcast).

    Which one runs is the library's own guess: from ``bulk_bytes``·sqrt(ranks) bytes sent, between nodes from
    ``network_bulk_bytes``, the third, though a smaller
    message may lose by it. Versions differ in where they switch, so that the step is spread over a factor of two. A
    switch reduces only with the third, for a handshake of its own. Inside a node a ring takes ``ring_edge`` steps longer
    than its hops, for its first send and its last receive, and an exchange half as much, for the copy of its own share.
    """
    if span.size == 1:
        return Parts(0.0 * size, 0.0, 0.0, 0.0 * size, 0.0)
    if kind == "ring":
        latency, time = _ring_of_sends(span, size, constants)
    else:
        choices = algorithms(kind, span, copies, nodes)
        exchanges = kind in ("all-to-all", "send")
        latency, time = (_exchange if exchanges else _reduction)(kind, choices, span, size, constants)
    # nothing to send is nothing to wait for
    some = size > 0
    return Parts(time * some, 0.0, 0.0, (time - latency) * some, latency * some)


def collective_traffic(kind: CollectiveKind, span: Span, size: float) -> tuple[float, ...]:
    """Return the bytes that one rank sends over each tier, with the algorithm for large messages [B]."""
    if span.size == 1:
        return tuple(0.0 for _ in span.tiers)
    choices = algorithms(kind, span)
    best = min(
        choices, key=lambda a: max(t / tier.bandwidth for t, tier in zip(a.traffic, span.tiers, strict=True))
    )
    return tuple(size * share for share in best.traffic)


def algorithms(
    kind: CollectiveKind, span: Span, copies: float = 1.0, nodes: float | None = None
) -> tuple[Algorithm, ...]:
    """Return the algorithms for a collective over a span of two ranks or more.

    *Ring*: (P-1)/P of the tensor passes every link of a ring through all P ranks; where a node has g ranks
    and g rails, g rings carry 1/g each, so that a tier sends (P-1)/P · n / inner, with inner the ranks below
    it. An all-reduce is a reduce-scatter and an all-gather (Thakur et al. 2005, section 4.4). Hops: P-1, each
    at the latency of its tier.

    *Tree* (all-reduce over networks, or where a switch reduces): reduce-scatter inside, all-reduce of the
    shard across, all-gather inside. Across it runs as two binary trees, 2·n for 2·log2(p) hops (Sanders et al. 2009);
    between two nodes n each way would do, but the library counts 2·n and so sends large messages round rings: two nodes of
    1, 2 and 4 A100 with an adapter each reduce at 5.9, 11.9 and 22.4 GB/s of 2·(P-1)/P·n (vidur's table). A switch that
    reduces takes n and returns n, and each rank's own share passes twice: n·(1 + 1/p).

    *All-to-all*: of the P-1 shares of n/P, a tier carries those whose ranks first meet there. Where the tensor holds
    ``copies`` of each row for experts in ``nodes`` machines at most, a row crosses networks once for each of the D machines
    that its experts lie in, D = M·(1 - (1 - 1/M)^copies) of M evenly, and goes from there once to each rank that holds one
    of them (DeepSeek-V3, arXiv:2412.19437, section 3.2.2).

    *Send*: the message over the outermost tier. *Ring*: it goes to the next rank P-1 times, each time as fast as the
    slowest link between neighbours.
    """
    if kind == "ring":
        steps = float(span.size - 1)
        inside = tuple(steps if tier.size > 1 else 0.0 for tier in span.tiers)
        return (Algorithm("ring of sends", inside, (False,) * len(inside), inside),)
    if kind == "send":
        idle = (0.0,) * (len(span.tiers) - 1)
        return (Algorithm("send", (*idle, 1.0), (False,) * len(span.tiers), (*idle, 1.0)),)
    if kind == "all-to-all":
        return (_all_to_all(span) if nodes is None else _limited(span, copies, nodes),)
    ring = _ring(span, 2.0 if kind == "all-reduce" else 1.0)
    if kind == "all-reduce" and any(tier.reduces or tier.name != NODE for tier in span.tiers):
        return ring, _tree(span)
    return (ring,)


def _reduction(
    kind: CollectiveKind,
    choices: tuple[Algorithm, ...],
    span: Span,
    size: Numeric,
    constants: LinkConstants,
) -> tuple[float, Numeric]:
    """Return latency and time of the collectives that run as rings, trees or in the switch."""
    # the bytes that a rank sends around the ring decide, whatever the algorithm
    outermost, sent = next(
        (tier, share)
        for tier, share in zip(reversed(span.tiers), reversed(choices[0].traffic), strict=True)
        if tier.size > 1
    )
    if outermost.name == NODE:
        switch_at = constants.bulk_bytes * math.sqrt(span.size) / sent
    else:
        switch_at = constants.network_bulk_bytes / sent
    capped = smaller(size, switch_at)
    small: Any = None
    bulk: Any = None
    least = rate = math.inf
    for algorithm in choices:
        latency, slowest = _alpha_beta(algorithm, span, constants)
        least, rate = min(least, latency), min(rate, slowest)
        if any(algorithm.in_switch):
            handshake = constants.switch_handshake
        else:
            handshake = constants.handshake
            flags = latency + capped * max(max(algorithm.traffic) / constants.flag_bandwidth, 2.0 * slowest)
            lines = latency + constants.line_latency + capped * (slowest / constants.low_latency_share)
            tried = smaller(flags, lines)
            small = tried if small is None else smaller(small, tried)
        beta = size * slowest
        # inside a node the fitted handshake holds the hops
        hops = 0.0 if outermost.name == NODE else (BULK_HOP - 1.0) * (latency - constants.base_latency)
        tried = latency + hops + handshake + beta + (beta * constants.chunk_latency) ** 0.5
        bulk = tried if bulk is None else smaller(bulk, tried)
    share = 1.0 / (1.0 + (switch_at / larger(size, 1e-9)) ** SWITCH_SHARPNESS)
    return least, larger(small + share * larger(bulk - small, 0.0), least + size * rate)


def _exchange(
    kind: CollectiveKind,
    choices: tuple[Algorithm, ...],
    span: Span,
    size: Numeric,
    constants: LinkConstants,
) -> tuple[float, Numeric]:
    """Return latency and time of messages without a ring: flags for small ones, else full bandwidth."""
    (algorithm,) = choices
    latency, slowest = _alpha_beta(algorithm, span, constants)
    # messages to all peers are in flight together, each at the rate of its own channel
    peers = span.size if kind == "all-to-all" else 1
    beta = size * slowest
    # one message to one peer has no pipeline to fill
    chunk_latency = constants.chunk_latency if kind == "all-to-all" else 0.0
    flags = latency + larger(size / (peers * constants.flag_bandwidth), 2.0 * beta)
    bulk = latency + constants.exchange_handshake + beta + (beta * chunk_latency) ** 0.5
    return latency, smaller(flags, bulk)


def _ring_of_sends(span: Span, size: Numeric, constants: LinkConstants) -> tuple[float, Numeric]:
    """Return latency and time of P - 1 steps in which every rank sends to its neighbour: the slowest send of each."""
    latency, time = 0.0, 0.0 * size
    for tier in span.tiers:
        alone = Span((tier,))
        one, seconds = _exchange("send", algorithms("send", alone), alone, size, constants)
        latency, time = max(latency, one), larger(time, seconds)
    steps = span.size - 1
    return steps * latency, steps * time


def _alpha_beta(algorithm: Algorithm, span: Span, constants: LinkConstants) -> tuple[float, float]:
    """Return the latency [s] and the seconds a byte of the tensor on the slowest tier."""
    slowest, latency = 0.0, constants.base_latency
    ring = algorithm.name in ("ring", "tree")
    for tier, share, in_switch, count in zip(span.tiers, *algorithm[1:], strict=True):
        if in_switch:
            efficiency = constants.in_switch_efficiency
        elif tier.name != NODE:
            efficiency = constants.network_efficiency
        else:
            efficiency = constants.bandwidth_efficiency if ring else constants.exchange_efficiency
            if constants.staging_exponent:
                efficiency *= (2.0 / tier.size) ** constants.staging_exponent
        edge = 1.0
        if tier.name == NODE and tier.size > 1 and not in_switch and algorithm.name != "send":
            edge += constants.ring_edge / (count if ring else 2.0 * (tier.size - 1))
        slowest = max(slowest, share * edge / (tier.bandwidth * efficiency))
        latency += count * (tier.latency + constants.hop_latency)
    return latency, slowest


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
    return 2.0, 2.0 * math.ceil(math.log2(size)), False


def _all_to_all(span: Span) -> Algorithm:
    ranks, inner = span.size, 1
    traffic: list[float] = []
    hops: list[float] = []
    for tier in span.tiers:
        traffic.append(inner * (tier.size - 1) / ranks)
        inner *= tier.size
        # messages to all peers are in flight together; posting and matching them grows slowly
        hops.append(1.0 + math.log2(tier.size) if tier.size > 1 else 0.0)
    return Algorithm("all-to-all", tuple(traffic), (False,) * len(traffic), tuple(hops))


def _limited(span: Span, copies: float, nodes: float) -> Algorithm:
    plain = _all_to_all(span)
    local = math.prod(tier.size for tier in span.tiers if tier.name == NODE)
    machines = _distinct(min(nodes, span.size / local), copies)
    ranks = machines * _distinct(local, copies / machines)
    traffic = tuple(
        (tier.size - 1) / tier.size * ranks / copies if tier.name == NODE else share * machines / copies
        for tier, share in zip(span.tiers, plain.traffic, strict=True)
    )
    return plain._replace(traffic=traffic)


def _distinct(places: float, copies: float) -> float:
    """Return how many of equally likely places hold one of the copies of a row."""
    found: float = places * (1.0 - (1.0 - 1.0 / places) ** copies)
    return found
