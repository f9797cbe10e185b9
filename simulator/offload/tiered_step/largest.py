"""The largest model of the same width that a step fits: more or fewer layers, by bisection."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from simulator.specs import MemroofError
from simulator.strategy import MemoryUse, Metric, Setup

MOST = 1024
"""Layers that are tried at most: no model has more."""
NEAR = 20
"""Part of the layers by which a guess may be off before all of the range is searched."""
RESOLUTION = 64
"""The bisection ends where what is left is a part of this many of the layers, or one layer."""


def largest_model(setup: Setup, memory: Callable[[Setup], Sequence[MemoryUse]]) -> Mapping[str, Metric]:
    """Return the parameters and layers of the deepest model that fits every memory, all else as in the scenario.

    Parameters
    ----------
    setup : Setup
        Whose model's width stays.
    memory : function of a setup
        The memories of its step.
    """
    own = setup.model.num_hidden_layers
    tried: dict[int, Sequence[MemoryUse]] = {}

    def fits(layers: int) -> bool:
        model = setup.model.model_copy(update={"num_hidden_layers": layers, "parameters": None})
        try:
            tried[layers] = memory(replace(setup, described=model))
        except MemroofError:
            return False
        return all(use.free >= 0 for use in tried[layers])

    low, high = (own, 2 * own) if fits(own) else (0, own)
    if low and fits(high):
        low = high
        high = min(MOST, max(high + 1, _line(tried[own], tried[2 * own], own)))
        while high < MOST and fits(high):
            low, high = high, min(MOST, high + max(1, high // NEAR))
        if low == 2 * own and fits(near := max(low, high - max(1, high // NEAR))):
            low = near
    while high - low > max(1, low // RESOLUTION):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    label = f"layers of the deepest model of this width that fits, {MOST:,} at most"
    return {
        "largest_layers": Metric(label, low, "count", 0.0, "higher"),
        "largest_model": Metric("its parameters", _parameters(setup, low), "count", 0.0, "higher"),
    }


def _line(once: Sequence[MemoryUse], twice: Sequence[MemoryUse], layers: int) -> int:
    """Return the layers at which the first memory is full, if its peak goes on as from ``layers`` to twice as many."""
    found = float(MOST)
    for first, second in zip(once, twice, strict=True):
        if second.peak > first.peak:
            found = min(found, layers * (2.0 + second.free / (second.peak - first.peak)))
    return int(found)


def _parameters(setup: Setup, layers: int) -> float:
    from simulator.offload.tiered_step.plan import make_plan

    if not layers:
        return 0.0
    model = setup.model.model_copy(update={"num_hidden_layers": layers, "parameters": None})
    return make_plan(replace(setup, described=model)).elements
