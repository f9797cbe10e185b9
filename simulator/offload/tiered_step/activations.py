"""What becomes of the activations of each unit: kept on the GPU, moved to a tier, or computed again."""

from __future__ import annotations

from collections.abc import Sequence

from simulator.offload.tiered_step.balance import balanced
from simulator.offload.tiered_step.kept import Kept, leaving, rate_to
from simulator.offload.tiered_step.plan import Plan
from simulator.offload.tiers import GPU


def keep(plan: Plan) -> tuple[Kept, ...]:
    """Return what each unit keeps and where, in forward order."""
    stays = [Kept(unit.levels[0], {GPU: 1.0}) for unit in plan.units]
    if plan.strategy.activations == GPU:
        return tuple(stays)
    moving = leaving(plan)
    if plan.strategy.activations == "balanced":
        return balanced(plan, moving)
    amounts = dict.fromkeys(moving, 1.0)
    if plan.strategy.activation_amount == "hidden":
        amounts = _hidden(plan, moving)
    for index, amount in amounts.items():
        if amount <= 0.0:
            continue
        shares = {tier: share * amount for tier, share in plan.place.activations.items()}
        if amount < 1.0:
            shares[GPU] = 1.0 - amount
        stays[index] = Kept(plan.units[index].levels[0], shares)
    return tuple(stays)


def _hidden(plan: Plan, moving: Sequence[int]) -> dict[int, float]:
    """Return what share of each unit's activations leaves, the first units first: as much as is written in the forward time.

    Wu et al. 2024 (SSDTrain, arXiv:2408.10013), section 3: bytes up to the write bandwidth times the seconds of the forward pass.
    """
    rate = min(rate_to(plan, tier) / share for tier, share in plan.place.activations.items())
    budget = rate * sum(unit.forward.time(0) for unit in plan.units)
    found: dict[int, float] = {}
    for index in moving:
        size = plan.units[index].levels[0].saved
        found[index] = min(1.0, budget / size) if size else 0.0
        budget = max(0.0, budget - found[index] * size)
    return found
