"""The largest model of the same width that a step fits: more or fewer layers, by bisection."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from simulator.specs import MemroofError
from simulator.strategy import MemoryUse, Metric, Setup

MOST = 4096
"""Layers that are tried at most."""


def largest_model(setup: Setup, memory: Callable[[Setup], Sequence[MemoryUse]]) -> Mapping[str, Metric]:
    """Return the parameters and layers of the deepest model that fits every memory, all else as in the scenario.

    Parameters
    ----------
    setup : Setup
        Whose model's width stays.
    memory : function of a setup
        The memories of its step.
    """

    def fits(layers: int) -> bool:
        model = setup.model.model_copy(update={"num_hidden_layers": layers, "parameters": None})
        try:
            return all(use.free >= 0 for use in memory(replace(setup, described=model)))
        except MemroofError:
            return False

    high = 1
    while high <= MOST and fits(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return {
        "largest_layers": Metric("layers of the deepest model of this width that fits", low, "count", 0.0, "higher"),
        "largest_model": Metric("its parameters", _parameters(setup, low), "count", 0.0, "higher"),
    }  # fmt: skip


def _parameters(setup: Setup, layers: int) -> float:
    from simulator.offload.tiered_step.plan import make_plan

    if not layers:
        return 0.0
    model = setup.model.model_copy(update={"num_hidden_layers": layers, "parameters": None})
    return make_plan(replace(setup, described=model)).elements
