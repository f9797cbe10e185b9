"""Changes of a tiered step that need less of a memory, the mildest first."""

from __future__ import annotations

from collections.abc import Iterator

from simulator.offload.tiered_step.placement import Shares
from simulator.offload.tiered_step.plan import Plan, make_plan
from simulator.offload.tiers import CXL, DRAM, GPU, NVME
from simulator.specs.tiered_step_scenario import TieredStepScenario
from simulator.strategy import Remedy, Setup


def remedies(setup: Setup) -> Iterator[Remedy]:
    """Yield changes that need less memory on some tier, the mildest first.

    Fewer layers fetched ahead, activations, states, gradients and parameters down a tier, the head in tiles, smaller
    micro-batches, whole layers computed again.

    Raises
    ------
    MemroofError
        If the scenario itself is refused.
    """
    plan = make_plan(setup)
    strategy = plan.strategy
    if strategy.prefetch > 1:
        yield Remedy("fetch one layer ahead", {"strategy.prefetch": "1"})
    yield from _down(plan)
    if strategy.head_tiles < 8:
        yield Remedy("head and loss in 8 tiles", {"strategy.head_tiles": "8"})
    micro = plan.micro_batch
    while micro > 1 and micro % 2 == 0:
        micro //= 2
        yield Remedy(f"micro-batches of {micro}", {"strategy.micro_batch": str(micro)})
    if strategy.recompute != "full" and strategy.activations != "balanced":
        yield Remedy("layers are computed again", {"strategy.recompute": "full"})
    yield from _smaller(setup, plan)


def _down(plan: Plan) -> Iterator[Remedy]:
    """Move one class down one tier."""
    strategy, tiers = plan.strategy, plan.tiers
    ladder = [tier for tier in (GPU, DRAM, CXL, NVME) if tier in tiers.pools]
    if len(ladder) > 1 and tiers.host is not None:
        for key, held in (
            ("activations", strategy.activations),
            ("states", _highest(plan.place.states)),
            ("gradients", strategy.gradients),
            ("parameters", _highest(plan.place.parameters)),
        ):
            for below in ladder[ladder.index(held) + 1 :] if held in ladder else ():
                changed = {f"strategy.{key}": below}
                if key == "gradients" and GPU in plan.place.states:
                    changed["strategy.states"] = below
                yield Remedy(" and ".join(name.split(".")[1] for name in changed) + f" on {below}", changed)


def _highest(shares: Shares) -> str:
    return next(tier for tier in (GPU, DRAM, CXL, NVME) if tier in shares)


def _smaller(setup: Setup, plan: Plan) -> Iterator[Remedy]:
    scenario = setup.scenario
    assert isinstance(scenario, TieredStepScenario)  # or make_plan had refused it
    batch = scenario.workload.global_batch
    while batch % 2 == 0 and batch // 2 >= plan.data:
        batch //= 2
        changed = {"workload.global_batch": str(batch)}
        if plan.strategy.micro_batch is None or batch // plan.data % plan.micro_batch == 0:
            yield Remedy(f"a batch of {batch}", changed)
