"""One training step: plan, graph, costs, program, timeline, and what they say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from simulator.cost import Breakdown, adam_bytes, collective_traffic, peak_flops, relative_error
from simulator.engine import Timeline, execute
from simulator.graph import FORMAT_BYTES, Collective, Elementwise, ModelGraph, Shape, build
from simulator.specs import MemroofError, OperatorClass, Span, TrainingScenario
from simulator.strategy import Bottleneck, Holding, MemoryUse, Metric, Outcome, Setup
from simulator.training.lower import Lowered, Message, StageWork, lower
from simulator.training.memory import MASTER_BYTES, STATE_BYTES, ModelStates, bytes_per_parameter, graph_parameters, model_states
from simulator.training.passes import ChunkPass, PassPricer
from simulator.training.plan import Plan, make_plan
from simulator.training.schedule import SCHEDULES

MAXIMUM_TASKS = 4_000_000
"""Tasks of a step beyond which a run would take minutes; refused with a word on what to change."""
SOURCES = (
    "Narayanan et al. 2021, arXiv:2104.04473: pipeline schedules, scatter/gather of stage boundaries",
    "Korthikanti et al. 2022, arXiv:2205.05198: sequence parallelism, selective recomputation, activation bytes",
    "Rajbhandari et al. 2020, arXiv:1910.02054: ZeRO model states",
)


def simulate(setup: Setup, *, detail: bool = False) -> Outcome:
    """Simulate one optimizer step.

    Raises
    ------
    MemroofError
        For an illegal combination of degrees, schedule and formats.
    """
    scenario = setup.scenario
    if not isinstance(scenario, TrainingScenario):
        raise MemroofError(f"a training strategy cannot run a {scenario.kind} scenario")
    plan = make_plan(scenario, setup.model, setup.hardware)
    step = _Step(setup, scenario, plan)
    stages = [step.stage(index) for index in range(plan.pipeline)]
    tasks = sum(len(stage.schedule) for stage in stages) * 2
    if tasks > MAXIMUM_TASKS:
        raise MemroofError(
            f"{tasks:,} tasks are more than {MAXIMUM_TASKS:,}; a larger micro_batch or fewer virtual_stages makes fewer"
        )
    lowered = lower(scenario.name, stages, detail=detail)
    timeline = execute(lowered.program)
    return _outcome(step, stages, lowered, timeline)


@dataclass(frozen=True, slots=True)
class _Accounts:
    """Seconds of one stage's step, by operator class and by what binds."""

    classes: dict[OperatorClass, float]
    bottlenecks: dict[Bottleneck, float]


class _Step:
    """What all stages share: graph, spans, priced passes."""

    def __init__(self, setup: Setup, scenario: TrainingScenario, plan: Plan) -> None:
        self.setup, self.scenario, self.plan = setup, scenario, plan
        self.strategy, self.cost = scenario.strategy, setup.cost
        self.spans = plan.spans(setup.hardware)
        shape = Shape(plan.micro_batch, plan.sequence, target=plan.sequence if setup.model.num_encoder_layers else None)
        self.graph: ModelGraph = build(
            setup.model, shape, plan.partition, plan.numerics, fused_attention=self.strategy.fused_attention
        )
        self.pricer = PassPricer(self.graph, self.cost, self.spans, self.strategy.recompute)
        self._chunks: dict[tuple[tuple[int, ...], bool, bool], ChunkPass] = {}
        self._boundaries: dict[int, Message] = {}

    def stage(self, index: int) -> StageWork:
        """Return what a stage does and holds."""
        plan, strategy = self.plan, self.strategy
        places = [chunk * plan.pipeline + index for chunk in range(plan.chunks)]
        chunks = tuple(self._chunk(place) for place in places)
        states, parameters = self.states(index)
        reduction, gather = self._data_parallel(parameters, states)
        optimizer = self.cost.price(self._optimizer(self._updated(parameters)))
        schedule = SCHEDULES[strategy.schedule](index, plan.pipeline, plan.micro_batches, plan.chunks)
        context = float(self.cost.calibration.host.context_bytes or 0.0)
        resident = {
            "weights": float(states.weights), "gradients": float(states.gradients),
            "optimizer states": float(states.optimizer), "context": context,
        }  # fmt: skip
        boundary = self._boundary(index) if plan.pipeline > 1 else None
        return StageWork(
            schedule, chunks, boundary, reduction, strategy.overlap_gradient_reduction and bool(reduction),
            float(optimizer.time), gather, resident, self.setup.hardware.memory.capacity,
        )  # fmt: skip

    def states(self, index: int) -> tuple[ModelStates, tuple[float, float]]:
        """Return a stage's model states and its (all, expert) parameters."""
        plan = self.plan
        total = expert = 0.0
        for chunk in range(plan.chunks):
            place = chunk * plan.pipeline + index
            first, last = place == 0, place == len(plan.layers) - 1
            everything, experts = graph_parameters(self.graph, plan.layers[place], embedding=first, head=last)
            if last and not first and self.setup.model.tie_word_embeddings:
                everything += self._tied_table()
            total, expert = total + everything, expert + experts
        return model_states(self.strategy, total, plan.data, expert, plan.expert), (total, expert)

    def _tied_table(self) -> float:
        """A tied head on another stage than the embedding holds a copy of the word table."""
        model = self.setup.model
        return model.vocab_size * (model.embedding_size or model.hidden_size) / self.plan.tensor

    def _chunk(self, place: int) -> ChunkPass:
        plan = self.plan
        layers = plan.layers[place]
        first, last = place == 0, place == len(plan.layers) - 1
        kinds = tuple(self.graph.layers[layer] for layer in layers)
        key = (kinds, first, last)
        found = self._chunks.get(key)
        if found is None:
            found = self._chunks[key] = self.pricer.chunk(layers, embedding=first, head=last)
        return found

    def _boundary(self, stage: int) -> Message:
        plan = self.plan
        span = plan.boundary(self.setup.hardware, stage)
        size = plan.micro_batch * plan.sequence * self.setup.model.hidden_size * plan.numerics.activation_bytes
        scattered = self.strategy.sequence_parallel or self.strategy.optimize_pipeline_transfer
        sent = size / plan.tensor if scattered else size
        message = self._message(Collective("send", "pipeline", sent), span)
        if plan.tensor > 1 and scattered and not self.strategy.sequence_parallel:
            gather = self.cost.price(Collective("all-gather", "tensor", size), self.spans["tensor"])
            message = Message(message.size, message.bandwidth, message.latency + float(gather.time), message.rate)
        return message

    def _message(self, collective: Collective, span: Span) -> Message:
        """Return a collective as bytes over its outermost link, lasting what the cost model says."""
        cost = self.cost.price(collective, span)
        size = float(collective_traffic(collective.kind, span, float(collective.size))[-1])
        time, latency = float(cost.time), float(cost.latency)
        if time <= latency or size <= 0.0:
            return Message(0.0, span.tiers[-1].bandwidth, time, np.inf)
        rate = size / (time - latency)
        return Message(size, max(span.tiers[-1].bandwidth, rate), latency, rate)

    def _data_parallel(
        self, parameters: tuple[float, float], states: ModelStates
    ) -> tuple[tuple[Message, ...], Message | None]:
        """Return the gradient reductions of a stage and, for ZeRO-1, the gathering of its updated parameters."""
        plan, strategy = self.plan, self.strategy
        width = FORMAT_BYTES[strategy.gradient_precision]
        total, expert = parameters
        groups = [(total - expert, self.spans["data"])]
        if expert and plan.data > plan.expert:
            groups.append((expert, self.setup.hardware.span(plan.data // plan.expert, plan.tensor * plan.expert)))
        kind = "reduce-scatter" if strategy.zero_stage else "all-reduce"
        messages = tuple(
            self._message(Collective(kind, "data", elements * width), span)  # type: ignore[arg-type]
            for elements, span in groups
            if elements and span.size > 1
        )
        if not strategy.zero_stage or not messages:
            return messages, None
        return messages, self._message(Collective("all-gather", "data", states.weights), self.spans["data"])

    def _optimizer(self, elements: float) -> Elementwise:
        weight, gradient, _ = bytes_per_parameter(self.strategy)
        master = MASTER_BYTES if weight < MASTER_BYTES else 0.0
        moments = STATE_BYTES[self.strategy.optimizer] / 2.0
        read, written = adam_bytes(
            elements, gradient_bytes=gradient, weight_bytes=weight, state_bytes=moments, master_bytes=master
        )
        return Elementwise(read, written, 12.0 * elements)

    def _updated(self, parameters: tuple[float, float]) -> float:
        """Elements that one rank's optimizer updates."""
        total, expert = parameters
        if not self.strategy.zero_stage:
            return total
        return (total - expert) / self.plan.data + expert / max(1, self.plan.data // self.plan.expert)


def _outcome(step: _Step, stages: list[StageWork], lowered: Lowered, timeline: Timeline) -> Outcome:
    plan, scenario, setup = step.plan, step.scenario, step.setup
    seconds = timeline.makespan
    busiest = max(range(len(stages)), key=lambda i: _busy(stages[i]))
    accounts = _accounts(stages[busiest], lowered, timeline, busiest, step)
    speed = float(relative_error(accounts.classes, setup.cost.calibration.error))
    tokens = scenario.workload.global_batch * scenario.workload.sequence
    model_flops = _model_flops(step)
    peak = peak_flops(setup.hardware.device, plan.numerics.compute)
    utilization = model_flops / (seconds * plan.ranks * peak)
    hardware_flops = model_flops + _repeated_flops(step)
    ideal = sum((c.forward_time.time + c.backward_time.time) for c in stages[busiest].chunks) * plan.micro_batches
    metrics = {
        "step_time": Metric("step time", seconds, "seconds", speed, "lower"),
        "tokens_per_second": Metric("tokens per second", tokens / seconds, "1/s", speed, "higher"),
        "tokens_per_second_per_gpu": Metric("tokens per second and GPU", tokens / seconds / plan.ranks, "1/s", speed, "higher"),
        "model_flops_utilization": Metric("MFU", utilization, "fraction", speed, "higher"),
        "hardware_flops_utilization": Metric("HFU", utilization * hardware_flops / model_flops, "fraction", speed, "higher"),
        "model_flops_per_second_per_gpu": Metric("model FLOP/s per GPU", model_flops / seconds / plan.ranks, "FLOP/s", speed, "higher"),
        "pipeline_bubble": Metric("pipeline bubble", accounts.bottlenecks.get("bubble", 0.0) / float(ideal), "fraction", 0.0, "lower"),
        "peak_memory": Metric("peak memory of the fullest GPU", 0.0, "bytes", 0.0, "lower"),
        "parameters": Metric("parameters", _total_parameters(setup), "count"),
    }  # fmt: skip
    memory = _memory(stages, lowered, timeline)
    metrics["peak_memory"] = Metric("peak memory of the fullest GPU", memory[0].peak, "bytes", 0.0, "lower")
    if scenario.workload.tokens:
        run = scenario.workload.tokens / tokens * seconds
        metrics["run_time"] = Metric("time of the whole run", run, "seconds", speed, "lower")
    busy = float(_busy(stages[busiest])) / seconds
    return Outcome(
        "step_time", metrics, memory, accounts.classes, accounts.bottlenecks, seconds, _assumptions(step), SOURCES,
        timeline, plan.ranks, min(1.0, busy), {"stages": _stage_table(stages, lowered, timeline)},
    )  # fmt: skip


def _busy(stage: StageWork) -> float:
    passes = sum(float(c.forward_time.time + c.backward_time.time) for c in stage.chunks)
    return passes * (len(stage.schedule) // (2 * len(stage.chunks))) + stage.optimizer


def _accounts(stage: StageWork, lowered: Lowered, timeline: Timeline, index: int, step: _Step) -> _Accounts:
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
    return _Accounts({name: value * scale for name, value in classes.items()}, binds)


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


def _model_flops(step: _Step) -> float:
    """FLOPs that the model needs for a step, none repeated: products of forward and backward pass of all ranks."""
    return _whole(step, ("forward", "input_gradient", "weight_gradient"))


def _whole(step: _Step, passes: tuple[str, ...]) -> float:
    flops = 0.0
    for block, count in step.graph.all_blocks:
        for part in passes:
            for work in block.works(part):  # type: ignore[arg-type]
                if not isinstance(work, (Collective, Elementwise)):
                    flops += float(work.flops) * count
    return flops * step.plan.tensor * step.plan.micro_batches * step.plan.data


def _repeated_flops(step: _Step) -> float:
    flops = 0.0
    for block, count in zip(step.graph.blocks, step.graph.counts, strict=True):
        for operator in block.recomputed(step.strategy.recompute):
            flops += sum(float(w.flops) for w in operator.forward if not isinstance(w, (Collective, Elementwise))) * count
    return flops * step.plan.tensor * step.plan.micro_batches * step.plan.data


def _total_parameters(setup: Setup) -> float:
    return float(build(setup.model, Shape(1, 1)).parameters)


def _assumptions(step: _Step) -> tuple[str, ...]:
    strategy, plan = step.strategy, step.plan
    constants = step.cost.calibration
    lines = [
        f"constants of {constants.name} ({'class-wide defaults' if constants.name in ('gpu', 'tpu', 'npu', 'cpu') else 'fitted'}), clocks at boost",
        f"{plan.tensor} x {plan.pipeline} x {plan.data} ranks (tensor, pipeline, data) in this order over the nodes; equal ranks simulated once",
        "fused attention" if strategy.fused_attention else "attention as separate kernels, scores kept in memory",
        "no data loading, no stragglers, no failures",
    ]  # fmt: skip
    if plan.tensor > 1:
        lines.append("tensor-parallel collectives of the backward pass hide behind products, those of the forward pass do not")
    if plan.data > 1:
        how = "beside the last backward pass, by layer" if strategy.overlap_gradient_reduction else "after the last backward pass"
        lines.append(f"gradients reduced {how}")
    if step.setup.model.moe:
        lines.append("experts equally loaded")
    return tuple(lines)
