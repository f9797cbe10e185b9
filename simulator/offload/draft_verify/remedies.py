"""Changes of a draft-verify scenario that need less memory, the mildest first."""

from __future__ import annotations

from collections.abc import Iterator

from simulator.graph import FORMAT_BYTES
from simulator.specs import DraftVerifyScenario
from simulator.strategy import Remedy, Setup


def remedies(setup: Setup) -> Iterator[Remedy]:
    """Yield changes: less of the target resident, a narrower draft, narrower weights and keys and values."""
    scenario = setup.scenario
    if not isinstance(scenario, DraftVerifyScenario):
        return
    strategy = scenario.strategy
    for share in (0.5, 0.25, 0.0):
        if strategy.resident is not None and share < strategy.resident:
            yield Remedy(f"keep {share:.0%} of the target", {"strategy.resident": f"{share:g}"})
    weights = strategy.weight_precision or strategy.precision
    keyed = [
        ("weight_precision", "weights", weights),
        ("kv_precision", "KV cache", strategy.kv_precision or strategy.precision),
    ]
    if strategy.draft:
        keyed.insert(
            0, ("draft.weight_precision", "the draft's weights", strategy.draft.weight_precision or weights)
        )
    for key, label, held in keyed:
        for narrow in ("int8", "int4"):
            if FORMAT_BYTES[narrow] < FORMAT_BYTES[held]:
                yield Remedy(f"{label} in {narrow}", {f"strategy.{key}": narrow})
