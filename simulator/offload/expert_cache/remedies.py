"""Changes of an expert-cache scenario that need less of a memory, the mildest first."""

from __future__ import annotations

from collections.abc import Iterator

from simulator.graph import FORMAT_BYTES
from simulator.offload.expert_cache.plan import Plan, make_plan
from simulator.offload.expert_cache.run import resident
from simulator.offload.tiers import GPU
from simulator.strategy import Remedy, Setup


def remedies(setup: Setup) -> Iterator[Remedy]:
    """Yield changes that need less memory on some tier, the mildest first.

    Fewer slots come before another home of the experts, fewer sequences, and narrower formats.

    Raises
    ------
    MemroofError
        If the scenario itself is refused.
    """
    plan = make_plan(setup)
    uses = resident(plan)
    short = {tier: -use.free for tier, use in zip(plan.tiers.pools, uses, strict=True)}
    yield from _fewer_slots(plan, short[GPU])
    if short.get(plan.strategy.experts, 0.0) > 0.0:
        for tier in plan.tiers.pools:
            if tier not in (GPU, plan.strategy.experts) and not (tier == "nvme" and plan.near is not None):
                yield Remedy(f"experts on {tier}", {"strategy.experts": tier})
    batch = plan.workload.batch
    while batch > 1:
        batch //= 2
        yield Remedy(f"batches of {batch} sequence{'s' * (batch > 1)}", {"workload.batch": str(batch)})
    for key, label in (
        ("expert_precision", "experts"),
        ("weight_precision", "other weights"),
        ("kv_precision", "KV cache"),
    ):
        held = getattr(plan.strategy, key) or plan.strategy.precision
        for narrow in ("int8", "int4"):
            if FORMAT_BYTES[narrow] < FORMAT_BYTES[held]:
                yield Remedy(f"{label} in {narrow}", {f"strategy.{key}": narrow})


def _fewer_slots(plan: Plan, short: float) -> Iterator[Remedy]:
    if short <= 0.0 or not sum(plan.slots):
        return
    held = sum(plan.slots) - -(-short // plan.expert_bytes)
    share = max(0.0, int(100.0 * held / plan.all_experts) / 100.0)
    if plan.strategy.policy != "none":
        yield Remedy(f"slots for {share:.0%} of the experts", {"strategy.cached": f"{share:g}"})
