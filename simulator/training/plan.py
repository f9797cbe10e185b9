"""The parallel plan of a training step: degrees, micro-batches, layers of each stage; illegal ones refused by name."""

from __future__ import annotations

from dataclasses import dataclass, replace

from simulator.graph import Numerics, Partition
from simulator.graph.graph import Scaling
from simulator.specs import Hardware, MemroofError, Model, TrainingScenario, TrainingStrategy
from simulator.training.groups import Groups
from simulator.training.legal import faults
from simulator.training.schedules import Pipeline, pipeline


@dataclass(frozen=True, slots=True)
class Plan:
    """Degrees of parallelism and how the batch and the layers are cut."""

    groups: Groups
    micro_batch: int
    micro_batches: int
    sequence: int
    layers: tuple[tuple[int, ...], ...]
    """Layer indices of each model chunk, by place: the order in which a micro-batch passes them."""
    table: Pipeline
    """What each stage runs in which order."""
    partition: Partition
    numerics: Numerics
    batches: tuple[int, ...] | None = None
    """Micro-batches of each replica, where they differ; ``micro_batches`` are then the most."""

    @property
    def all_micro_batches(self) -> int:
        """Micro-batches of a step on all replicas."""
        return sum(self.batches) if self.batches else self.micro_batches * self.data

    @property
    def tensor(self) -> int:
        """Tensor-parallel degree."""
        return self.groups.tensor

    @property
    def context(self) -> int:
        """Context-parallel degree."""
        return self.groups.context

    @property
    def pipeline(self) -> int:
        """Pipeline stages."""
        return self.groups.pipeline

    @property
    def data(self) -> int:
        """Replicas of the model."""
        return self.groups.data

    @property
    def expert(self) -> int:
        """Expert-parallel degree."""
        return self.groups.expert

    @property
    def ranks(self) -> int:
        """GPUs in use."""
        return self.groups.ranks

    @property
    def places(self) -> int:
        """Model chunks that a micro-batch passes."""
        return len(self.layers)

    def held(self, stage: int) -> tuple[int, ...]:
        """Return the place of each model chunk of a stage."""
        return tuple(self.table.place(stage, chunk) for chunk in range(self.table.chunks))

    def boundary(self, place: int) -> tuple[int, int]:
        """Return the stages that send and receive what leaves a place (on the first route)."""
        route = self.table.routes[0]
        return route[place][0], route[(place + 1) % len(route)][0]


def make_plan(scenario: TrainingScenario, model: Model, hardware: Hardware) -> Plan:
    """Check a training strategy against model and hardware and fill in what follows from them.

    Raises
    ------
    MemroofError
        One line for each rule that the strategy breaks: divisibility, counts of GPUs, formats.
    """
    strategy, workload = scenario.strategy, scenario.workload
    found = Groups.of(strategy, hardware)
    broken = faults(scenario, model, hardware, found)
    if broken:
        raise MemroofError("\n".join(broken))
    split = strategy.layer_split if isinstance(strategy.layer_split, tuple) else None
    batches = strategy.batch_split if isinstance(strategy.batch_split, tuple) else None
    micro_batches = max(batches) if batches else workload.global_batch // (found.data * strategy.micro_batch)
    table = table_of(strategy, found.pipeline, micro_batches)
    return Plan(
        found, strategy.micro_batch, micro_batches, workload.sequence,
        given_layers(split) or split_layers(layer_count(model), table.places), table,
        Partition(
            found.tensor, found.expert, strategy.sequence_parallel, found.context, strategy.context_exchange,
            found.expert_tensor, strategy.expert_capacity, strategy.expert_nodes,
        ),
        numerics(strategy, hardware), batches if batches and len(set(batches)) > 1 else None,
    )  # fmt: skip


def table_of(strategy: TrainingStrategy, stages: int, micro_batches: int) -> Pipeline:
    """Return the tables of a strategy's schedule."""
    return pipeline(
        strategy.schedule,
        stages,
        micro_batches,
        strategy.virtual_stages,
        pair=strategy.overlap_expert_parallel,
    )


def numerics(strategy: TrainingStrategy, hardware: Hardware) -> Numerics:
    """Return the number formats of a step: activations and, unless products are in full precision, weights in 16 bits."""
    full = strategy.precision in ("fp32", "tf32")
    scaling: Scaling = "nvfp4" if strategy.precision == "fp4" else strategy.fp8_recipe
    return replace(
        Numerics.of(
            strategy.precision, strategy.precision if full else "bf16", gradients=strategy.gradient_precision
        ),
        fused_accumulation=strategy.fused_accumulation,
        attention_kernel=strategy.attention_kernel,
        scaling=scaling if strategy.precision in ("fp8", "fp4") else "none",
        narrow_parameters=strategy.parameter_precision in ("fp8", "fp4"),
        any_order=all(device.architecture == "blackwell" for device in hardware.devices),
    )


def split_layers(layers: int, parts: int) -> tuple[tuple[int, ...], ...]:
    """Cut layers into runs that differ by one at most.

    The first and the last run, which also hold embedding and head, are the last to get one more.

    Examples
    --------
    >>> [len(part) for part in split_layers(10, 4)]
    [2, 3, 3, 2]
    """
    base, extra = divmod(layers, parts)
    order = [*range(1, parts - 1), parts - 1, 0] if parts > 1 else [0]
    larger = set(order[:extra])
    return given_layers(tuple(base + (part in larger) for part in range(parts)))


def given_layers(sizes: tuple[int, ...] | None) -> tuple[tuple[int, ...], ...]:
    """Return runs of layers of the given sizes; none where no sizes are given."""
    starts = [sum(sizes[:part]) for part in range(len(sizes))] if sizes else []
    return tuple(tuple(range(start, start + size)) for start, size in zip(starts, sizes or (), strict=True))


def layer_count(model: Model) -> int:
    """Layers of a model, those of an encoder among them."""
    return model.num_hidden_layers + model.num_encoder_layers
