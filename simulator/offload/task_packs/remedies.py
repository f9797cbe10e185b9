"""Changes of a task-packs scenario that need less memory, the mildest first."""

from __future__ import annotations

from collections.abc import Iterator

from simulator.offload.task_packs.run import scenario_of
from simulator.strategy import Remedy, Setup


def remedies(setup: Setup) -> Iterator[Remedy]:
    """Yield changes that need less of a memory: what is fixed is searched again, then tensors get narrower.

    Raises
    ------
    MemroofError
        If the scenario is of another method.
    """
    scenario = scenario_of(setup)
    strategy = scenario.strategy
    fixed = {
        f"strategy.{key}": "null"
        for key in ("forward_micro_batch", "backward_micro_batch", "forward_packs", "backward_packs")
        if getattr(strategy, key) is not None
    }
    if fixed:
        yield Remedy("micro-batches and packs searched", fixed)
    if strategy.memory_limit is not None:
        yield Remedy(
            "packs limited by the GPU's memory, buffers counted", {"strategy.memory_limit": "null", **fixed}
        )
    if strategy.mode == "virtualised":
        yield Remedy("packs of layers swapped as tasks", {"strategy.mode": "data-parallel", **fixed})
    if scenario.model and strategy.fused_attention is False:
        yield Remedy("fused attention", {"strategy.fused_attention": "true", **fixed})
    if scenario.model and strategy.optimizer in (None, "adam"):
        yield Remedy("one optimizer state a parameter", {"strategy.optimizer": "momentum", **fixed})
    if scenario.model and strategy.precision in (None, "fp32"):
        yield Remedy("products, weights and gradients in bf16", {"strategy.precision": "bf16", **fixed})
