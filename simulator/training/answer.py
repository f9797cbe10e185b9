"""What the timeline of a training step says: metrics, where the time went, the ledger, assumptions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from simulator.cost import Breakdown, class_errors, peak_flops, relative_error
from simulator.engine import Timeline
from simulator.graph import Attention, Matmul, Shape, Work, build, dropped_share
from simulator.specs import Operations, OperatorClass, Span, TrainingStrategy
from simulator.strategy import Bottleneck, Holding, MemoryUse, Metric, Outcome, Setup, constants_used
from simulator.training.lower import Lowered, Replica
from simulator.training.passes import EXCHANGE
from simulator.training.reliability import reliability
from simulator.training.replay import stage_allocation
from simulator.training.replica_link import GATHER, REDUCTION
from simulator.training.states import checkpoint_bytes
from simulator.training.work import StageWork

if TYPE_CHECKING:
    from simulator.training.plan import Plan
    from simulator.training.step import Step

ALLOCATED_ERROR, RESERVED_ERROR = 0.01, 0.05
"""Relative standard errors of peaks: what measured ones have that no item explains. Allocated: 33 steps on eight B200, all within
1 %; reserved: 13 steps on H100 and H200, 4.9 % in the mean. Nothing is added for it."""
SOURCES = (
    "Narayanan et al. 2021, arXiv:2104.04473: pipeline schedules, scatter/gather of stage boundaries",
    "Korthikanti et al. 2022, arXiv:2205.05198: sequence parallelism, selective recomputation, activation bytes",
    "Rajbhandari et al. 2020, arXiv:1910.02054: ZeRO model states",
)


def outcome(step: Step, replicas: Sequence[Replica], lowered: Lowered, timeline: Timeline) -> Outcome:
    """Return the answer of a step from its timeline."""
    plan, scenario, setup = step.plan, step.scenario, step.setup
    stages = [stage for replica in replicas for stage in replica.stages]
    labels = [
        f"{replica.label} stage {index}".strip()
        for replica in replicas
        for index in range(len(replica.stages))
    ]
    seconds = timeline.makespan
    works = [_passes(stage) for stage in stages]
    busiest = max(range(len(stages)), key=lambda i: float(works[i].time) + stages[i].optimizer)
    accounts = _accounts(stages[busiest], works[busiest], lowered, timeline, busiest, step)
    kernels = float(relative_error(accounts.classes, accounts.errors))
    composition = float(step.cost.calibration.error["step"])
    speed = math.hypot(kernels, composition)
    tokens = scenario.workload.global_batch * scenario.workload.sequence
    model_flops = _model_flops(step)
    peak = _mean_peak(step)
    hardware_flops = _model_flops(step, repeated=True)
    ideal = float(works[busiest].time)
    memory = _memory(stages, labels, lowered, timeline)
    bubble = accounts.bottlenecks.get("bubble", 0.0) / ideal
    rate, needed = tokens / seconds, model_flops / seconds / plan.ranks

    def timed(label: str, value: float, dimension: str, better: Literal["lower", "higher"]) -> Metric:
        return Metric(label, value, dimension, speed, better)

    metrics = {
        "step_time": timed("step time", seconds, "seconds", "lower"),
        "tokens_per_second": timed("tokens per second", rate, "1/s", "higher"),
        "tokens_per_second_per_gpu": timed("tokens per second and GPU", rate / plan.ranks, "1/s", "higher"),
        "model_flops_utilization": timed("MFU", needed / peak, "fraction", "higher"),
        "hardware_flops_utilization": timed(
            "HFU", needed / peak * hardware_flops / model_flops, "fraction", "higher"
        ),
        "model_flops_per_second_per_gpu": timed("model FLOP/s per GPU", needed, "FLOP/s", "higher"),
        "pipeline_bubble": Metric("pipeline bubble over ideal time", bubble, "fraction", 0.0, "lower"),
        "peak_memory": Metric(
            "peak memory of the fullest GPU", memory[0].peak, "bytes", ALLOCATED_ERROR, "lower"
        ),
        "parameters": Metric("parameters", _total_parameters(setup), "count"),
    }
    if scenario.workload.tokens:
        run = scenario.workload.tokens / tokens * seconds
        metrics["run_time"] = Metric("time of the whole run", run, "seconds", speed, "lower")
    if scenario.strategy.expert_capacity is not None and setup.model.moe is not None:
        moe, met = setup.model.moe, plan.micro_batch * plan.sequence / plan.context * plan.expert
        dropped = dropped_share(
            met, moe.num_experts, moe.num_experts_per_tok, scenario.strategy.expert_capacity
        )
        metrics["dropped_share"] = Metric(
            "copies of tokens dropped", float(dropped), "fraction", 0.0, "lower"
        )
    if scenario.operations is not None:
        copies = len(plan.table.routes)
        size = checkpoint_bytes(
            scenario.strategy, [step.elements(stage) for stage in range(plan.pipeline // copies)], plan.tensor,
            plan.groups.expert * plan.groups.expert_tensor,
        )  # fmt: skip
        metrics |= reliability(
            seconds, plan.ranks, float(size), scenario.operations, ranks_per_node=-(-setup.hardware.size // setup.hardware.nodes),
            samples=scenario.workload.global_batch, tokens_per_step=tokens, tokens=scenario.workload.tokens, error=speed,
        )  # fmt: skip
    busy = (float(works[busiest].time) + stages[busiest].optimizer) / seconds
    tables = {"stages": _stage_table(stages, works, lowered, timeline)}
    return Outcome(
        "step_time", metrics, memory, accounts.classes, accounts.bottlenecks, seconds, _assumptions(step), SOURCES,
        timeline, plan.ranks, min(1.0, busy), tables, accounts.errors, composition,
        _reserved(stages, lowered, timeline),
    )  # fmt: skip


def _reserved(
    stages: list[StageWork], lowered: Lowered, timeline: Timeline
) -> Callable[[], Mapping[str, Metric]]:
    """Return how to find what PyTorch's allocator makes of the fullest stage's tensors."""
    peaks = [timeline.ledger.peak(memory).bytes for memory in lowered.memories]
    stage = stages[int(np.argmax(peaks))]

    def replayed() -> dict[str, Metric]:
        found = stage_allocation(stage)
        lost = found.reserved - found.allocated
        return {
            "reserved_memory": Metric("by the allocator", found.reserved, "bytes", RESERVED_ERROR, "lower"),
            "fragmentation": Metric("of it rounding and fragmentation", lost, "bytes", 0.0, "lower"),
        }

    return replayed


def _passes(stage: StageWork) -> Breakdown:
    """Return all passes of a stage, one after the other."""
    counts = Counter((row.chunk, row.part, stage.repeats(row.micro_batch)) for row in stage.schedule)
    total = Breakdown()
    for (chunk, part, repeats), count in counts.items():
        total = total + (stage.chunks if repeats else stage.kept)[chunk].times[part] * count
    return total


@dataclass(frozen=True, slots=True)
class _Accounts:
    """Seconds of one stage's step, by operator class and by what binds."""

    classes: dict[OperatorClass, float]
    bottlenecks: dict[Bottleneck, float]
    errors: dict[OperatorClass, float]
    """Relative standard error of each class's seconds."""


def _accounts(
    stage: StageWork, total: Breakdown, lowered: Lowered, timeline: Timeline, index: int, step: Step
) -> _Accounts:
    """Divide the step of one stage: passes by what binds them, optimizer, communication with replicas, bubble."""
    classes: dict[OperatorClass, float] = {name: float(value) for name, value in total.by_class.items()}
    binds: dict[Bottleneck, float] = {}
    for bound, value in total.by_bound.items():
        name = _bottleneck(bound, step)
        binds[name] = binds.get(name, 0.0) + float(value)
    waits = _waits(lowered, timeline, index)
    tasks = timeline.stream == lowered.streams[index]
    busy = float((timeline.end - timeline.start)[tasks].sum())
    updates = float(
        (timeline.end - timeline.start)[tasks & (timeline.tag == _tag(lowered, "optimizer"))].sum()
    )
    # what passes take beyond their kernels: units that collectives beside them occupy; less where pairs hide exchanges
    beside = busy - updates - float(total.time)
    network = waits.network + (beside if beside > 1e-9 * busy else 0.0)
    if beside < -1e-9 * busy:
        exchange = _bottleneck(EXCHANGE, step)
        binds[exchange] = max(0.0, binds.get(exchange, 0.0) + beside)
        classes["collective"] = max(0.0, classes.get("collective", 0.0) + beside)
    classes["elementwise"] = classes.get("elementwise", 0.0) + updates
    binds["memory"] = binds.get("memory", 0.0) + updates
    if network > 0:
        binds["network"] = binds.get("network", 0.0) + network
        classes["collective"] = classes.get("collective", 0.0) + network
    if waits.bubble > 1e-12 * timeline.makespan:
        binds["bubble"] = waits.bubble
    # a bubble is as uncertain as the passes that others spend in it
    known = sum(classes.values()) or 1.0
    scale = timeline.makespan / known
    calibration = step.cost.calibration
    errors = {**calibration.error, **class_errors(total, calibration)}
    errors["host"] = float(calibration.training.eager_error or 0.0)
    return _Accounts({name: value * scale for name, value in classes.items()}, binds, errors)


@dataclass(frozen=True, slots=True)
class _Waits:
    """Seconds in which a stage computes nothing: for its replicas, and for other stages."""

    network: float
    bubble: float


def _waits(lowered: Lowered, timeline: Timeline, index: int) -> _Waits:
    """Divide a stage's gaps by what ended them."""
    tasks = np.flatnonzero(timeline.stream == lowered.streams[index])
    start, end = timeline.start[tasks], timeline.end[tasks]
    gaps = start - np.concatenate([[0.0], end[:-1]])
    causes = timeline.cause[tasks]
    replicas = np.isin(timeline.tag, [_tag(lowered, GATHER), _tag(lowered, REDUCTION)])
    network = float(gaps[(causes >= 0) & replicas[causes]].sum())
    own = lowered.gathers[index]
    finish = max(float(end[-1]), *(float(timeline.end[task]) for task in own)) if own else float(end[-1])
    network += finish - float(end[-1])
    bubble = float(gaps.sum()) - (network - (finish - float(end[-1]))) + timeline.makespan - finish
    return _Waits(network, bubble)


def _tag(lowered: Lowered, name: str) -> int:
    tags = lowered.program.tags
    return tags.index(name) if name in tags else -1


def _bottleneck(bound: str, step: Step) -> Bottleneck:
    """Return what a bound of operators means on this machine: links are a node's fabric or the network."""
    inside: Mapping[str, Bottleneck] = {"expert": "expert-parallel link", "context": "context-parallel link"}
    for axis, span in step.spans.items():
        if bound == f"{axis} link":
            return _link_name(span, inside.get(axis, "tensor-parallel link"))
    known: tuple[Bottleneck, ...] = get_args(Bottleneck)
    return next(name for name in known if name == bound)


def _link_name(span: Span, inside: Bottleneck) -> Bottleneck:
    return inside if all(tier.name == "node" for tier in span.tiers) else "network"


def _memory(
    stages: list[StageWork], labels: list[str], lowered: Lowered, timeline: Timeline
) -> tuple[MemoryUse, ...]:
    """The ledger of every stage's GPU, the fullest first."""
    rows = []
    for index, stage in enumerate(stages):
        peak = timeline.ledger.peak(lowered.memories[index])
        rows.append(
            MemoryUse(
                f"GPU of {labels[index]}" if len(stages) > 1 else "GPU", "hbm", stage.capacity, peak.bytes, peak.time,
                dict(peak.by_category), tuple(Holding(name, size) for name, size in peak.holders), labels[index],
            )
        )  # fmt: skip
    return tuple(sorted(rows, key=lambda use: -use.peak))


def _stage_table(
    stages: list[StageWork], works: list[Breakdown], lowered: Lowered, timeline: Timeline
) -> dict[str, list[float]]:
    def seconds(stage: StageWork, *, forward: bool) -> float:
        return sum(
            c.seconds(part) for c in stage.chunks for part in c.times if (part == "forward") == forward
        )

    return {
        "stage": [float(i) for i in range(len(stages))],
        "busy": [float(work.time) + stage.optimizer for work, stage in zip(works, stages, strict=True)],
        "forward": [seconds(stage, forward=True) for stage in stages],
        "backward": [seconds(stage, forward=False) for stage in stages],
        "peak_memory": [timeline.ledger.peak(memory).bytes for memory in lowered.memories],
    }


def _model_flops(step: Step, *, repeated: bool = False) -> float:
    """Products that the model needs for a step on all ranks, with or without those that are repeated [FLOP].

    Attention counts as if no pair were masked and its backward pass as twice the forward pass, the convention in which
    MFU and HFU are published (Chowdhery et al. 2022, appendix B). Padded slots of experts do not count.
    """
    padded = step.graph.blocks if step.strategy.expert_capacity is None else step.unpadded.blocks
    plain = {id(block): other for block, other in zip(step.graph.blocks, padded, strict=True)}
    counts = Counter(
        (id(block), again)
        for place in range(step.plan.places)
        for block, again in zip(step.blocks(place), step.again(place), strict=True)
    )
    blocks = {id(block): plain.get(id(block), block) for block, _ in step.graph.all_blocks}
    total = 0.0
    for (key, again), count in counts.items():
        block = blocks[key]
        works = [*block.works("forward"), *block.works("input_gradient"), *block.works("weight_gradient")]
        if repeated:
            works += [work for op in block.operators if op.name in again for work in op.forward]
        total += count * sum(_needed(work) for work in works)
    plan = step.plan
    return total * plan.tensor * plan.context * plan.all_micro_batches


def _needed(work: Work) -> float:
    if isinstance(work, Attention):
        plain = replace(work, causal=False, backward=False)
        return float(plain.flops) * (2.0 if work.backward else 1.0)
    return float(work.flops) if isinstance(work, Matmul) else 0.0


def _mean_peak(step: Step) -> float:
    """Peak of products of one accelerator, the mean where they differ [FLOP/s]."""
    hardware, compute = step.setup.hardware, step.plan.numerics.compute
    counts = Counter(
        {part.machine.ranks[0].device.name: len(part.machine.ranks) * part.nodes for part in hardware.parts}
        if step.plan.ranks == hardware.size
        else Counter(hardware.device_of(rank).name for rank in range(step.plan.ranks))
        if hardware.others
        else {hardware.device.name: 1}
    )
    peaks = {device.name: float(peak_flops(device, compute)) for device in hardware.devices}
    return sum(peaks[name] * count for name, count in counts.items()) / counts.total()


def _total_parameters(setup: Setup) -> float:
    return float(build(setup.model, Shape(1, 1)).parameters)


_TENSOR_OVERLAP = {
    "none": "are exposed, forward and backward",
    "backward": "of the backward pass hide behind products, those of the forward pass do not",
    "chunked": "run in chunks beside their own products",
}
_REDUCED = {
    "end": "after the last backward pass", "last": "beside the last backward pass, by layer",
    "each": "beside every backward pass, by layer",
}  # fmt: skip
_GATHERED = {
    "end": "after the optimizer step", "next": "beside the next forward pass", "each": "before each layer",
    "none": "never",
}  # fmt: skip


def _issued(strategy: TrainingStrategy) -> str:
    if strategy.cuda_graphs:
        return "passes issued as captured graphs"
    modules = " from Transformer Engine's modules" if strategy.transformer_engine else ""
    return f"every operator issued by the CPU (eager){modules}"


def _ranks(plan: Plan) -> str:
    """Degrees in the order of ranks, neighbours first."""
    degrees = {"tensor": plan.tensor, "context": plan.context, "data": plan.data, "pipeline": plan.pipeline}
    if plan.groups.stages_inside:
        degrees["data"] = degrees.pop("data")
    if plan.context == 1:
        del degrees["context"]
    return f"{' x '.join(map(str, degrees.values()))} ranks ({', '.join(degrees)})"


def _operations(operations: Operations) -> str:
    """What is taken into account of a long run."""
    given = {
        "failures": operations.mtbf_per_gpu or operations.mtbf_per_node, "checkpoints": operations.checkpoints,
        "planned stops": operations.planned_stops, "slow ranks": operations.straggler_spread,
        "data loading": operations.loading, "evaluation": operations.evaluation_share,
    }  # fmt: skip
    counted = [name for name, value in given.items() if value]
    left = [name for name, value in given.items() if not value]
    return f"of a long run: {', '.join(counted) or 'nothing'}" + (
        f"; no {', no '.join(left)}" if left else ""
    )


def _assumptions(step: Step) -> tuple[str, ...]:
    strategy, plan = step.strategy, step.plan
    lines = [
        *dict.fromkeys(
            constants_used(cost.calibration) for cost in (step.setup.cost, *step.setup.others.values())
        ),
        f"{_ranks(plan)} in this order over the nodes; equal ranks simulated once",
        "fused attention" if strategy.fused_attention else "attention as separate kernels, scores kept in memory",
        _issued(strategy),
    ]  # fmt: skip
    if step.scenario.operations is None:
        lines.append("no data loading, no stragglers, no failures")
    else:
        lines.append(_operations(step.scenario.operations))
    if plan.tensor > 1:
        lines.append(f"tensor-parallel collectives {_TENSOR_OVERLAP[strategy.overlap_tensor_parallel]}")
    if plan.groups.replicas > 1:
        communication = step.messenger.communication
        lines.append(f"gradients reduced {_REDUCED[communication.reduce]}")
        if strategy.zero_stage:
            lines.append(
                f"states cut over {plan.groups.shard} ranks; parameters gathered {_GATHERED[communication.gather]}"
            )
    if step.setup.model.moe:
        lines.append("experts equally loaded")
    return tuple(lines)
