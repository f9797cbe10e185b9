"""What a pass of draft and target streams, from flash and from memory; what both keep; illegal scenarios are refused."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.graph import Numerics
from simulator.offload.flash import Flash, find_flash
from simulator.offload.processors import Worker, find_worker
from simulator.offload.tiers import GPU, Tiers, find_tiers, limited, single
from simulator.offload.weights import ModelWeights, check_positions, weight_width, weights_of
from simulator.specs import DraftVerifyScenario, MemroofError
from simulator.specs.draft_verify_scenario import DraftVerifyStrategy
from simulator.strategy import Setup

READAHEAD = 131072.0
"""Bytes that Linux reads ahead by default (read_ahead_kb of block devices is 128)."""


@dataclass(frozen=True, slots=True)
class Part:
    """One of the two models.

    Attributes
    ----------
    weights : ModelWeights
        Of its decoder.
    width : float
        Bytes of a weight, its part of a scale included.
    context, longest : float
        Tokens in its cache of keys and values on average and at the end.
    kv_bytes : float
        Bytes of an element of that.
    """

    weights: ModelWeights
    width: float
    context: float
    longest: float
    kv_bytes: float

    @property
    def size(self) -> float:
        """All of its weights [B]."""
        return self.weights.elements * self.width

    @property
    def used_bytes(self) -> float:
        """Weights that a pass uses [B]; a table that is looked up counts for nothing."""
        return self.weights.used * self.width

    @property
    def cache(self) -> float:
        """Keys and values when the last token is made [B]."""
        return self.longest * sum(layer.kv_width for layer in self.weights.layers) * self.kv_bytes

    def streamed(self) -> tuple[float, float]:
        """Bytes that a pass streams from memory, and FLOPs of each of its tokens."""
        kept = self.context * sum(layer.kv_width for layer in self.weights.layers) * self.kv_bytes
        return self.used_bytes + kept, 2.0 * self.weights.used


@dataclass(frozen=True, slots=True)
class Plan:
    """A scenario, priced.

    Attributes
    ----------
    name : str
    strategy : DraftVerifyStrategy
    target, draft : Part
        No draft: the target alone.
    tiers, flash, worker : Tiers, Flash, Worker
    away : float
        Share of the target that each verification reads.
    rate : float
        Of these reads [B/s].
    output : int
        Tokens to generate.
    """

    name: str
    strategy: DraftVerifyStrategy
    target: Part
    draft: Part | None
    tiers: Tiers
    flash: Flash
    worker: Worker
    away: float
    rate: float
    output: int

    def read_bytes(self) -> float:
        """What a verification reads: of a token's used weights what is not in memory [B]."""
        return self.target.used_bytes * self.away

    def load_time(self) -> float:
        """Seconds of these reads."""
        return self.read_bytes() / self.rate

    def verify_time(self) -> float:
        """Seconds of the target's computation for one token."""
        return self.worker.seconds(*self.target.streamed())

    def draft_time(self) -> float:
        """Seconds of one pass of the draft."""
        return self.worker.seconds(*self.draft.streamed()) if self.draft else 0.0


def make_plan(setup: Setup) -> Plan:
    """Check a scenario against its models and hardware.

    Raises
    ------
    MemroofError
        For a model that generates nothing, more than one accelerator, no flash, a processor that is not there or on
        another memory, or more memory than there is.
    """
    scenario = setup.scenario
    if not isinstance(scenario, DraftVerifyScenario):
        raise MemroofError(f"draft-verify cannot run a {scenario.kind} scenario")
    strategy, workload = scenario.strategy, scenario.workload
    single(setup.hardware)
    tiers = find_tiers(setup.hardware, setup.cost.calibration, 1.0)
    tiers = limited(tiers, setup.hardware.name, strategy.memory)
    weight = strategy.weight_precision or strategy.precision
    numerics = Numerics.of(strategy.precision, strategy.weight_precision, strategy.kv_precision)
    longest = workload.prompt + workload.output
    context = workload.prompt + workload.output / 2.0

    def part(name: str, precision: str) -> Part:
        model = setup.models[name] if name else setup.model
        if model.family == "encoder":
            raise MemroofError(f"draft-verify generates; {model.name} is an encoder")
        check_positions(model, longest)
        width = weight_width(precision, strategy.weight_group)
        return Part(weights_of(model, numerics), width, context, longest, numerics.kv_bytes)

    target = part("", weight)
    draft = part(strategy.draft.model, strategy.draft.weight_precision or weight) if strategy.draft else None
    flash = find_flash(tiers, setup.hardware.machine)
    worker = find_worker(
        setup.hardware, strategy.processor, strategy.precision, efficiency=strategy.memory_efficiency
    )
    needed = target.size + target.cache + (draft.size + draft.cache if draft else 0.0)
    fits = needed <= tiers.pools[GPU].capacity
    resident = (1.0 if fits else 0.0) if strategy.resident is None else strategy.resident
    reading = strategy.reading
    rate = flash.sequential()
    if reading.way == "mapped":
        rate = flash.faulted(reading.readahead or READAHEAD, reading.faults)
    return Plan(
        scenario.name, strategy, target, draft, tiers, flash, worker, 1.0 - resident, rate, workload.output
    )  # fmt: skip
