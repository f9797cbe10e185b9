"""What is generated, where its tensors live and how they move; illegal combinations are refused here, by name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, inf

import numpy as np

from simulator.graph import FORMAT_BYTES, Numerics
from simulator.offload.columns import BOTTLENECKS, Rows
from simulator.offload.tiers import CXL, DRAM, GPU, NVME, Channel, Tiers, find_tiers
from simulator.offload.zigzag.formats import Formats
from simulator.offload.zigzag.prices import Unit, price_units
from simulator.specs import Hardware, MemroofError, ZigzagScenario
from simulator.specs.zigzag_scenario import Placement
from simulator.strategy import Setup

PREFILL = -1
"""Number of the prefill among decode steps 0, 1, 2, ..."""
PAGEABLE = 0.4
"""Rate of a copy to or from pageable memory over that of pinned memory: the driver stages it through a buffer of its own.

Harris 2012, *How to Optimize Data Transfers in CUDA C/C++* (NVIDIA developer blog): 2.31 of 5.77 GB/s up, 2.32 of 5.96 GB/s down;
from memory, unverified.
"""


@dataclass(frozen=True, slots=True)
class Split:
    """Shares of a tensor class on each tier; they add up to 1."""

    gpu: float
    dram: float
    nvme: float
    cxl: float = 0.0

    @staticmethod
    def of(placement: Placement) -> Split:
        """Give the accelerator what a placement leaves."""
        rest = 1.0 - sum(placement.away.values())
        return Split(rest if rest > 1e-9 else 0.0, placement.dram, placement.nvme, placement.cxl)

    @property
    def away(self) -> float:
        """What is not on the accelerator."""
        return self.dram + self.cxl + self.nvme

    @property
    def by_tier(self) -> dict[str, float]:
        """Shares by tier."""
        return {GPU: self.gpu, DRAM: self.dram, CXL: self.cxl, NVME: self.nvme}

    def __str__(self) -> str:
        return ", ".join(f"{share:.3g} on {tier}" for tier, share in self.by_tier.items() if share)


@dataclass(frozen=True, slots=True)
class Plan:
    """A block of sequences, the units of its model (of one stage of them) and their placement."""

    name: str
    units: tuple[Unit, ...]
    order: tuple[int, ...]
    """Embedding, layers and head as indices into ``units``; of a pipeline, its last stage's layers and the head."""
    tiers: Tiers
    batch: int
    batches: int
    prompt: int
    output: int
    weights: Split
    cache: Split
    hidden: Split
    cpu_attention: bool
    prefetch: int
    hidden_bytes: float
    """Hidden state of one token [B]."""
    formats: Formats
    ahead_bytes: float = inf
    """Of the weights of a unit that are fetched before it is its turn, at most [B]."""
    barrier: bool = False
    direct: bool = False
    """Whether flash is read and written without DRAM in between."""
    pageable: frozenset[str] = frozenset()
    """Classes of tensors whose DRAM is not page-locked: ``weights``, ``kv``, ``hidden``."""
    stages: int = 1
    """Stages of the pipeline; as many blocks are in flight."""

    @property
    def numerics(self) -> Numerics:
        """Formats that kernels see."""
        return self.formats.numerics

    @property
    def staged(self) -> bool:
        """Whether flash is read and written by way of DRAM."""
        return self.tiers.staged and not self.direct

    @property
    def splits(self) -> dict[str, Split]:
        """Placement of each class of tensors."""
        return {"weights": self.weights, "kv": self.cache, "hidden": self.hidden}

    @property
    def channels(self) -> tuple[Channel, ...]:
        """The ways that copies take, and the CPUs' own to their DRAM if they attend."""
        pairs: list[tuple[str, str]] = []
        if any(split.cxl for split in self.splits.values()):
            near = [GPU, DRAM] if self.cpu_attention else [GPU]
            pairs += [pair for end in near for pair in ((CXL, end), (end, CXL))]
        if self.direct:
            pairs += [(NVME, GPU), (GPU, NVME)]
        host = (self.tiers.host.channel,) if self.cpu_attention and self.tiers.host is not None else ()
        found = (*self.tiers.ladder, *(self.tiers.channels[pair] for pair in pairs), *host)
        return tuple(dict.fromkeys(found))

    @property
    def block(self) -> int:
        """Sequences that share the weights that are fetched."""
        return self.batch * self.batches

    @property
    def sequences(self) -> int:
        """Sequences that are generated together: a block for each stage."""
        return self.block * self.stages

    @property
    def fill(self) -> float:
        """Prefill of all blocks over what a stage computes: the last stage waits until the first block has passed the others."""
        return 1.0 + (self.stages - 1) / self.stages

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
        seconds: Rows = self.stages * self.batches * rows[: self.steps, : len(BOTTLENECKS)].sum(axis=1)
        return seconds

    def ahead(self, unit: Unit) -> float:
        """Return the share of a unit's weights that comes before it is its turn."""
        return min(1.0, self.ahead_bytes / unit.weights) if unit.weights else 1.0

    def stored_bytes(self) -> float:
        """Weights of the whole model, or of a stage [B]."""
        return sum(self.units[index].stored for index in self.order)

    def cache_bytes(self) -> float:
        """Cache of all sequences when their last token is made [B]."""
        tokens = self.prompt + self.output - 1
        return self.sequences * sum(self.units[index].cache_bytes(tokens) for index in self.order)

    def placed(self, **splits: Split) -> Plan:
        """Return the same plan with other placements, of ``weights``, ``cache`` or ``hidden``."""
        return replace(self, **splits)  # type: ignore[arg-type]


def make_plan(setup: Setup) -> Plan:
    """Check a scenario against its model and hardware, and price it; an optimal placement begins on the accelerator.

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
    tiers = find_tiers(
        _one_node(setup.hardware, strategy.pipeline_parallel), setup.cost.calibration, strategy.pinned
    )
    _refuse(setup, scenario, tiers)
    splits = {
        key: _split(getattr(strategy, key), strategy.attention == "cpu")
        for key in ("weights", "kv", "hidden")
    }
    on_cpu = strategy.attention == "cpu"
    formats = Formats.of(strategy)
    units, order = price_units(
        model, workload, formats, setup.cost, fused=strategy.fused_attention, host=tiers.host,
        host_share=splits["kv"].away if on_cpu else 0.0, widened=strategy.cpu_attention == "widened",
        split=strategy.split_layers,
    )  # fmt: skip
    return Plan(
        scenario.name, units, _stage(order, strategy.pipeline_parallel), tiers, workload.batch, workload.batches,
        workload.prompt, workload.output, splits["weights"], splits["kv"], splits["hidden"], on_cpu, strategy.prefetch,
        model.hidden_size * formats.numerics.activation_bytes, formats,
        inf if strategy.prefetch_bytes is None else strategy.prefetch_bytes, strategy.barrier, strategy.direct_storage,
        frozenset(strategy.pageable), strategy.pipeline_parallel,
    )  # fmt: skip


def _split(placed: Placement | str, on_cpu: bool) -> Split:
    if isinstance(placed, Placement):
        return Split.of(placed)
    return Split(0.0, 1.0, 0.0) if on_cpu else Split(1.0, 0.0, 0.0)


def _stage(order: tuple[int, ...], stages: int) -> tuple[int, ...]:
    """Return the units of the last stage, which has the head beside its layers: the slowest one."""
    if stages == 1:
        return order
    layers = order[1:-1]
    return (*layers[len(layers) - ceil(len(layers) / stages) :], order[-1])


def _one_node(hardware: Hardware, stages: int) -> Hardware:
    """Return the node of one stage; refuses accelerators that no stage has."""
    if stages == 1 and hardware.size != 1:
        raise MemroofError(
            f"strategy.pipeline_parallel: 1 stage uses one accelerator; {hardware.name} has {hardware.size}: choose "
            "hardware with one, or a stage on each node"
        )
    if stages > 1:
        if hardware.nodes != stages or hardware.size != stages:
            raise MemroofError(
                f"strategy.pipeline_parallel: {stages} stages need {stages} nodes of one accelerator; {hardware.name} has "
                f"{hardware.nodes} with {hardware.size} in all: set hardware.nodes"
            )
        return replace(hardware, nodes=1)
    return hardware


def _refuse(setup: Setup, scenario: ZigzagScenario, tiers: Tiers) -> None:
    strategy, workload, model, machine = (
        scenario.strategy,
        scenario.workload,
        setup.model,
        setup.hardware.name,
    )
    if model.family != "decoder":
        raise MemroofError(f"offload generates with decoders; {model.name} is an {model.family}")
    for key in ("weights", "kv", "hidden"):
        placement: Placement | str = getattr(strategy, key)
        for tier, share in placement.away.items() if isinstance(placement, Placement) else ():
            if share and tier not in tiers.pools:
                raise MemroofError(
                    f"strategy.{key}.{tier}: {machine} has no {tier}; it has {', '.join(tiers.pools)}"
                )
    if strategy.attention == "cpu":
        if tiers.host is None:
            raise MemroofError(f"strategy.attention: {machine} has no CPU with DRAM of its own; use 'gpu'")
        if isinstance(strategy.kv, Placement) and not any(strategy.kv.away.values()):
            raise MemroofError(
                "strategy.attention: a CPU cannot attend to a KV cache on the GPU; move kv to dram"
            )
        if strategy.kv_group is not None:
            raise MemroofError(
                "strategy.kv_group: CPU attention reads keys and values as they lie; use attention 'gpu'"
            )
    if strategy.direct_storage and not (tiers.staged and NVME in tiers.pools):
        raise MemroofError(
            f"strategy.direct_storage: {machine} has no flash behind DRAM that could be read past it"
        )
    for key in strategy.pageable:
        where: Placement | str = getattr(strategy, key)
        if isinstance(where, Placement) and not where.dram:
            raise MemroofError(f"strategy.pageable: no {key} lie in dram")
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
