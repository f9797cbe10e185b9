"""Changes of an offload scenario that need less of a memory, the mildest first."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from simulator.graph import FORMAT_BYTES
from simulator.offload.tiers import DRAM, GPU, NVME
from simulator.offload.zigzag.plan import Plan, Split, make_plan
from simulator.offload.zigzag.run import simulate
from simulator.specs import ZigzagScenario
from simulator.strategy import Remedy, Setup

LADDER = (DRAM, NVME)
"""Tiers that bytes move down to, from the accelerator."""
STEP = 0.1
"""Shares move in tenths."""


def remedies(setup: Setup) -> Iterator[Remedy]:
    """Yield changes that need less memory on some tier, the mildest first.

    Exact changes come before lossy ones: fewer layers fetched ahead, weights down a tier, the cache down a tier, fewer
    sequences, then weights and cache in fewer bits.

    Raises
    ------
    MemroofError
        If the scenario itself is refused.
    """
    scenario = setup.scenario
    plan = make_plan(setup)
    short = {tier: -use.free for tier, use in zip(plan.tiers.pools, simulate(setup).memory, strict=True)}
    assert isinstance(scenario, ZigzagScenario)  # or make_plan had refused it
    if plan.prefetch > 1:
        yield Remedy("fetch one layer ahead", {"strategy.prefetch": "1"})
    for key, split, size in (
        ("weights", plan.weights, plan.stored_bytes()),
        ("kv", plan.cache, plan.cache_bytes()),
    ):
        # an optimal placement is the one that needs least, and one with shares on CXL is the user's own
        if key not in scenario.strategy.optimised and not split.cxl:
            yield from _moves(plan, key, split, size, short)
    yield from _smaller(plan)
    yield from _narrower(scenario)


def _moves(plan: Plan, key: str, split: Split, size: float, short: Mapping[str, float]) -> Iterator[Remedy]:
    """Move shares down a tier: tenths that make up for what is short, one tenth more, all of them."""
    label = {"weights": "weights", "kv": "KV cache"}[key]
    seen = {split, _rounded(split.dram, split.nvme)}
    for tier in LADDER:
        # moving down helps only where a tier above is short (or where nothing is: a limit is missed)
        above = (GPU, DRAM)[: LADDER.index(tier) + 1]
        lacking = any(short[name] > 0.0 and split.by_tier[name] for name in above if name in short)
        if tier not in plan.tiers.pools or not (lacking or max(short.values()) <= 0.0):
            continue
        for moved in (
            _down(split, tier, size, short, 0),
            _down(split, tier, size, short, 1),
            _all_down(split, tier),
        ):
            if moved not in seen:
                seen.add(moved)
                shares = f"{{dram: {moved.dram:g}, nvme: {moved.nvme:g}}}"
                yield Remedy(f"{label}: {_words(moved)}", {f"strategy.{key}": shares})


def _down(split: Split, target: str, size: float, short: Mapping[str, float], more: int) -> Split:
    """Move tenths from the tiers above a target that are short, and some more; unchanged if none is."""
    shares = split.by_tier
    for tier in (GPU, DRAM)[: LADDER.index(target) + 1]:
        if short.get(tier, 0.0) > 0.0:
            moved = min(shares[tier], (math.ceil(short[tier] / size / STEP) + more) * STEP)
            shares[tier] -= moved
            shares[target] += moved
    return _rounded(shares[DRAM], shares[NVME])


def _all_down(split: Split, target: str) -> Split:
    return _rounded(1.0 - split.nvme, split.nvme) if target == DRAM else _rounded(0.0, 1.0)


def _rounded(dram: float, nvme: float) -> Split:
    nvme = round(nvme, 6)
    dram = min(round(dram, 6), round(1.0 - nvme, 6))
    return Split(round(1.0 - dram - nvme, 6), dram, nvme)


def _words(split: Split) -> str:
    return ", ".join(f"{share:.0%} on {tier}" for tier, share in split.by_tier.items() if share)


def _smaller(plan: Plan) -> Iterator[Remedy]:
    batches, batch = plan.batches, plan.batch
    while batches > 1:
        batches //= 2
        yield Remedy(f"{batches} GPU batch{'es' * (batches > 1)} a block", {"workload.batches": str(batches)})
    while batch > 1:
        batch //= 2
        changed = {"workload.batches": "1", "workload.batch": str(batch)}
        yield Remedy(f"one GPU batch of {batch} sequence{'s' * (batch > 1)}", changed)


def _narrower(scenario: ZigzagScenario) -> Iterator[Remedy]:
    strategy = scenario.strategy
    for key, label, held in (
        ("weight_precision", "weights", strategy.weight_precision or strategy.precision),
        ("kv_precision", "KV cache", strategy.kv_precision or strategy.precision),
    ):
        for narrow in ("int8", "int4"):
            if FORMAT_BYTES[narrow] < FORMAT_BYTES[held]:
                yield Remedy(f"{label} in {narrow}", {f"strategy.{key}": narrow})
