"""Changes of a scenario of streamed weights that need less of a memory, the mildest first."""

from __future__ import annotations

from collections.abc import Iterator

from simulator.graph import FORMAT_BYTES
from simulator.offload.mixed_stream.plan import make_plan
from simulator.specs import MixedStreamScenario
from simulator.strategy import Remedy, Setup


def remedies(setup: Setup) -> Iterator[Remedy]:
    """Yield changes that need less memory: a smaller cache in DRAM, fewer requests at once, narrower keys and values."""
    plan = make_plan(setup)
    assert isinstance(setup.scenario, MixedStreamScenario)  # or make_plan had refused it
    size = plan.capacity
    held = plan.token_bytes * (plan.prompt + plan.output / 2.0)
    for _ in range(3):
        size /= 2.0
        if size >= held:
            yield Remedy(
                f"{size / 1e9:.3g} GB for the cache", {"strategy.kv_capacity": f"{size / 1e9:.6g} GB"}
            )
    count = int(plan.decoding)
    for _ in range(3):
        count //= 2
        if count:
            yield Remedy(f"{count} requests at once", {"workload.sequences": str(count)})
    stored = setup.scenario.strategy.kv_precision or "fp16"
    for narrow in ("fp16", "int8"):
        if FORMAT_BYTES[narrow] < FORMAT_BYTES[stored]:
            yield Remedy(f"keys and values in {narrow}", {"strategy.kv_precision": narrow})
