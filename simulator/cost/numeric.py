"""Arithmetic that is cheap on scalars and broadcasts on arrays: what the formulas are written in."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from simulator.graph.work import Numeric

CORNER = 4.0
"""Exponent of the rounded roofline corner: two equal times cost 2^(1/4), 19 % more than either alone."""

TINY = 1e-300
"""Divides nothing by something."""
CACHE_CORNER = 16.0
"""Exponent of the rounded step of a cache's hit rate at its capacity."""
CACHE_FAR = 8.0
"""Reuse distance over capacity beyond which nothing hits."""


class Parts(NamedTuple):
    """Seconds of an operation; the parts that were compared (compute, memory, link) or added (latency)."""

    time: Numeric
    compute: Numeric = 0.0
    memory: Numeric = 0.0
    link: Numeric = 0.0
    latency: Numeric = 0.0


def larger(a: Numeric, b: Numeric) -> Any:
    """Return the larger, element by element."""
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return a if a >= b else b
    return np.maximum(a, b)


def smaller(a: Numeric, b: Numeric) -> Any:
    """Return the smaller, element by element."""
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return a if a <= b else b
    return np.minimum(a, b)


def ceil(a: Numeric) -> Any:
    """Round up to a whole number."""
    return math.ceil(a) if isinstance(a, (int, float)) else np.ceil(a)


def floor(a: Numeric) -> Any:
    """Round down to a whole number."""
    return math.floor(a) if isinstance(a, (int, float)) else np.floor(a)


def chosen(condition: Any, a: Parts, b: Parts) -> Parts:
    """Return the parts of ``a`` where a condition holds, else those of ``b``."""
    if isinstance(condition, (bool, np.bool_)):
        return a if condition else b
    return Parts(*(np.where(condition, x, y) for x, y in zip(a, b, strict=True)))


def overlap(a: Numeric, b: Numeric) -> Any:
    """Return the time of two activities that overlap imperfectly: at least the longer, at most 19 % more.

    (a^p + b^p)^(1/p) with p = :data:`CORNER`. Near the ridge of a roofline neither resource is busy all the
    time: measured bf16 GEMMs whose two times are within 25 % of each other take 1.07 (H100) to 1.24 (A100)
    times the longer one (medians), against 0.95 to 1.12 elsewhere.
    """
    longer, shorter = larger(a, b), smaller(a, b)
    if isinstance(longer, (int, float)):
        return longer * (1.0 + (shorter / longer) ** CORNER) ** (1.0 / CORNER) if longer > 0.0 else 0.0
    ratio = shorter / np.maximum(longer, TINY)
    # the fourth power and root: much faster than the general power
    return longer * np.sqrt(np.sqrt(1.0 + np.square(np.square(ratio))))


def cached_share(reuse_distance: Numeric, capacity: float) -> Any:
    """Return the share of accesses that hit a cache of ``capacity`` bytes, by the bytes between two uses of the same.

    1 / (1 + (distance / capacity)^p) with p = :data:`CACHE_CORNER`: a fully associative LRU cache has a step at its capacity
    (Mattson et al. 1970, *Evaluation techniques for storage hierarchies*), which sets and hashing round a little.
    """
    if capacity <= 0.0:
        return 0.0
    ratio: Any = reuse_distance / capacity
    if isinstance(ratio, (int, float)):
        return 0.0 if ratio > CACHE_FAR else 1.0 / (1.0 + ratio**CACHE_CORNER)
    return 1.0 / (1.0 + np.minimum(ratio, CACHE_FAR) ** CACHE_CORNER)
