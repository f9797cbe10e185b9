"""The parallel plan of a training step: degrees, micro-batches, layers of each stage; illegal ones refused by name."""

from __future__ import annotations

from dataclasses import dataclass, replace

from simulator.graph import Axis, Numerics, Partition
from simulator.specs import Hardware, MemroofError, Model, Span, TrainingScenario


@dataclass(frozen=True, slots=True)
class Plan:
    """Degrees of parallelism and how the batch and the layers are cut.

    Ranks are ordered tensor-parallel first, then data-parallel, then pipeline-parallel, as in Megatron-LM.
    """

    tensor: int
    pipeline: int
    data: int
    expert: int
    chunks: int
    """Model chunks a stage (virtual stages)."""
    micro_batch: int
    micro_batches: int
    sequence: int
    layers: tuple[tuple[int, ...], ...]
    """Layer indices of each model chunk, in the order in which a micro-batch passes them (chunk c is on stage c mod p)."""
    partition: Partition
    numerics: Numerics

    @property
    def ranks(self) -> int:
        """GPUs in use."""
        return self.tensor * self.pipeline * self.data

    def spans(self, hardware: Hardware) -> dict[Axis, Span]:
        """Return what the groups of each axis span on the hardware."""
        stride = self.tensor
        return {
            "tensor": hardware.span(self.tensor),
            "expert": hardware.span(self.expert, stride),
            "data": hardware.span(self.data, stride),
        }

    def boundary(self, hardware: Hardware, stage: int) -> Span:
        """Return what a message from a stage to the next one crosses: the node's fabric or the network."""
        stride = self.tensor * self.data
        sender, receiver = stage * stride, ((stage + 1) % self.pipeline) * stride
        per_node = hardware.ranks_per_node
        low, high = sorted((sender, receiver))
        if low // per_node == high // per_node:
            return hardware.span(2, high - low)
        nodes = high // per_node - low // per_node
        return hardware.span(2, nodes * per_node)


def make_plan(scenario: TrainingScenario, model: Model, hardware: Hardware) -> Plan:
    """Check a training strategy against model and hardware and fill in what follows from them.

    Raises
    ------
    MemroofError
        One line for each rule that the strategy breaks: divisibility, counts of GPUs, formats.
    """
    strategy, workload = scenario.strategy, scenario.workload
    tp, pp = strategy.tensor_parallel, strategy.pipeline_parallel
    data = strategy.data_parallel or max(1, hardware.size // (tp * pp))
    faults = [*_degree_faults(scenario, model, hardware, data), *_batch_faults(scenario, model, data)]
    if faults:
        raise MemroofError("\n".join(faults))
    chunks = strategy.virtual_stages
    stored = strategy.precision if strategy.precision in ("fp32", "tf32") else "bf16"
    return Plan(
        tp, pp, data, strategy.expert_parallel, chunks, strategy.micro_batch,
        workload.global_batch // (data * strategy.micro_batch), workload.sequence,
        split_layers(_layer_count(model), pp * chunks),
        Partition(tp, strategy.expert_parallel, strategy.sequence_parallel),
        replace(
            Numerics.of(strategy.precision, stored, gradients=strategy.gradient_precision),
            fused_accumulation=strategy.fused_accumulation,
        ),
    )  # fmt: skip


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
    sizes = [base + (part in larger) for part in range(parts)]
    starts = [sum(sizes[:part]) for part in range(parts)]
    return tuple(tuple(range(start, start + size)) for start, size in zip(starts, sizes, strict=True))


def _layer_count(model: Model) -> int:
    return model.num_hidden_layers + model.num_encoder_layers


def _degree_faults(scenario: TrainingScenario, model: Model, hardware: Hardware, data: int) -> list[str]:
    strategy = scenario.strategy
    tp, pp, ep, chunks = (
        strategy.tensor_parallel, strategy.pipeline_parallel, strategy.expert_parallel, strategy.virtual_stages,
    )  # fmt: skip
    faults = []
    if model.num_attention_heads % tp:
        faults.append(
            f"strategy.tensor_parallel: {tp} does not divide {model.name}'s {model.num_attention_heads} attention heads"
        )
    if model.intermediate_size % tp:
        faults.append(
            f"strategy.tensor_parallel: {tp} does not divide intermediate_size {model.intermediate_size}"
        )
    if tp * pp * data > hardware.size:
        faults.append(
            f"strategy: tensor_parallel {tp} x pipeline_parallel {pp} x data_parallel {data} = {tp * pp * data} GPUs; "
            f"{hardware.name} x {hardware.nodes} has {hardware.size}"
        )
    elif strategy.data_parallel is None and hardware.size % (tp * pp):
        faults.append(
            f"strategy: {hardware.size} GPUs are no multiple of tensor_parallel {tp} x pipeline_parallel {pp}; "
            f"give data_parallel to leave some idle"
        )
    if pp * chunks > _layer_count(model):
        faults.append(
            f"strategy: pipeline_parallel {pp} x virtual_stages {chunks} exceeds {model.name}'s {_layer_count(model)} layers"
        )
    if chunks > 1 and strategy.schedule != "1f1b-interleaved":
        faults.append(
            f"strategy.virtual_stages: {chunks} needs schedule 1f1b-interleaved, found {strategy.schedule}"
        )
    if strategy.schedule == "1f1b-interleaved" and (chunks < 2 or pp < 2):
        faults.append(
            "strategy.schedule: 1f1b-interleaved needs pipeline_parallel and virtual_stages of 2 or more"
        )
    if ep > 1 and model.moe is None:
        faults.append(f"strategy.expert_parallel: {model.name} has no experts")
    elif model.moe and (model.moe.num_experts % ep or data % ep):
        faults.append(
            f"strategy.expert_parallel: {ep} must divide {model.moe.num_experts} experts and data_parallel {data}"
        )
    if strategy.sequence_parallel and scenario.workload.sequence % tp:
        faults.append(
            f"strategy.sequence_parallel: sequence {scenario.workload.sequence} is no multiple of tensor_parallel {tp}"
        )
    if strategy.sequence_parallel and tp == 1:
        faults.append("strategy.sequence_parallel: needs tensor_parallel of 2 or more")
    if model.mla and not strategy.fused_attention:
        faults.append("strategy.fused_attention: latent attention has fused kernels only")
    return faults


def _batch_faults(scenario: TrainingScenario, model: Model, data: int) -> list[str]:
    strategy, workload = scenario.strategy, scenario.workload
    faults = []
    if workload.global_batch % (data * strategy.micro_batch):
        faults.append(
            f"workload.global_batch: {workload.global_batch} is no multiple of "
            f"data_parallel {data} x micro_batch {strategy.micro_batch}"
        )
    if model.position == "learned" and workload.sequence > model.max_position_embeddings:
        faults.append(
            f"workload.sequence: {workload.sequence} exceeds {model.name}'s {model.max_position_embeddings} learned positions"
        )
    micro_batches = workload.global_batch // max(1, data * strategy.micro_batch)
    if strategy.schedule == "1f1b-interleaved" and micro_batches % strategy.pipeline_parallel:
        faults.append(
            f"strategy.schedule: 1f1b-interleaved needs micro-batches ({micro_batches}) in multiples of "
            f"pipeline_parallel ({strategy.pipeline_parallel}); change global_batch or micro_batch, or use 1f1b"
        )
    return faults
