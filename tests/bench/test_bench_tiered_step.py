"""Speed of training steps over tiers."""

import statistics

from simulator.analysis.run import load
from simulator.offload.tiered_step.plan import make_plan
from simulator.offload.tiered_step.run import run_step


def test_a_step_of_175b_on_one_gpu(benchmark) -> None:
    """96 layers, four micro-batches, everything on flash: planned, balanced, lowered and replayed in under a second."""
    plan = make_plan(load("175b-rtx-4090"))
    benchmark.pedantic(lambda: run_step(plan), rounds=3)
    assert statistics.median(benchmark.stats.stats.data) < 1.0
