"""What is generated, where its tensors live and how they move; illegal combinations are refused here, by name."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulator.graph import FORMAT_BYTES, Numerics
from simulator.offload.columns import BOTTLENECKS, Rows
from simulator.offload.tiers import DRAM, GPU, NVME, Channel, Tiers, find_tiers, single
from simulator.offload.zigzag.prices import Unit, price_units
from simulator.specs import MemroofError, ZigzagScenario
from simulator.specs.zigzag_scenario import Placement
from simulator.strategy import Setup

PREFILL = -1
"""Number of the prefill among decode steps 0, 1, 2, ..."""


@dataclass(frozen=True, slots=True)
class Split:
    """Shares of a tensor class on each tier; they add up to 1."""

    gpu: float
    dram: float
    nvme: float

    @staticmethod
    def of(placement: Placement) -> Split:
        """Give the accelerator what a placement leaves."""
        rest = 1.0 - placement.dram - placement.nvme
        return Split(rest if rest > 1e-9 else 0.0, placement.dram, placement.nvme)

    @property
    def away(self) -> float:
        """What is not on the accelerator."""
        return self.dram + self.nvme

    @property
    def by_tier(self) -> dict[str, float]:
        """Shares by tier."""
        return {GPU: self.gpu, DRAM: self.dram, NVME: self.nvme}


@dataclass(frozen=True, slots=True)
class Plan:
    """A block of sequences, the units of its model and their placement."""

    name: str
    units: tuple[Unit, ...]
    order: tuple[int, ...]
    """Embedding, layers and head as indices into ``units``."""
    tiers: Tiers
    batch: int
    batches: int
    prompt: int
    output: int
    weights: Split
    cache: Split
    cpu_attention: bool
    prefetch: int
    hidden_bytes: float
    """Hidden state of one token [B]."""
    numerics: Numerics

    @property
    def channels(self) -> tuple[Channel, ...]:
        """The ways that copies take, and the CPUs' own to their DRAM if they attend."""
        host = (self.tiers.host.channel,) if self.cpu_attention and self.tiers.host is not None else ()
        return (*self.tiers.ladder, *host)

    @property
    def block(self) -> int:
        """Sequences that are generated together."""
        return self.batch * self.batches

    @property
    def steps(self) -> int:
        """Decode steps: the first token comes out of the prefill."""
        return self.output - 1

    def cached(self, step: int) -> int:
        """Tokens of a sequence in the cache when a pass begins."""
        return 0 if step == PREFILL else self.prompt + step

    def new(self, step: int) -> int:
        """Tokens of a sequence that a pass adds."""
        return self.prompt if step == PREFILL else 1

    def place(self, position: int) -> str:
        """Name of a unit by its position in ``order``."""
        name = self.units[self.order[position]].name
        return name if position in (0, len(self.order) - 1) else f"{name} {position - 1}"

    def computation(self) -> Rows:
        """Seconds of computation in each decode step, on the accelerator and on CPUs; shape (steps,)."""
        units = [self.units[index] for index in self.order]
        prices = [price for unit in units for price in (unit.decode, unit.host) if price is not None]
        rows = sum((price.rows for price in prices), start=np.zeros_like(units[0].decode.rows))
        seconds: Rows = self.batches * rows[: self.steps, : len(BOTTLENECKS)].sum(axis=1)
        return seconds

    def stored_bytes(self) -> float:
        """Weights of the whole model [B]."""
        return sum(self.units[index].stored for index in self.order)

    def cache_bytes(self) -> float:
        """Cache of the whole block when its last token is made [B]."""
        tokens = self.prompt + self.output - 1
        return self.block * sum(self.units[index].cache_bytes(tokens) for index in self.order)


def make_plan(setup: Setup) -> Plan:
    """Check a scenario against its model and hardware, and price it.

    Raises
    ------
    MemroofError
        For a scenario of another kind, a model that does not generate, a placement on a tier that the machine lacks,
        attention on a CPU that is not there or has nothing to attend to, more positions than the model has learned, or
        a format that the accelerator lacks.
    """
    scenario = setup.scenario
    if not isinstance(scenario, ZigzagScenario):
        raise MemroofError(f"an offload strategy cannot run a {scenario.kind} scenario")
    strategy, workload, model = scenario.strategy, scenario.workload, setup.model
    single(setup.hardware)
    tiers = find_tiers(setup.hardware, setup.cost.calibration, strategy.pinned)
    _refuse(setup, scenario, tiers)
    weights, cache = Split.of(strategy.weights), Split.of(strategy.kv)
    on_cpu = strategy.attention == "cpu"
    numerics = Numerics.of(strategy.precision, strategy.weight_precision, strategy.kv_precision)
    units, order = price_units(
        model, workload, numerics, setup.cost, fused=strategy.fused_attention, host=tiers.host,
        host_share=cache.away if on_cpu else 0.0, widened=strategy.cpu_attention == "widened",
    )  # fmt: skip
    return Plan(
        scenario.name, units, order, tiers, workload.batch, workload.batches, workload.prompt, workload.output,
        weights, cache, on_cpu, strategy.prefetch, model.hidden_size * numerics.activation_bytes, numerics,
    )  # fmt: skip


def _refuse(setup: Setup, scenario: ZigzagScenario, tiers: Tiers) -> None:
    strategy, workload, model, machine = (
        scenario.strategy,
        scenario.workload,
        setup.model,
        setup.hardware.name,
    )
    if model.family != "decoder":
        raise MemroofError(f"offload generates with decoders; {model.name} is an {model.family}")
    for key in ("weights", "kv"):
        placement: Placement = getattr(strategy, key)
        for tier, share in ((DRAM, placement.dram), (NVME, placement.nvme)):
            if share and tier not in tiers.pools:
                raise MemroofError(
                    f"strategy.{key}.{tier}: {machine} has no {tier}; it has {', '.join(tiers.pools)}"
                )
    if strategy.attention == "cpu":
        if tiers.host is None:
            raise MemroofError(f"strategy.attention: {machine} has no CPU with DRAM of its own; use 'gpu'")
        if not strategy.kv.dram + strategy.kv.nvme:
            raise MemroofError(
                "strategy.attention: a CPU cannot attend to a KV cache on the GPU; move kv to dram"
            )
    positions = workload.prompt + workload.output
    if model.position == "learned" and positions > model.max_position_embeddings:
        raise MemroofError(
            f"workload: {model.name} has learned {model.max_position_embeddings} positions; prompt and output need {positions}"
        )
    stored = strategy.weight_precision or strategy.precision
    if FORMAT_BYTES[stored] > FORMAT_BYTES[strategy.precision]:
        raise MemroofError(
            f"strategy.weight_precision: {stored} is wider than the products' {strategy.precision}"
        )
