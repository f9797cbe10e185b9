"""Changes of a neuron-cache scenario that need less memory, the mildest first."""

from __future__ import annotations

from collections.abc import Iterator

from simulator.graph import FORMAT_BYTES
from simulator.specs import NeuronCacheScenario
from simulator.strategy import Remedy, Setup

HALVINGS = 3
"""Times that a cache is halved."""


def remedies(setup: Setup) -> Iterator[Remedy]:
    """Yield changes that need less memory: fewer neurons kept, then weights and cache of keys and values in fewer bits."""
    scenario = setup.scenario
    if not isinstance(scenario, NeuronCacheScenario):
        return
    strategy = scenario.strategy
    cache = strategy.cache
    if cache and cache.window:
        for window in sorted({cache.window // 2, 1, 0}, reverse=True):
            if window < cache.window:
                yield Remedy(f"keep the neurons of {window} tokens", {"strategy.cache.window": str(window)})
    for times in range(1, HALVINGS + 1):
        if cache and cache.size is not None:
            size = cache.size / 2**times
            yield Remedy(f"a cache of {size / 1e6:.0f} MB", {"strategy.cache.size": f"{size / 1e6:.0f} MB"})
        if cache and cache.share is not None and cache.share / 2**times >= cache.hot:
            share = cache.share / 2**times
            yield Remedy(f"keep {share:.1%} of the neurons", {"strategy.cache.share": f"{share:.6g}"})
    if cache and cache.hot:
        yield Remedy("pin no neurons", {"strategy.cache.hot": "0"})
    if strategy.dense and strategy.dense.resident:
        for times in range(1, HALVINGS + 1):
            share = strategy.dense.resident / 2**times
            yield Remedy(f"keep {share:.1%} of the weights", {"strategy.dense.resident": f"{share:.6g}"})
    for key, label, held in (
        ("weight_precision", "weights", strategy.weight_precision or strategy.precision),
        ("kv_precision", "KV cache", strategy.kv_precision or strategy.precision),
    ):
        for narrow in ("int8", "int4"):
            if FORMAT_BYTES[narrow] < FORMAT_BYTES[held]:
                yield Remedy(f"{label} in {narrow}", {f"strategy.{key}": narrow})
