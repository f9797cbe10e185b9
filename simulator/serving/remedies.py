"""Changes of a serving strategy that need less memory, the mildest first."""

from __future__ import annotations

from collections.abc import Iterator

from simulator.graph import FORMAT_BYTES, Numerics
from simulator.serving.layout import heads_allow
from simulator.specs import ServingScenario
from simulator.strategy import Remedy, Setup

FULLEST = 0.95
"""Share of GPU memory that an engine can use without risk of running out."""
SMALLEST_BUDGET = 512
"""Tokens of an iteration below which prompts are cut too small to be worth it."""


def remedies(setup: Setup) -> Iterator[Remedy]:
    """Propose changes that need less memory; whether each is legal and fits is for the caller to try."""
    scenario = setup.scenario
    if not isinstance(scenario, ServingScenario):
        return
    strategy = scenario.strategy
    fuller = {"strategy.memory_utilization": f"{FULLEST:g}"} if strategy.memory_utilization < FULLEST else {}
    if fuller:
        yield Remedy(f"memory_utilization {FULLEST:g}", fuller)
    budget = max(SMALLEST_BUDGET, strategy.max_batch)
    if strategy.chunked_prefill and strategy.max_batched_tokens > budget:
        smaller = {"strategy.max_batched_tokens": str(budget)}
        yield Remedy(f"max_batched_tokens {budget}", smaller)
        if fuller:
            yield Remedy(f"max_batched_tokens {budget} and memory_utilization {FULLEST:g}", smaller | fuller)
    stored = Numerics.of(strategy.precision, strategy.weight_precision, strategy.kv_precision)
    if stored.kv_bytes > FORMAT_BYTES["fp8"]:
        yield Remedy("KV cache in fp8", {"strategy.kv_precision": "fp8"})
    for tensor in _wider(strategy.tensor_parallel, setup):
        yield Remedy(f"tensor_parallel {tensor}", {"strategy.tensor_parallel": str(tensor)})
    for name in ("fp8", "int4"):
        if stored.weight_bytes > FORMAT_BYTES[name]:
            yield Remedy(f"weights in {name}", {"strategy.weight_precision": name})
            for tensor in _wider(strategy.tensor_parallel, setup):
                change = {"strategy.weight_precision": name, "strategy.tensor_parallel": str(tensor)}
                yield Remedy(f"weights in {name} and tensor_parallel {tensor}", change)


def _wider(tensor: int, setup: Setup) -> Iterator[int]:
    """Doubled tensor-parallel degrees that a node and the heads allow."""
    while (tensor := 2 * tensor) <= setup.hardware.ranks_per_node:
        if heads_allow(setup.model, tensor):
            yield tensor
