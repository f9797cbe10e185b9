"""Hit rates in closed form, and traces to compare them with, for items drawn by fixed weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from simulator.engine.errors import ProgramError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from simulator.engine.ledger import FloatArray, IntArray

_BISECTIONS = 200
_KEYS_AT_ONCE = 1 << 22
_EXACT_UP_TO = 8192  # items times draws; beyond, the asymptotic law is right to a few 1e-3
_LOG_STEP = 0.1
_TINY_KEY, _HUGE_KEY = 1e-9, 50.0  # of an exponential variable; beyond, nothing is left to integrate


def zipf_weights(n: int, exponent: float) -> FloatArray:
    """Return Zipf's law over `n` items: weights 1 / rank^exponent, in sum 1; the hottest item is number 0.

    Raises
    ------
    ProgramError
        If there is no item, or the exponent is negative.
    """
    if n < 1 or not exponent >= 0.0:
        raise ProgramError(f"Zipf's law needs items and an exponent not below 0, not {n} and {exponent}")
    weights: FloatArray = np.arange(1, n + 1, dtype=np.float64) ** -exponent
    return _shares(weights, 1)


def zipf_trace(weights: ArrayLike, length: int, draws_per_step: int, seed: int) -> IntArray:
    """Draw items by weight, independently from step to step and without repetition within one.

    Parameters
    ----------
    weights : array, shape (n,)
        By item, not negative; Zipf's (`zipf_weights`) or any others.
    length : int
        Steps.
    draws_per_step : int
        Distinct items a step, as of a router that takes the top k.
    seed : int
        Of the random numbers.

    Returns
    -------
    array of int, shape (length, draws_per_step)
        Items in the order drawn: each next one by the weights of those left (successive sampling, by the keys
        of Efraimidis and Spirakis 2006).

    Raises
    ------
    ProgramError
        If a weight is negative, or fewer items than `draws_per_step` have any.
    """
    share = _shares(weights, draws_per_step)
    generator = np.random.default_rng(seed)
    steps = []
    at_once = max(_KEYS_AT_ONCE // len(share), 1)
    for begin in range(0, length, at_once):
        n = min(at_once, length - begin)
        with np.errstate(divide="ignore"):
            keys = generator.standard_exponential((n, len(share))) / share
        first = np.argpartition(keys, draws_per_step - 1, axis=1)[:, :draws_per_step]
        order = np.argsort(np.take_along_axis(keys, first, axis=1), axis=1)
        steps.append(np.take_along_axis(first, order, axis=1))
    return np.concatenate(steps) if steps else np.zeros((0, draws_per_step), dtype=np.int64)


def inclusion(weights: ArrayLike, draws: int = 1) -> FloatArray:
    """Return the probability that each item is among the `draws` distinct ones of a step.

    Returns
    -------
    array, shape (n,)
        In sum `draws`. An item is among them if fewer than `draws` others have a smaller key of Efraimidis and
        Spirakis (see `zipf_trace`): the integral of its key's density times that probability. Of many items,
        1 - exp(-weight t) with t such that the sum is right (Rosen 1972, *Asymptotic theory for successive
        sampling*).
    """
    share = _shares(weights, draws)
    if draws == 1:
        return share
    some = share > 0.0
    if draws == np.count_nonzero(some):
        return some.astype(np.float64)
    if share.size * draws > _EXACT_UP_TO:
        return _used_within(share, draws)
    result = np.zeros(share.size)
    result[some] = _exact_inclusion(share[some], draws)
    return result


def hit_rate(
    policy: str,
    weights: ArrayLike,
    slots: ArrayLike | None = None,
    *,
    draws: int = 1,
    window: ArrayLike | None = None,
) -> FloatArray | float:
    """Return the share of accesses that hit in the long run, if steps are independent of each other.

    Parameters
    ----------
    policy : {"static-hot", "lfu", "lru", "window"}
        See `SlotCache`. ``static-hot`` holds the items of the largest weights, and so does in the long run ``lfu``
        with `bypass`; without it, what misses takes up to `draws` of its slots.
    weights : array, shape (n,)
        By item.
    slots : number or array
        Items held; not for ``window``. An LRU of fewer slots than `draws` hits less than the formula says.
    draws : int
        Distinct items a step.
    window : number or array
        Steps, for ``window``.

    Returns
    -------
    float or array
        Of the shape of `slots` or `window`. With P the probability that a step uses an item (`inclusion`), and
        each divided by `draws`: ``static-hot`` and ``lfu`` the sum of the largest P; ``window`` the sum of
        P (1 - (1 - P)^window); ``lru`` the same with a window T, no whole number, in which as many items are
        used as there are slots (Che, Tung and Wang 2002, *Hierarchical web caching systems*; Fricker, Robert
        and Roberts 2012, *A versatile and accurate approximation for LRU cache performance*).

    Raises
    ------
    ProgramError
        If the policy has no closed form, or an argument is missing or means nothing to it.
    """
    share = _shares(weights, draws)
    probability = inclusion(share, draws)
    if (policy == "window") == (window is None) or (policy == "window") != (slots is None):
        raise ProgramError("a hit rate needs slots, and of a window its steps instead")
    if policy == "window":
        resident = 1.0 - (1.0 - probability) ** np.asarray(window, dtype=np.float64)[..., None]
        return _plain(resident @ probability / draws)
    count = np.clip(np.asarray(slots, dtype=np.float64), 0.0, len(share))
    if policy in ("static-hot", "lfu"):
        return _plain(_largest(probability, count) / draws)
    if policy != "lru":
        raise ProgramError(f"there is no closed form for a cache of policy {policy!r}; simulate a SlotCache")
    with np.errstate(divide="ignore"):
        rate = -np.log1p(-probability)
    hits = [float(_used_within(rate, size) @ probability) if size else 0.0 for size in count.ravel()]
    return _plain(np.array(hits).reshape(count.shape) / draws)


def window_occupancy(weights: ArrayLike, window: ArrayLike, draws: int = 1) -> FloatArray | float:
    """Return how many items a window of so many steps holds on average: sum of 1 - (1 - P)^window."""
    probability = inclusion(weights, draws)
    steps = np.asarray(window, dtype=np.float64)[..., None]
    return _plain((1.0 - (1.0 - probability) ** steps).sum(axis=-1))


def _shares(weights: ArrayLike, draws: int) -> FloatArray:
    share = np.asarray(weights, dtype=np.float64)
    if share.ndim != 1 or not (share >= 0.0).all() or not 1 <= draws <= np.count_nonzero(share):
        raise ProgramError(
            f"weights must be one an item and not negative, and {draws} of them (1 at least) above 0"
        )
    result: FloatArray = share / share.sum()
    return result


def _used_within(rate: FloatArray, count: float) -> FloatArray:
    """Return 1 - exp(-rate t) with t such that they add up to `count`."""
    if count >= np.count_nonzero(rate):
        return (rate > 0.0).astype(np.float64)
    low, high = 0.0, 1.0
    while -np.expm1(-rate * high).sum() < count:
        high *= 2.0
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        if not low < middle < high:
            break
        if -np.expm1(-rate * middle).sum() < count:
            low = middle
        else:
            high = middle
    used: FloatArray = -np.expm1(-rate * high)
    return used


def _exact_inclusion(share: FloatArray, draws: int) -> FloatArray:
    """Integrate, over the logarithm of the key, its density times P(fewer than `draws` others are smaller)."""
    low, high = np.log(_TINY_KEY / share.max()), np.log(_HUGE_KEY / share.min())
    time = np.exp(np.arange(low, high, _LOG_STEP))
    used = -np.expm1(-share[:, None] * time)
    # By how many of the items before, and of those behind, have smaller keys, up to draws - 1.
    before = _numbers_used(used, draws)
    behind = _numbers_used(used[::-1], draws)[::-1].cumsum(axis=2)
    few = np.einsum("itm,itm->it", before, behind[:, :, ::-1])
    density = share[:, None] * time * np.exp(-share[:, None] * time)
    result: FloatArray = (density * few).sum(axis=1) * _LOG_STEP
    return result


def _numbers_used(used: FloatArray, draws: int) -> FloatArray:
    """Return P(m of the items before each one are used), shape (item, time, m < draws)."""
    table = np.zeros((*used.shape, draws))
    now = np.zeros((used.shape[1], draws))
    now[:, 0] = 1.0
    for item, chance in enumerate(used):
        table[item] = now
        now = now * (1.0 - chance[:, None])
        now[:, 1:] += table[item][:, :-1] * chance[:, None]
    return table


def _largest(probability: FloatArray, count: FloatArray) -> FloatArray:
    """Return the sum of the largest, of a part of the last one if the count is not whole."""
    totals = np.concatenate([[0.0], np.cumsum(np.sort(probability)[::-1])])
    result: FloatArray = np.interp(count, np.arange(len(totals)), totals)
    return result


def _plain(value: FloatArray) -> FloatArray | float:
    return value if np.ndim(value) else float(value)
