"""What the timeline of a training step says: metrics, where the time went, the ledger, assumptions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from simulator.cost import Breakdown, class_errors, peak_flops, relative_error
from simulator.engine import Timeline
from simulator.graph import Attention, Matmul, Shape, Work, build
from simulator.specs import OperatorClass, Span
from simulator.strategy import Bottleneck, Holding, MemoryUse, Metric, Outcome, Setup, constants_used
from simulator.training.lower import Lowered, StageWork

if TYPE_CHECKING:
    from simulator.training.step import Step

SOURCES = (
    "Narayanan et al. 2021, arXiv:2104.04473: pipeline schedules, scatter/gather of stage boundaries",
    "Korthikanti et al. 2022, arXiv:2205.05198: sequence parallelism, selective recomputation, activation bytes",
    "Rajbhandari et al. 2020, arXiv:1910.02054: ZeRO model states",
)


def outcome(step: Step, stages: list[StageWork], lowered: Lowered, timeline: Timeline) -> Outcome:
    """Return the answer of a step from its timeline."""
    plan, scenario, setup = step.plan, step.scenario, step.setup
    seconds = timeline.makespan
    busiest = max(range(len(stages)), key=lambda i: _busy(stages[i]))
    accounts = _accounts(stages[busiest], lowered, timeline, busiest, step)
    kernels = float(relative_error(accounts.classes, accounts.errors))
    composition = float(step.cost.calibration.error["step"])
    speed = math.hypot(kernels, composition)
    tokens = scenario.workload.global_batch * scenario.workload.sequence
    model_flops = _model_flops(step)
    peak = peak_flops(setup.hardware.device, plan.numerics.compute)
    hardware_flops = _executed_flops(step)
    ideal = (
        sum((c.forward_time.time + c.backward_time.time) for c in stages[busiest].chunks) * plan.micro_batches
    )
    memory = _memory(stages, lowered, timeline)
    bubble = accounts.bottlenecks.get("bubble", 0.0) / float(ideal)
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
        "peak_memory": Metric("peak memory of the fullest GPU", memory[0].peak, "bytes", 0.0, "lower"),
        "parameters": Metric("parameters", _total_parameters(setup), "count"),
    }
    if scenario.workload.tokens:
        run = scenario.workload.tokens / tokens * seconds
        metrics["run_time"] = Metric("time of the whole run", run, "seconds", speed, "lower")
    busy = float(_busy(stages[busiest])) / seconds
    return Outcome(
        "step_time", metrics, memory, accounts.classes, accounts.bottlenecks, seconds, _assumptions(step), SOURCES,
        timeline, plan.ranks, min(1.0, busy), {"stages": _stage_table(stages, lowered, timeline)}, accounts.errors, composition,
    )  # fmt: skip


def _busy(stage: StageWork) -> float:
    passes = sum(float(c.forward_time.time + c.backward_time.time) for c in stage.chunks)
    return passes * (len(stage.schedule) // (2 * len(stage.chunks))) + stage.optimizer


@dataclass(frozen=True, slots=True)
class _Accounts:
    """Seconds of one stage's step, by operator class and by what binds."""

    classes: dict[OperatorClass, float]
    bottlenecks: dict[Bottleneck, float]
    errors: dict[OperatorClass, float]
    """Relative standard error of each class's seconds."""


def _accounts(stage: StageWork, lowered: Lowered, timeline: Timeline, index: int, step: Step) -> _Accounts:
    """Divide the step of one stage: passes by what binds them, optimizer, gradient communication, bubble."""
    count = len(stage.schedule) // (2 * len(stage.chunks))
    total = Breakdown()
    for chunk in stage.chunks:
        total = total + (chunk.forward_time + chunk.backward_time) * count
    classes: dict[OperatorClass, float] = {name: float(value) for name, value in total.by_class.items()}
    binds: dict[Bottleneck, float] = {}
    links: Mapping[str, Bottleneck] = {
        "tensor link": _link_name(step.spans["tensor"], "tensor-parallel link"),
        "expert link": _link_name(step.spans["expert"], "expert-parallel link"),
    }
    for bound, value in total.by_bound.items():
        name: Bottleneck = links.get(bound, bound)  # type: ignore[arg-type]
        binds[name] = binds.get(name, 0.0) + float(value)
    classes["elementwise"] = classes.get("elementwise", 0.0) + stage.optimizer
    binds["memory"] = binds.get("memory", 0.0) + stage.optimizer
    end = float(timeline.end[lowered.last_backward[index]])
    start = float(timeline.start[lowered.optimizer[index]])
    finish = float(timeline.end[lowered.optimizer[index]])
    exposed = start - end
    if stage.gather is not None:
        exposed += stage.gather.time
        finish += stage.gather.time
    if exposed > 0:
        binds["network"] = binds.get("network", 0.0) + exposed
        classes["collective"] = classes.get("collective", 0.0) + exposed
    passes = float(total.time)
    bubble = end - passes + max(0.0, timeline.makespan - finish)
    if bubble > 1e-12 * timeline.makespan:
        binds["bubble"] = bubble
    # a bubble is as uncertain as the passes that others spend in it
    known = sum(classes.values()) or 1.0
    scale = timeline.makespan / known
    calibration = step.cost.calibration
    errors = {**calibration.error, **class_errors(total, calibration)}
    errors["host"] = float(calibration.training.eager_error or 0.0)
    return _Accounts({name: value * scale for name, value in classes.items()}, binds, errors)


def _link_name(span: Span, inside: Bottleneck) -> Bottleneck:
    return inside if all(tier.name == "node" for tier in span.tiers) else "network"


def _memory(stages: list[StageWork], lowered: Lowered, timeline: Timeline) -> tuple[MemoryUse, ...]:
    """The ledger of every stage's GPU, the fullest first."""
    rows = []
    for index, stage in enumerate(stages):
        peak = timeline.ledger.peak(lowered.memories[index])
        rows.append(
            MemoryUse(
                f"GPU of stage {index}" if len(stages) > 1 else "GPU", "hbm", stage.capacity, peak.bytes, peak.time,
                dict(peak.by_category), tuple(Holding(name, size) for name, size in peak.holders), f"stage {index}",
            )
        )  # fmt: skip
    return tuple(sorted(rows, key=lambda use: -use.peak))


def _stage_table(stages: list[StageWork], lowered: Lowered, timeline: Timeline) -> dict[str, list[float]]:
    return {
        "stage": [float(i) for i in range(len(stages))],
        "busy": [_busy(stage) for stage in stages],
        "forward": [sum(float(c.forward_time.time) for c in stage.chunks) for stage in stages],
        "backward": [sum(float(c.backward_time.time) for c in stage.chunks) for stage in stages],
        "peak_memory": [timeline.ledger.peak(memory).bytes for memory in lowered.memories],
    }


def _model_flops(step: Step) -> float:
    """Products that the model needs for a step on all ranks, none repeated [FLOP].

    Attention counts as if no pair were masked and its backward pass as twice the forward pass, the convention in which
    MFU is published (Chowdhery et al. 2022, appendix B).
    """

    def needed(work: Work) -> float:
        if isinstance(work, Attention):
            plain = replace(work, causal=False, backward=False)
            return float(plain.flops) * (2.0 if work.backward else 1.0)
        return float(work.flops) if isinstance(work, Matmul) else 0.0

    return _all_ranks(step, lambda works: sum(needed(work) for work in works), repeated=False)


def _executed_flops(step: Step) -> float:
    """Products that are run in a step on all ranks, repeated ones and only unmasked tiles counted [FLOP]."""
    return _all_ranks(
        step,
        lambda works: sum(float(w.flops) for w in works if isinstance(w, (Attention, Matmul))),
        repeated=True,
    )


def _all_ranks(step: Step, flops: Callable[[tuple[Work, ...]], float], *, repeated: bool) -> float:
    total = 0.0
    for block, count in step.graph.all_blocks:
        works = [*block.works("forward"), *block.works("input_gradient"), *block.works("weight_gradient")]
        if repeated and block in step.graph.blocks:
            works += [work for op in block.recomputed(step.strategy.recompute) for work in op.forward]
        total += flops(tuple(works)) * count
    return total * step.plan.tensor * step.plan.micro_batches * step.plan.data


def _total_parameters(setup: Setup) -> float:
    return float(build(setup.model, Shape(1, 1)).parameters)


def _assumptions(step: Step) -> tuple[str, ...]:
    strategy, plan = step.strategy, step.plan
    lines = [
        constants_used(step.cost.calibration),
        f"{plan.tensor} x {plan.pipeline} x {plan.data} ranks (tensor, pipeline, data) in this order over the nodes; "
        "equal ranks simulated once",
        "fused attention" if strategy.fused_attention else "attention as separate kernels, scores kept in memory",
        "passes issued as captured graphs" if strategy.cuda_graphs else "every operator issued by the CPU (eager)",
        "no data loading, no stragglers, no failures",
    ]  # fmt: skip
    if plan.tensor > 1:
        hidden = (
            "of the backward pass hide behind products, those of the forward pass do not"
            if strategy.overlap_tensor_parallel != "none"
            else "are exposed, forward and backward"
        )
        lines.append(f"tensor-parallel collectives {hidden}")
    if plan.data > 1:
        how = (
            "beside the last backward pass, by layer"
            if strategy.overlap_gradient_reduction
            else "after the last backward pass"
        )
        lines.append(f"gradients reduced {how}")
    if step.setup.model.moe:
        lines.append("experts equally loaded")
    return tuple(lines)
