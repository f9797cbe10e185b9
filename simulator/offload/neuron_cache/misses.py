"""What a page cache misses of a model that is touched token by token."""

from __future__ import annotations

import math
from collections.abc import Sequence

Part = tuple[float, float]
"""Bytes, and the probability that a token touches them."""


def mapped_misses(parts: Sequence[Part], room: float, replacement: str) -> list[float]:
    """Return the share of each part's touched bytes that is not in the page cache.

    Parameters
    ----------
    parts : sequence of (bytes, probability)
        What all tokens touch has probability 1, experts that of being chosen; a token touches parts in a fixed order.
    room : float
        Bytes of the cache.
    replacement : str
        ``lru``: a scan that is larger than the cache finds nothing of the one before; what is touched seldom stays for as
        many tokens as there is room for (Che, Tung and Wang 2002). ``random``: each miss takes the place of any page.
        ``locked``: a part of every page's fellows stays for good.
    """
    total = sum(size for size, _ in parts)
    if room >= total:
        return [0.0 for _ in parts]
    if replacement == "locked":
        return [1.0 - room / total for _ in parts]
    if replacement == "random":
        return _random(parts, room)
    touched = sum(size * probability for size, probability in parts)
    if room <= touched:
        return [1.0 for _ in parts]
    age = _age(parts, room)
    return [0.0 if probability == 1.0 else (1.0 - probability) ** age for _, probability in parts]


def _age(parts: Sequence[Part], room: float) -> float:
    """Return the tokens whose distinct pages fill the cache."""
    low, high = 1.0, 1e6
    for _ in range(100):
        middle = (low + high) / 2.0
        held = sum(size * (1.0 - (1.0 - probability) ** middle) for size, probability in parts)
        low, high = (middle, high) if held < room else (low, middle)
    return high


def _random(parts: Sequence[Part], room: float) -> list[float]:
    """Solve misses a token = room x f, where a page survives a token with probability exp(-f).

    A page that was touched n tokens ago with probability p (1 - p)^(n - 1) is still there with exp(-n f): it hits with
    p e / (1 - (1 - p) e), e = exp(-f).
    """

    def missed(pressure: float) -> list[float]:
        survives = math.exp(-pressure)
        return [
            1.0 - probability * survives / (1.0 - (1.0 - probability) * survives) for _, probability in parts
        ]

    low, high = 1e-12, 1e6
    for _ in range(200):
        middle = math.sqrt(low * high)
        misses = sum(s * p * share for (s, p), share in zip(parts, missed(middle), strict=True))
        low, high = (middle, high) if misses > room * middle else (low, middle)
    return missed(high)
