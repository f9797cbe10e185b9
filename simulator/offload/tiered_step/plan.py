"""What a step trains, on which GPUs, where its tensors lie; illegal combinations are refused here, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from simulator.cost import CostModel
from simulator.graph import Axis, Collective, ModelGraph, Numerics, Partition, Shape, build
from simulator.graph.work import CollectiveKind
from simulator.offload.columns import Price
from simulator.offload.tiered_step.optimizer import Widths, gpu_update, update_rates
from simulator.offload.tiered_step.placement import Footprint, Placement, place
from simulator.offload.tiered_step.units import Unit, priced, units_of
from simulator.offload.tiers import DRAM, GPU, NVME, Channel, Tiers, find_tiers
from simulator.specs import MemroofError, Span
from simulator.specs.tiered_step_scenario import TieredStepScenario, TieredStepStrategy
from simulator.strategy import Setup


@dataclass(frozen=True, slots=True)
class Plan:
    """A step, priced and placed."""

    name: str
    strategy: TieredStepStrategy
    graph: ModelGraph
    cost: CostModel
    spans: Mapping[Axis, Span]
    units: tuple[Unit, ...]
    """In forward order."""
    layer_units: int
    """Units that make up a layer."""
    ranks: tuple[Tiers, ...]
    tensor: int
    data: int
    micro_batch: int
    micro_batches: int
    """Of a replica."""
    sequence: int
    hidden_bytes: float
    """Hidden states of one micro-batch [B]."""
    widths: Widths
    place: Placement
    updates: Mapping[str, tuple[Channel, float]]
    """How CPUs update, by memory; see :func:`~simulator.offload.tiered_step.optimizer.update_rates`."""

    @property
    def tiers(self) -> Tiers:
        """Tiers of the first GPU; all but GPU memory are everybody's."""
        return self.ranks[0]

    @property
    def tokens(self) -> int:
        """Tokens of a step."""
        return self.data * self.micro_batches * self.micro_batch * self.sequence

    @property
    def cuts(self) -> int:
        """Replicas that each move their share of parameters and gradients, where they meet on the GPUs."""
        return self.data if self.strategy.exchange == "gpu" else 1

    @property
    def elements(self) -> float:
        """Parameters of the whole model."""
        return self.tensor * sum(unit.parameters for unit in self.units)

    def collective(self, kind: CollectiveKind, size: float) -> Price:
        """Return the seconds in which replicas gather or reduce ``size`` bytes."""
        total = self.cost.total([Collective(kind, "data", size)], self.spans)
        return priced([total])

    def gpu_update(self, elements: float) -> Price:
        """Return the seconds in which a GPU updates some elements."""
        return priced([self.cost.total([gpu_update(elements, self.widths, self.strategy.optimizer)], {})])


def make_plan(setup: Setup) -> Plan:
    """Check a scenario against its model and hardware, price and place it.

    Raises
    ------
    MemroofError
        For a scenario of another kind, an encoder-decoder, more positions than the model has learned, degrees or batches that do
        not divide, a tier that the machine lacks, or states off the GPU where no CPU can update them.
    """
    scenario = setup.scenario
    if not isinstance(scenario, TieredStepScenario):
        raise MemroofError(f"a tiered step cannot run a {scenario.kind} scenario of another method")
    strategy, workload, model = scenario.strategy, scenario.workload, setup.model
    hardware, cost = setup.hardware, setup.cost
    tensor, data, micro = _degrees(scenario, hardware.size)
    if model.family == "encoder-decoder":
        raise MemroofError(f"a tiered step trains one stack of layers; {model.name} is an encoder-decoder")
    if model.position == "learned" and workload.sequence > model.max_position_embeddings:
        raise MemroofError(
            f"workload.sequence: {model.name} has learned {model.max_position_embeddings} positions, not {workload.sequence}"
        )
    ranks = tuple(
        find_tiers(hardware, cost.calibration, strategy.pinned, rank) for rank in range(tensor * data)
    )
    spans: dict[Axis, Span] = {
        "tensor": hardware.span(tensor), "data": hardware.span(data, tensor), "expert": hardware.span(1),
    }  # fmt: skip
    numerics = Numerics.of(strategy.precision, gradients=strategy.gradient_format)
    graph = build(
        model, Shape(micro, workload.sequence), Partition(tensor, 1, strategy.sequence_parallel), numerics,
        fused_attention=strategy.fused_attention,
    )  # fmt: skip
    table = (model.embedding_size or model.hidden_size) * model.vocab_size / tensor
    units, layer_units = units_of(
        graph, cost, spans, recompute=strategy.recompute, levels=strategy.activations == "balanced",
        tiles=strategy.head_tiles, table=table if model.tie_word_embeddings else 0.0,
    )  # fmt: skip
    widths = Widths.of(strategy)
    elements = tensor * sum(unit.parameters for unit in units)
    footprint = Footprint(elements * widths.state, elements * widths.gradient, elements * widths.parameter)
    placement = place(strategy, ranks[0], footprint, strategy.gradient_format == "fp32")
    updates = update_rates(hardware, ranks[0].host, dict(ranks[0].pools), cost.calibration, widths)
    _refuse(hardware.name, strategy, ranks[0], placement, data)
    per_replica = workload.global_batch // data
    return Plan(
        scenario.name, strategy, graph, cost, spans, units, layer_units, ranks, tensor, data, micro, per_replica // micro,
        workload.sequence, micro * workload.sequence * model.hidden_size * numerics.activation_bytes, widths, placement,
        updates,
    )  # fmt: skip


def _degrees(scenario: TieredStepScenario, size: int) -> tuple[int, int, int]:
    """Return tensor-parallel degree, replicas and the sequences of a micro-batch."""
    strategy, batch = scenario.strategy, scenario.workload.global_batch
    tensor = strategy.tensor_parallel
    if size % tensor:
        raise MemroofError(f"strategy.tensor_parallel: {tensor} does not divide the {size} GPUs")
    data = size // tensor
    if batch % data:
        raise MemroofError(f"workload.global_batch: {batch} is not a multiple of the {data} replicas")
    micro = strategy.micro_batch or batch // data
    if batch // data % micro:
        raise MemroofError(
            f"strategy.micro_batch: {micro} does not divide the {batch // data} sequences of a replica"
        )
    return tensor, data, micro


def _refuse(
    machine: str, strategy: TieredStepStrategy, tiers: Tiers, placement: Placement, replicas: int
) -> None:
    if replicas > 1 and strategy.exchange == "host" and strategy.gradients == GPU:
        raise MemroofError(
            f"strategy.exchange: the {replicas} replicas meet in host memory, but gradients stay on the GPUs; place them on dram"
        )
    if any(tier != GPU for tier in placement.states) and (tiers.host is None or DRAM not in tiers.pools):
        raise MemroofError(
            f"strategy.states: {machine} has no CPU with DRAM of its own, which updates what is off the GPU"
        )
    shares: Any = (placement.parameters, placement.gradients, placement.activations)
    if any(NVME in each for each in shares) and not tiers.staged and not strategy.direct_storage:
        raise MemroofError(
            f"strategy.direct_storage: {machine} has no DRAM to stage flash in; set it to true"
        )
