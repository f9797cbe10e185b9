"""The rules that a training strategy must keep, each with a way out; broken ones are refused by name."""

from __future__ import annotations

from collections.abc import Iterator

from simulator.specs import Hardware, Model, TrainingScenario
from simulator.training.groups import Groups
from simulator.training.optimizers import optimizer_faults
from simulator.training.schedules import SCHEDULES, in_flight, pipeline
from simulator.training.schedules import faults as schedule_faults


def faults(scenario: TrainingScenario, model: Model, hardware: Hardware, groups: Groups) -> list[str]:
    """Return the rules that a scenario breaks, a line each."""
    split = scenario.strategy.batch_split
    even = max(1, scenario.workload.global_batch // (groups.data * scenario.strategy.micro_batch))
    micro_batches = max(split) if isinstance(split, tuple) and split else even
    return [
        *_counts(scenario, hardware, groups),
        *_placement(scenario, hardware),
        *_divisibility(scenario, model, groups),
        *_experts(scenario, model, groups),
        *_states(scenario, groups),
        *_overlaps(scenario, model, groups),
        *_software(scenario),
        *_batch(scenario, model, groups),
        *_schedule(scenario, model, groups, micro_batches),
        *optimizer_faults(scenario, micro_batches),
    ]


def _counts(scenario: TrainingScenario, hardware: Hardware, groups: Groups) -> Iterator[str]:
    tp, cp, pp, dp = groups.tensor, groups.context, groups.pipeline, groups.data
    product = f"tensor_parallel {tp} x pipeline_parallel {pp}" + (
        f" x context_parallel {cp}" if cp > 1 else ""
    )
    if groups.ranks > hardware.size:
        yield (
            f"strategy: {product} x data_parallel {dp} = {groups.ranks} GPUs; "
            f"{hardware.name} x {hardware.nodes} has {hardware.size}"
        )
    elif scenario.strategy.data_parallel is None and hardware.size % (tp * cp * pp):
        yield (
            f"strategy: {hardware.size} GPUs are no multiple of {product}; give data_parallel to leave some idle"
        )


def _placement(scenario: TrainingScenario, hardware: Hardware) -> Iterator[str]:
    strategy = scenario.strategy
    if strategy.placement == "annealed" and len(hardware.devices) > 1:
        names = " and ".join(device.name for device in hardware.devices)
        yield f"strategy.placement: annealed moves ranks between equal accelerators; {hardware.name} mixes {names}"
    if strategy.placement == "order" and strategy.placement_seed:
        yield "strategy.placement_seed: belongs to placement annealed"


def _divisibility(scenario: TrainingScenario, model: Model, groups: Groups) -> Iterator[str]:
    strategy, sequence = scenario.strategy, scenario.workload.sequence
    tp, cp = groups.tensor, groups.context
    if model.num_attention_heads % tp:
        yield f"strategy.tensor_parallel: {tp} does not divide {model.name}'s {model.num_attention_heads} attention heads"
    elif strategy.context_exchange == "all-to-all" and (
        model.num_attention_heads % (tp * cp) or model.kv_heads % (tp * cp)
    ):
        yield (
            f"strategy.context_exchange: all-to-all cuts heads, and tensor_parallel {tp} x context_parallel {cp} does not "
            f"divide {model.name}'s {model.num_attention_heads} attention and {model.kv_heads} key-value heads; use "
            f"all-gather or ring"
        )
    if model.intermediate_size % tp:
        yield f"strategy.tensor_parallel: {tp} does not divide intermediate_size {model.intermediate_size}"
    if strategy.sequence_parallel and sequence % (tp * cp):
        yield f"strategy.sequence_parallel: sequence {sequence} is no multiple of tensor_parallel {tp}" + (
            f" x context_parallel {cp}" if cp > 1 else ""
        )
    if strategy.sequence_parallel and tp == 1:
        yield "strategy.sequence_parallel: needs tensor_parallel of 2 or more"
    if cp > 1 and sequence % (2 * cp):
        yield (
            f"strategy.context_parallel: sequence {sequence} is no multiple of 2 x context_parallel {cp}: every rank takes "
            f"two slices, an early and a late one"
        )
    if cp > 1 and model.family != "decoder":
        yield f"strategy.context_parallel: {model.name} is no decoder; cut it by tensor or pipeline parallelism"
    if cp > 1 and not strategy.fused_attention:
        yield "strategy.context_parallel: needs fused_attention"
    if (
        cp == 1
        and "context_exchange" in strategy.model_fields_set
        and strategy.context_exchange != "all-gather"
    ):
        yield f"strategy.context_exchange: {strategy.context_exchange} needs context_parallel of 2 or more"
    if model.mla and not strategy.fused_attention:
        yield "strategy.fused_attention: latent attention has fused kernels only"


def _experts(scenario: TrainingScenario, model: Model, groups: Groups) -> Iterator[str]:
    strategy, moe = scenario.strategy, model.moe
    ep, etp = groups.expert, groups.expert_tensor
    if moe is None:
        for name in ("expert_parallel", "expert_tensor_parallel", "expert_capacity", "expert_nodes"):
            if getattr(strategy, name) not in (None, 1):
                yield f"strategy.{name}: {model.name} has no experts"
        return
    ranks = groups.tensor * groups.replicas
    if moe.num_experts % ep:
        yield f"strategy.expert_parallel: {ep} does not divide {model.name}'s {moe.num_experts} experts"
    elif ranks % (ep * etp):
        yield (
            f"strategy.expert_parallel: {ep} x {etp} ranks of each expert do not divide the {ranks} ranks of "
            f"tensor_parallel {groups.tensor} x context_parallel {groups.context} x data_parallel {groups.data}"
        )
    if etp != groups.tensor and groups.tensor > 1 and not strategy.sequence_parallel:
        yield f"strategy.expert_tensor_parallel: {etp} beside tensor_parallel {groups.tensor} needs sequence_parallel"
    if moe.moe_intermediate_size % etp:
        yield (
            f"strategy.expert_tensor_parallel: {etp} does not divide moe_intermediate_size {moe.moe_intermediate_size}"
        )
    if strategy.expert_nodes is not None and strategy.expert_nodes > moe.num_experts_per_tok:
        yield f"strategy.expert_nodes: {strategy.expert_nodes} exceeds the {moe.num_experts_per_tok} experts of a token"


def _states(scenario: TrainingScenario, groups: Groups) -> Iterator[str]:
    strategy = scenario.strategy
    if strategy.shard_group is not None and not strategy.zero_stage:
        yield "strategy.shard_group: needs zero_stage of 1 or more"
    elif groups.replicas % groups.shard:
        yield (
            f"strategy.shard_group: {groups.shard} does not divide the {groups.replicas} ranks of data_parallel {groups.data} "
            f"x context_parallel {groups.context}"
        )
    if strategy.state_split == "memory" and not strategy.zero_stage:
        yield "strategy.state_split: needs zero_stage of 1 or more"
    for name, default in (("reshard_after_forward", True), ("prefetch", 1), ("gather_unit", "layer")):
        if strategy.zero_stage < 3 and getattr(strategy, name) != default:
            yield f"strategy.{name}: needs zero_stage 3"
    if strategy.overlap_parameter_gather and strategy.zero_stage not in (1, 2):
        yield (
            f"strategy.overlap_parameter_gather: needs zero_stage 1 or 2, found {strategy.zero_stage} "
            f"({'its gathers always overlap' if strategy.zero_stage else 'nothing is gathered'})"
        )
    if strategy.recompute == "optimal" and (
        strategy.recompute_layers is not None or strategy.recompute_operators
    ):
        yield "strategy.recompute: optimal chooses layers and operators itself; leave out recompute_layers and _operators"
    for name in ("recompute_layers", "recompute_micro_batches"):
        if (
            getattr(strategy, name) is not None
            and strategy.recompute == "none"
            and not strategy.recompute_operators
        ):
            yield f"strategy.{name}: nothing is recomputed; set recompute"


def _overlaps(scenario: TrainingScenario, model: Model, groups: Groups) -> Iterator[str]:
    strategy = scenario.strategy
    if strategy.overlap_tensor_parallel == "chunked" and not strategy.sequence_parallel:
        yield "strategy.overlap_tensor_parallel: chunked needs sequence_parallel"
    if strategy.compression.gradients and groups.replicas == 1:
        yield "strategy.compression.gradients: one replica exchanges no gradients"
    if strategy.compression.boundaries and groups.pipeline == 1:
        yield "strategy.compression.boundaries: needs pipeline_parallel of 2 or more"
    if strategy.overlap_shared_experts and (
        model.moe is None or not model.moe.num_shared_experts or groups.expert == 1
    ):
        yield "strategy.overlap_shared_experts: needs a model with shared experts and expert_parallel of 2 or more"
    if strategy.overlap_expert_parallel and strategy.zero_stage >= 2:
        yield (
            f"strategy.overlap_expert_parallel: passes in pairs need whole gradients, which zero_stage {strategy.zero_stage} cuts"
        )
    if strategy.overlap_expert_parallel and (model.moe is None or groups.expert == 1):
        yield "strategy.overlap_expert_parallel: needs a model with experts and expert_parallel of 2 or more"


def _software(scenario: TrainingScenario) -> Iterator[str]:
    """Options that decide nothing beside others."""
    strategy = scenario.strategy
    given = strategy.model_fields_set
    if "fp8_recipe" in given and strategy.precision != "fp8":
        yield f"strategy.fp8_recipe: needs precision fp8, found {strategy.precision}"
    if strategy.attention_kernel != "latest" and not strategy.fused_attention:
        yield f"strategy.attention_kernel: {strategy.attention_kernel} needs fused_attention"
    if not strategy.wide_loss and not strategy.fused_loss:
        yield "strategy.wide_loss: a loss of several kernels keeps its own copies; needs fused_loss"


def _batch(scenario: TrainingScenario, model: Model, groups: Groups) -> Iterator[str]:
    strategy, workload = scenario.strategy, scenario.workload
    if strategy.batch_split is not None:
        yield from _uneven_batch(scenario, groups)
    elif workload.global_batch % (groups.data * strategy.micro_batch):
        yield (
            f"workload.global_batch: {workload.global_batch} is no multiple of "
            f"data_parallel {groups.data} x micro_batch {strategy.micro_batch}"
        )
    if model.position == "learned" and workload.sequence > model.max_position_embeddings:
        yield (
            f"workload.sequence: {workload.sequence} exceeds {model.name}'s {model.max_position_embeddings} learned positions"
        )


def _uneven_batch(scenario: TrainingScenario, groups: Groups) -> Iterator[str]:
    strategy, batch = scenario.strategy, scenario.workload.global_batch
    split = strategy.batch_split
    if groups.data == 1:
        yield "strategy.batch_split: one replica takes all micro-batches"
    if strategy.zero_stage >= 2:
        yield f"strategy.batch_split: zero_stage {strategy.zero_stage} reduces after every micro-batch, which needs equal counts"
    if batch % strategy.micro_batch:
        yield f"workload.global_batch: {batch} is no multiple of micro_batch {strategy.micro_batch}"
    elif split == "balanced":
        if batch // strategy.micro_batch < groups.data:
            yield f"strategy.batch_split: {batch // strategy.micro_batch} micro-batches for {groups.data} replicas"
    elif split is not None and len(split) != groups.data:
        yield f"strategy.batch_split: {len(split)} counts for {groups.data} replicas"
    elif split is not None and sum(split) * strategy.micro_batch != batch:
        yield (
            f"strategy.batch_split: {sum(split)} micro-batches of {strategy.micro_batch} are no batch of {batch} sequences"
        )


def _schedule(scenario: TrainingScenario, model: Model, groups: Groups, micro_batches: int) -> Iterator[str]:
    strategy = scenario.strategy
    stages, chunks = groups.pipeline, strategy.virtual_stages
    broken = schedule_faults(
        strategy.schedule, stages, micro_batches, chunks, pair=strategy.overlap_expert_parallel
    )
    yield from broken
    if broken:
        return
    kind = SCHEDULES[strategy.schedule]
    table = pipeline(strategy.schedule, stages, micro_batches, chunks, pair=strategy.overlap_expert_parallel)
    if not strategy.reshard_after_forward and in_flight(table.orders[0]) > 1:
        yield (
            "strategy.reshard_after_forward: false keeps parameters of one micro-batch at a time; where several are under way "
            "use zero_stage 2, which keeps them through the step"
        )
    places = kind.places(stages, chunks)
    layers = model.num_hidden_layers + model.num_encoder_layers
    split = strategy.layer_split
    if isinstance(split, tuple):
        if len(split) != places:
            yield f"strategy.layer_split: {len(split)} counts for {places} model chunks"
        elif sum(split) != layers:
            yield f"strategy.layer_split: counts add up to {sum(split)}; {model.name} has {layers} layers"
    elif places > layers:
        yield (
            f"strategy: pipeline_parallel {stages} x virtual_stages {chunks} exceeds {model.name}'s {layers} layers"
        )
