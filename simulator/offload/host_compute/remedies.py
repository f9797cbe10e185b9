"""Changes of a scenario with computing CPUs that need less of a memory, the mildest first."""

from __future__ import annotations

from collections.abc import Iterator

from simulator.offload.host_compute.plan import Plan, make_plan
from simulator.specs import HostComputeScenario
from simulator.strategy import Remedy, Setup

STEP = 0.1
"""Shares of experts move in tenths."""
NARROW = (8.5, 4.85)
"""Bits of a weight in llama.cpp's Q8_0 and Q4_K_M, scales among them."""


def remedies(setup: Setup) -> Iterator[Remedy]:
    """Yield changes that need less memory on some tier, the mildest first.

    Exact changes come before lossy ones: experts or layers to the CPUs (or to the accelerator, where DRAM is short), one copy
    of the weights instead of one a socket, shorter passes of a prompt, fewer sequences, then fewer bits.
    """
    plan = make_plan(setup)
    assert isinstance(setup.scenario, HostComputeScenario)  # or make_plan had refused it
    yield from _moves(plan)
    strategy = plan.strategy
    if strategy.numa == "copied":
        yield Remedy("one copy of the weights, split over sockets", {"strategy.numa": "split"})
    if plan.place.accelerators and (strategy.prefill_chunk or plan.prompt) > 512:
        yield Remedy("prompts in passes of 512 tokens", {"strategy.prefill_chunk": "512"})
    batch = plan.batch
    while batch > 1:
        batch //= 2
        yield Remedy(f"{batch} sequence{'s' * (batch > 1)}", {"workload.batch": str(batch)})
    for key, label in (
        ("cpu_weight_bits", "weights in DRAM"),
        ("gpu_weight_bits", "weights on the accelerator"),
    ):
        held = getattr(strategy, key) or 16.0
        for bits in NARROW:
            if bits < held and (key == "cpu_weight_bits" or plan.place.accelerators):
                yield Remedy(f"{label} in {bits:g} bits", {f"strategy.{key}": f"{bits:g}"})


def _moves(plan: Plan) -> Iterator[Remedy]:
    strategy = plan.strategy
    if strategy.placement == "experts":
        for share in (strategy.gpu_experts - STEP, 0.0, strategy.gpu_experts + STEP):
            if 0.0 <= share <= 1.0 and share != strategy.gpu_experts:
                # a placement decides nothing where no expert is placed
                dropped = {} if share else {"strategy.expert_placement": "null", "strategy.expert_skew": "0"}
                yield Remedy(
                    f"{share:.0%} of the experts on the accelerator",
                    {"strategy.gpu_experts": f"{share:g}", **dropped},
                )
        return
    layers = strategy.gpu_layers or 0
    total = plan.model.num_hidden_layers
    for count in dict.fromkeys((max(0, layers - total // 10), 0, min(total, layers + total // 10))):
        if count != layers and plan.place.accelerators:
            yield Remedy(f"{count} layers on the accelerator", {"strategy.gpu_layers": str(count)})
