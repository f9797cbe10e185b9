"""Routing of tokens to experts: how many experts work, how many rows the busiest rank gets, how unequal they are.

Loads of experts (tokens an expert) are equal in expectation, or follow a bounded power law: shares drawn from the
density p(x) ~ x^-a between 1 and ``reach``, scaled to the number of token copies. Everything broadcasts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from simulator.graph.work import Numeric

NODES = 8
"""Quantiles that stand for a distribution of loads."""
REACH_SHARE = 0.8
"""Share of the tokens that the largest of the unscaled loads of a power law may be; the smallest is one token."""
_HASTINGS = (2.30753, 0.27061, 0.99229, 0.04481)


@dataclass(frozen=True, slots=True)
class Routed:
    """What reaches the experts of one rank."""

    copies: Numeric
    """Token copies: tokens times experts a token, this rank's share."""
    active: Numeric
    """Experts that at least one of them is for."""
    reach: Numeric
    """Largest over smallest load where loads follow a power law, else 1."""
    even: bool = False
    """Whether all experts have the same load."""


def routed(
    tokens: Numeric,
    experts: Numeric,
    per_token: Numeric,
    ranks: Numeric = 1,
    *,
    skew: float = 0.0,
    even: bool = False,
    capacity: float | None = None,
) -> Routed:
    """Return what reaches the busiest of ``ranks`` ranks that share the experts.

    Parameters
    ----------
    tokens, experts, per_token, ranks : number or array
        Tokens of all ranks, experts of all ranks, experts that a token goes to, ranks that the experts are cut over.
    skew : float
        Exponent of the power law of loads; 0 for uniform random routing.
    even : bool
        Whether tokens are dealt out in turn instead of at random: what a balanced benchmark does.
    capacity : float, optional
        Slots of every expert over its mean load, all of them filled or padded (GShard: Lepikhin et al. 2020, section 2.2).

    Notes
    -----
    Uniform random routing leaves an expert idle with (1 - k/E)^T. With a power law an expert of load l is idle with
    exp(-l), averaged over the loads, and the busiest rank has :func:`busiest_share` of the mean, but no more copies
    than every token to each of its experts.
    """
    copies = tokens * per_token / ranks
    local = experts / ranks
    if capacity is not None:
        return Routed(copies * capacity, local, 1.0, even=True)
    if even:
        return Routed(copies, np.minimum(local, np.maximum(copies, 1.0)), 1.0, even=True)
    if not skew:
        return Routed(copies, active_experts(experts, per_token, tokens) / ranks, 1.0)
    reach = np.maximum(REACH_SHARE * np.asarray(tokens, float), 1.0)
    most = tokens * np.minimum(per_token, local)
    copies = np.minimum(copies * busiest_share(experts, ranks, skew, reach), most)
    loads = load_nodes(skew, reach) * (copies / local)
    return Routed(copies, local * -np.expm1(-loads).mean(axis=0), reach)


def dropped_share(tokens: Numeric, experts: Numeric, per_token: Numeric, capacity: float) -> Any:
    """Return the expected share of token copies that find no slot in their expert, for uniform random routing.

    Parameters
    ----------
    tokens, experts, per_token : number or array
        Tokens that are routed together, experts that they are routed to, experts of a token.
    capacity : float
        Slots of an expert over its mean load.

    Returns
    -------
    number or array
        E[(X - c·m)+] / m of a load X that is binomial with mean m = T·k/E, as a normal variable of the same variance s²:
        (s·φ(z) - (c - 1)·m·(1 - Φ(z))) / m with z = (c - 1)·m/s.
    """
    mean = np.asarray(tokens * per_token / experts, float)
    deviation = np.sqrt(mean * np.maximum(1.0 - per_token / np.asarray(experts, float), 1e-12))
    z = (capacity - 1.0) * mean / deviation
    density = np.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)
    above = 0.5 * np.vectorize(math.erfc, otypes=[float])(z / math.sqrt(2.0))
    return np.maximum((deviation * density - (capacity - 1.0) * mean * above) / mean, 0.0)[()]


def active_experts(experts: Numeric, per_token: Numeric, tokens: Numeric) -> Numeric:
    """Expected count of experts that at least one of ``tokens`` tokens is routed to, for uniform routing.

    E·(1 - (1 - k/E)^T): each token picks k of E experts; an expert is idle only if no token picks it.
    """
    return experts * -np.expm1(
        tokens * np.log1p(-np.minimum(per_token / np.asarray(experts, float), 1.0 - 1e-12))
    )


def load_nodes(exponent: Numeric, reach: Numeric, nodes: int = NODES) -> Any:
    """Return loads at the middles of equally likely classes, over their mean: shape (nodes, ...).

    The quantile function of the bounded power law is (1 - u·(1 - R^(1-a)))^(1/(1-a)).
    """
    power = 1.0 - _apart_from_one(exponent)
    reach = np.asarray(reach, float)
    middles = (np.arange(nodes) + 0.5) / nodes
    at = middles.reshape((nodes, *(1,) * np.ndim(reach * power)))
    loads = (1.0 - at * (1.0 - reach**power)) ** (1.0 / power)
    return loads / loads.mean(axis=0)


def busiest_share(experts: Numeric, ranks: Numeric, exponent: Numeric, reach: Numeric) -> Any:
    """Return the expected load of the busiest of ``ranks`` ranks over the mean, experts being placed at random.

    The load of a rank is a sum of E/ranks draws; as a gamma variable of the same mean and variance (given the total of
    all ranks) its quantile at the expected place of the largest (Blom 1958) follows from Wilson and Hilferty 1931. No
    rank has more than the largest expert's multiple of the mean. Within 5 % of a simulation for 4 experts a rank and more.
    """
    mean, square = _moments(exponent, reach)
    variance = np.maximum(square / mean**2 - 1.0, 1e-9) * (1.0 - 1.0 / np.asarray(ranks, float))
    shape = experts / ranks / np.maximum(variance, 1e-9)
    place = (ranks - 0.375) / (ranks + 0.25)
    deviation = np.where(np.asarray(ranks) > 1, normal_quantile(np.maximum(place, 0.5)), 0.0)
    largest = (1.0 - 1.0 / (9.0 * shape) + deviation / (3.0 * np.sqrt(shape))) ** 3
    share = np.clip(largest, 1.0, np.asarray(reach, float) / mean)
    return np.where(np.asarray(ranks) > 1, share, 1.0)


def normal_quantile(probability: Numeric) -> Any:
    """Return the normal quantile of a probability of 0.5 or more, to 0.003 (Hastings 1955, sheet 67)."""
    a, b, c, d = _HASTINGS
    t = np.sqrt(-2.0 * np.log1p(-np.asarray(probability, float)))
    return t - (a + b * t) / (1.0 + c * t + d * t * t)


def _moments(exponent: Numeric, reach: Numeric) -> tuple[Any, Any]:
    """Mean and mean square of the bounded power law."""
    a, r = _apart_from_one(exponent), np.maximum(np.asarray(reach, float), 1.0 + 1e-9)
    norm = (1.0 - a) / np.expm1((1.0 - a) * np.log(r))
    first, second = _apart_from_one(a - 1.0), _apart_from_one(a - 2.0)
    return (
        norm * np.expm1((1.0 - first) * np.log(r)) / (1.0 - first),
        norm * np.expm1((1.0 - second) * np.log(r)) / (1.0 - second),
    )


def _apart_from_one(exponent: Numeric) -> Any:
    # the integral of 1/x is the limit of the others
    e = np.asarray(exponent, float)
    return np.where(np.abs(e - 1.0) < 1e-6, 1.0 + 1e-6, e)
