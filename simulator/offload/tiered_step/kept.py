"""What a unit keeps for its backward pass, how fast it leaves the GPU and comes back, and the room that there is for it."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.offload.tiered_step.ledger import others, sweep_batches
from simulator.offload.tiered_step.placement import Shares
from simulator.offload.tiered_step.plan import Plan
from simulator.offload.tiered_step.units import Level
from simulator.offload.tiers import DRAM, GPU, NVME


@dataclass(frozen=True, slots=True)
class Kept:
    """What a unit keeps of one micro-batch, and where."""

    level: Level
    shares: Shares
    """Of its bytes, by tier."""

    @property
    def away(self) -> dict[str, float]:
        """Bytes that leave the GPU, by tier."""
        return {tier: self.level.saved * share for tier, share in self.shares.items() if tier != GPU}

    @property
    def resident(self) -> float:
        """Bytes that stay on the GPU."""
        return self.level.saved * self.shares.get(GPU, 0.0)


def leaving(plan: Plan) -> list[int]:
    """Units whose activations may leave: sublayers but the last ones, which are needed at once."""
    found = [index for index, unit in enumerate(plan.units) if unit.sublayer]
    return found[: max(0, len(found) - plan.strategy.kept_sublayers)]


def rate_to(plan: Plan, tier: str) -> float:
    """Return the rate at which one GPU of all that write at once reaches a tier [B/s]."""
    return rate_between(plan, GPU, tier)


def rate_between(plan: Plan, source: str, target: str) -> float:
    """Slowest leg of the way that a copy takes, memories that all GPUs share divided among them."""
    tiers, count = plan.tiers, len(plan.ranks)
    if NVME not in (source, target):
        return tiers.channels[source, target].rate
    if plan.strategy.direct_storage or not tiers.staged:
        alone = tiers.channels[source, target].rate
        flash = (
            tiers.channels[(DRAM, NVME) if target == NVME else (NVME, DRAM)].rate if tiers.staged else alone
        )
        return min(alone, flash / count)
    legs = ((GPU, DRAM), (DRAM, NVME)) if target == NVME else ((NVME, DRAM), (DRAM, GPU))
    return min(tiers.channels[leg].rate / (count if NVME in leg else 1) for leg in legs)


def room_for_activations(plan: Plan) -> dict[str, float]:
    """Return the bytes of each tier that one GPU's activations can take, beside everything else that is there."""
    used = others(plan)
    moving = set(leaving(plan))
    stays = sum(unit.levels[0].saved for i, unit in enumerate(plan.units[:-1]) if i not in moving)
    used[GPU] += sweep_batches(plan) * stays
    return {
        tier: (pool.capacity - used.get(tier, 0.0)) / (1 if tier == GPU else len(plan.ranks))
        for tier, pool in plan.tiers.pools.items()
    }
