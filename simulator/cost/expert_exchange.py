"""Dispatch and combine of expert parallelism by kernels made for it (DeepEP), inside a machine or over RDMA.

Normal kernels are given some streaming multiprocessors and copy each token once to every rank that holds one of its
experts; low-latency kernels send it to each expert by itself, without agreeing on counts beforehand.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from simulator.cost.collectives import NODE
from simulator.cost.numeric import Parts, ceil, overlap, smaller
from simulator.graph.work import Numeric
from simulator.specs.machine import Tier

ExchangeStep = Literal["dispatch", "combine"]
SCALE_GROUP = 128
"""Elements of an FP8 row that share one FP32 scale."""
LOCAL_PASSES = 2.0
"""Times that a row passes a rank's own memory: read and written."""


class ExchangeConstants(NamedTuple):
    """What the formulas need; see :class:`simulator.specs.calibration.ExpertExchangeConstants`."""

    dispatch_latency: float
    combine_latency: float
    dispatch_unit_bandwidth: float
    combine_unit_bandwidth: float
    efficiency: float
    low_latency_dispatch: float
    low_latency_combine: float
    expert_latency: float
    dispatch_token_latency: float
    combine_token_latency: float
    low_latency_efficiency: float


def row_bytes(step: ExchangeStep, hidden: Numeric) -> Numeric:
    """Return the bytes of one token's row: FP8 with a scale for each 128 elements on dispatch, BF16 on combine."""
    return hidden * (1.0 + 4.0 / SCALE_GROUP) if step == "dispatch" else 2.0 * hidden


def distinct_ranks(ranks: int, top_k: Numeric) -> Numeric:
    """Return how many ranks hold one of the ``top_k`` experts of a token, evenly routed: P(1 - (1 - 1/P)^k)."""
    return ranks * (1.0 - (1.0 - 1.0 / ranks) ** top_k)


def exchange_time(
    step: ExchangeStep,
    tier: Tier,
    tokens: Numeric,
    hidden: Numeric,
    top_k: Numeric,
    constants: ExchangeConstants,
    *,
    units: Numeric,
) -> Parts:
    """Return the time of a normal dispatch or combine in a machine.

    Parameters
    ----------
    step : str
        ``dispatch`` or ``combine``.
    tier : Tier
        The ranks of the machine and their link.
    tokens, hidden, top_k : number or array
        Tokens of one rank, elements of a row, experts of a token.
    constants : ExchangeConstants
    units : number or array
        Streaming multiprocessors that the kernel is given.

    Returns
    -------
    Parts
        Seconds: latency + the overlap of what the units move (a row to or from each of d distinct ranks, and read and
        written once locally) and what the link carries (d·(P - 1)/P rows).
    """
    rows = tokens * row_bytes(step, hidden)
    ranks = distinct_ranks(tier.size, top_k)
    if step == "dispatch":
        latency, unit_bandwidth = constants.dispatch_latency, constants.dispatch_unit_bandwidth
    else:
        latency, unit_bandwidth = constants.combine_latency, constants.combine_unit_bandwidth
    moved = rows * (ranks + LOCAL_PASSES) / (units * unit_bandwidth)
    link = rows * ranks * ((tier.size - 1) / tier.size / (tier.bandwidth * constants.efficiency))
    return Parts(latency + overlap(moved, link), moved, 0.0, link, latency)


def low_latency_exchange_time(
    step: ExchangeStep,
    tier: Tier,
    tokens: Numeric,
    hidden: Numeric,
    top_k: Numeric,
    experts: Numeric,
    constants: ExchangeConstants,
    *,
    units: float,
    network_efficiency: float,
) -> Parts:
    """Return the time of a low-latency dispatch or combine.

    Parameters
    ----------
    step, tier, tokens, hidden, top_k, constants
        As for :func:`exchange_time`; a tier that is no node is RDMA, which carries the messages to all peers.
    experts : number or array
        Experts of all ranks together; each has a counter that is sent and polled, and at most one block works for it.
    units : float
        Streaming multiprocessors of the device.
    network_efficiency : float
        Sustained share of an RDMA link.

    Returns
    -------
    Parts
        Seconds: latency + experts·e (half of it on combine, which polls only) + the overlap of what a block works off,
        ceil(tokens/min(experts, units)) tokens, and of the link, tokens·top_k rows.
    """
    rows = tokens * top_k * row_bytes(step, hidden)
    if step == "dispatch":
        latency, token, expert = constants.low_latency_dispatch, constants.dispatch_token_latency, 1.0
    else:
        latency, token, expert = constants.low_latency_combine, constants.combine_token_latency, 0.5
    efficiency = constants.low_latency_efficiency if tier.name == NODE else network_efficiency
    link = rows / (tier.bandwidth * efficiency)
    worked = ceil(tokens / smaller(experts, units)) * token
    start = latency + experts * (constants.expert_latency * expert)
    return Parts(start + overlap(worked, link), worked, 0.0, link, start)
