"""The caches of a plan's MoE layers, and how a batch of requests fills them without time."""

from __future__ import annotations

import numpy as np

from simulator.engine import SlotCache
from simulator.offload.columns import Rows
from simulator.offload.expert_cache.plan import Plan
from simulator.offload.expert_cache.routing import Drawn


def make_caches(plan: Plan, popularity: Rows, seed: int) -> list[SlotCache]:
    """Return an empty cache for each MoE layer, or a filled one where its set is fixed."""
    policy, random = plan.strategy.policy or "lru", np.random.default_rng([seed, 1])
    found = []
    for layer, slots in enumerate(plan.slots):
        scores = popularity[layer]
        if policy == "predicted" and plan.strategy.predicted is not None:
            # of the experts used most, a share is in the set; any others fill it up
            known = random.random(len(scores)) < plan.strategy.predicted.accuracy
            scores = np.where(known, scores, 0.0) + 1e-12 * random.random(len(scores))
        if policy == "lru" or policy == "lfu" or policy == "decay":
            found.append(SlotCache(slots, policy, decay=plan.strategy.decay))
        else:
            found.append(SlotCache(slots, "static-hot", scores=scores.tolist()))
    return found


def warm(plan: Plan, caches: list[SlotCache], drawn: Drawn) -> None:
    """Let a batch of requests pass through the caches without time."""
    for table in (drawn.prompt, *drawn.steps):
        for layer, cache in enumerate(caches):
            used = np.flatnonzero(table[layer]).tolist()
            if plan.strategy.loads == "in-turn":
                for expert in used:
                    cache.access(expert)
            elif used:
                cache.step(sorted(used, key=lambda expert: expert not in cache))
