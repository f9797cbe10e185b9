"""The operators of a scenario's step with their times, one by one: what a measured trace is compared with."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np

from simulator.analysis.strategies import strategy
from simulator.graph import (
    Attention,
    Axis,
    Block,
    Collective,
    Elementwise,
    Matmul,
    ModelGraph,
    Shape,
    Work,
    build,
)
from simulator.graph.head import LOGIT_BYTES
from simulator.graph.work import CollectiveKind
from simulator.serving.plan import ReplicaPlan
from simulator.serving.plan import make_plan as serving_plan
from simulator.specs import MemroofError, OperatorClass, ServingScenario, Span, TrainingScenario
from simulator.strategy import Setup
from simulator.training.plan import make_plan as training_plan
from simulator.training.step import Step
from simulator.training.work import StageWork

Pass = Literal["forward", "again", "input-gradient", "weight-gradient", "step"]


@dataclass(frozen=True, slots=True)
class PredictedOperator:
    """One work of an operator: what it is, how often a step has it, and how long one takes when nothing else runs.

    Attributes
    ----------
    name : str
        Of the operator in the graph (``attention.qkv``).
    part : str
        ``forward``, ``again`` (recomputation), ``input-gradient``, ``weight-gradient``, or ``step`` (once a step).
    operator_class : str
        As the cost model prices it.
    work : Work
        What it asks of the device; in serving sized as in the mean iteration.
    count : float
        Times a step; in serving, times an iteration on average.
    time : float
        Seconds of one, the mean where sizes differ.
    """

    name: str
    part: Pass
    operator_class: OperatorClass
    work: Work
    count: float
    time: float

    @property
    def total(self) -> float:
        """Seconds a step [s]."""
        return self.count * self.time

    @property
    def shape(self) -> tuple[float, float, float] | None:
        """Dimensions (m, n, k) of a product."""
        if not isinstance(self.work, Matmul):
            return None
        return float(self.work.m), float(self.work.n), float(self.work.k)


def predicted_operators(setup: Setup, *, stage: int = 0) -> tuple[PredictedOperator, ...]:
    """Return the operators of one step of one GPU.

    Parameters
    ----------
    setup : Setup
        Of a training scenario: the step is an optimizer step. Of a serving scenario: the step is an iteration, averaged
        over the run that the scenario describes. Host time is not among the operators.
    stage : int
        Pipeline stage of a training scenario.

    Raises
    ------
    MemroofError
        For another kind of scenario, a stage that does not exist, or a replica that cannot run.
    """
    if isinstance(setup.scenario, TrainingScenario):
        return tuple(_training(setup, setup.scenario, stage))
    if isinstance(setup.scenario, ServingScenario):
        return tuple(_serving(setup))
    raise MemroofError(
        f"operators are listed for training and serving scenarios; {setup.scenario.name!r} is of kind {setup.scenario.kind!r}"
    )


def _training(setup: Setup, scenario: TrainingScenario, stage: int) -> Iterator[PredictedOperator]:
    plan = training_plan(scenario, setup.model, setup.hardware)
    if not 0 <= stage < plan.pipeline:
        raise MemroofError(f"stage {stage}: the scenario has stages 0 to {plan.pipeline - 1}")
    step = Step(setup, scenario, plan)
    for (block, again), repeats in _stage_blocks(step, stage):
        yield from _passes(step, block, again, repeats * plan.micro_batches)
    work = step.stage(stage)
    yield PredictedOperator("optimizer", "step", "elementwise", Elementwise(0.0, 0.0), 1.0, work.optimizer)
    yield from _replicas(work, plan.micro_batches)
    boundaries = step.boundaries()
    sent: Counter[tuple[int, int]] = Counter()
    for route in plan.table.routes:
        for (a, _), (b, _) in itertools.pairwise(route):
            sent.update([(a, b), (b, a)])
    for (sender, receiver), message in boundaries.items():
        if sender == stage:
            send = Collective("send", "pipeline", message.size)
            count = float(sent[sender, receiver] * plan.micro_batches // len(plan.table.routes))
            yield PredictedOperator("stage boundary", "step", "collective", send, count, message.time)


def _replicas(work: StageWork, micro_batches: int) -> Iterator[PredictedOperator]:
    """The communication of a stage with its replicas."""
    sharded = work.communication.reduce == "each"
    kind: CollectiveKind = "reduce-scatter" if work.communication.gather != "none" else "all-reduce"
    layers = [layer for chunk in work.messages for layer in chunk]
    reduced = [*work.reduction, *(message for layer in layers for message in layer.reduce)]
    for message in reduced:
        collective = Collective(kind, "data", message.size)
        count = float(micro_batches if sharded else 1)
        yield PredictedOperator("gradients", "step", "collective", collective, count, message.time)
    passes = 1 + work.communication.reshard if work.communication.gather == "each" else 1
    times = float(passes * micro_batches) if work.communication.gather == "each" else 1.0
    for message in [*work.gather, *(message for layer in layers for message in layer.gather)]:
        gather = Collective("all-gather", "data", message.size)
        yield PredictedOperator("parameters", "step", "collective", gather, times, message.time)


def _stage_blocks(step: Step, stage: int) -> Iterator[tuple[tuple[Block, frozenset[str]], int]]:
    """The distinct blocks of a stage with what each computes again, and how many of them it holds."""
    found: dict[tuple[int, frozenset[str]], tuple[Block, int]] = {}
    for place in step.plan.held(stage):
        for block, again in zip(step.blocks(place), step.again(place), strict=True):
            key = (id(block), again)
            found[key] = (block, found[key][1] + 1 if key in found else 1)
    for (_, again), (block, count) in found.items():
        yield (block, again), count


def _passes(step: Step, block: Block, again: frozenset[str], count: int) -> Iterator[PredictedOperator]:
    for operator in block.operators:
        parts: list[tuple[Pass, tuple[Work, ...]]] = [("forward", operator.forward)]
        if operator.name in again:
            parts.append(("again", operator.forward))
        parts += [("input-gradient", operator.input_gradient), ("weight-gradient", operator.weight_gradient)]
        for part, works in parts:
            yield from _priced(step.setup, operator.name, part, works, step.spans, count)


def _priced(
    setup: Setup, name: str, part: Pass, works: Iterable[Work], spans: Mapping[Axis, Span], count: float
) -> Iterator[PredictedOperator]:
    for work in works:
        span = spans.get(work.axis) if isinstance(work, Collective) else None
        cost = setup.cost.price(work, span)
        if float(cost.time) > 0.0:
            yield PredictedOperator(name, part, cost.operator_class, work, float(count), float(cost.time))


# --- serving --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Run:
    """Iterations of a run as columns: how many alike, tokens of prompts, prompts, decoding sequences."""

    steps: Any
    prompt_tokens: Any
    prompts: Any
    decoding: Any
    context: float
    """Mean positions that a decoding sequence has cached."""
    prompt: float
    """Mean length of a prompt."""


def _serving(setup: Setup) -> Iterator[PredictedOperator]:
    plan = serving_plan(setup)
    run = _iterations(setup)
    total = float(run.steps.sum())
    for phase, shared in (("prefill", True), ("prefill", False), ("decode", False)):
        tokens = run.prompt_tokens + run.decoding if shared else _alone(run, phase)
        chosen = tokens > 0
        for name, work, count in _linear(plan, phase, shared, tokens[chosen]):
            yield from _averaged(setup, plan, name, work, count, run.steps[chosen], total)
    for name, attention, count, steps in _attention(plan, run):
        yield from _averaged(setup, plan, name, attention, count, steps, total)
    sampled = run.decoding + run.prompts
    for name, work in _head(plan, sampled):
        yield from _averaged(setup, plan, name, work, 1, run.steps, total)


def _iterations(setup: Setup) -> _Run:
    outcome = strategy("serving").simulate(setup)
    log, requests = outcome.tables.get("iterations"), outcome.tables.get("requests")
    if log is None or requests is None:
        raise MemroofError(f"{setup.scenario.name}: it does not fit, so no iteration runs")
    prompt, output = (np.asarray(requests[name], float) for name in ("prompt", "output"))
    steps, prefill_tokens, prompts, decoding = (
        np.asarray(log[name], float) for name in ("steps", "prefill_tokens", "prefilling", "decoding")
    )
    busy = decoding + prompts > 0
    # a sequence is in the batch for each of its outputs: longer ones count more often
    context = float(((prompt + output / 2.0) * output).sum() / output.sum())
    steps, prefill_tokens, prompts, decoding = (
        column[busy] for column in (steps, prefill_tokens, prompts, decoding)
    )
    return _Run(steps, prefill_tokens, prompts, decoding, context, float(prompt.mean()))


def _alone(run: _Run, phase: str) -> Any:
    return run.prompt_tokens if phase == "prefill" else run.decoding


def _graph(plan: ReplicaPlan, shape: Shape) -> ModelGraph:
    pricer = plan.pricer
    return build(pricer.model, shape, pricer.partition, pricer.numerics)


def _names(plan: ReplicaPlan, phase: Any) -> set[str]:
    graph = _graph(plan, Shape(1, 1, 1, phase))
    return {operator.name for block in (graph.embedding, *graph.blocks) for operator in block.operators}


def _linear(plan: ReplicaPlan, phase: Any, shared: bool, tokens: Any) -> Iterator[tuple[str, Work, int]]:
    """Works of embedding and layers that depend on the count of tokens alone; of both phases (``shared``) or of one."""
    if not len(tokens):
        return
    both = _names(plan, "prefill") & _names(plan, "decode")
    shape = Shape(1, tokens, 0, phase) if phase == "prefill" else Shape(tokens, 1, 0, phase)
    for block, count in _graph(plan, shape).all_blocks[:-1]:
        for operator in block.operators:
            if (operator.name in both) == shared:
                works = (work for work in operator.forward if not isinstance(work, Attention))
                yield from ((operator.name, work, count) for work in works)


def _attention(plan: ReplicaPlan, run: _Run) -> Iterator[tuple[str, Attention, int, Any]]:
    """Attention of prompt pieces, which come after half of the rest of their prompt on average, and of decodes."""
    pieces, decodes = run.prompts > 0, run.decoding > 0
    queries = run.prompt_tokens[pieces] / np.maximum(run.prompts[pieces], 1.0)
    before = np.maximum(run.prompt - queries, 0.0) / 2.0
    shapes = (
        (pieces, Shape(run.prompts[pieces], queries, before, "prefill")),
        (decodes, Shape(run.decoding[decodes], 1, run.context, "decode")),
    )
    for chosen, shape in shapes:
        if chosen.any():
            graph = _graph(plan, shape)
            for block, count in zip(graph.blocks, graph.counts, strict=True):
                for operator in block.operators:
                    for work in operator.forward:
                        if isinstance(work, Attention):
                            yield operator.name, work, count, run.steps[chosen]


def _head(plan: ReplicaPlan, sampled: Any) -> Iterator[tuple[str, Work]]:
    for operator in _graph(plan, Shape(sampled, 1, 0, "prefill")).head.operators:
        if operator.name != "loss":
            yield from ((operator.name, _widened(plan, work)) for work in operator.forward)
    logits = sampled * plan.pricer.model.vocab_size * LOGIT_BYTES
    yield "logits", Collective("all-gather", "tensor", logits)
    yield "sampling", Elementwise(2.0 * logits, logits)


def _widened(plan: ReplicaPlan, work: Work) -> Work:
    """A product of the head is in 16 bits: engines quantise layers alone."""
    if isinstance(work, Matmul) and plan.pricer.numerics.weight_bytes < 2.0:
        return replace(work, format="bf16", right_bytes=2.0)
    return work


def _averaged(
    setup: Setup, plan: ReplicaPlan, name: str, work: Work, count: int, steps: Any, total: float
) -> Iterator[PredictedOperator]:
    """One entry for all iterations: the mean time over those that have the work, and a work of mean size."""
    if isinstance(work, Collective):
        if work.axis != "tensor" or plan.pricer.span.size == 1:
            return
        work = replace(work, kernel=plan.strategy.all_reduce)
    cost = setup.cost.price(work, plan.pricer.span if isinstance(work, Collective) else None)
    weight = float(steps.sum())
    time = float((np.broadcast_to(np.asarray(cost.time, float), steps.shape) * steps).sum()) / weight
    if time > 0.0:
        yield PredictedOperator(
            name, "forward", cost.operator_class, _mean(work, steps), count * weight / total, time
        )


def _mean(work: Work, steps: Any) -> Work:
    """The same work with the mean of every size that is an array."""
    means: dict[str, Any] = {
        field.name: float((value * steps).sum() / steps.sum())
        for field in fields(work)
        if isinstance(value := getattr(work, field.name), np.ndarray) and value.ndim
    }
    return replace(work, **means)
