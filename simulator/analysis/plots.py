"""Figures of a result: what to draw is taken from the answer, how it is drawn stands in :mod:`.figures`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.analysis import figures
from simulator.analysis.figures import RooflinePoint
from simulator.cost import peak_flops
from simulator.graph import Collective, ModelGraph, Numerics, Partition, Shape, build
from simulator.specs import MemroofError, ServingScenario, TrainingScenario, ZigzagScenario
from simulator.units import format_quantity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from simulator.analysis.result import Result
    from simulator.engine import Timeline
    from simulator.strategy import Setup


CLOSE_TASKS = 60
"""Tasks of the busiest stream in a closer look at a timeline."""


def plot_footprint(result: Result, memory: str | None = None) -> Figure:
    """Draw the bytes resident over time, by category; the fullest memory if none is named.

    Raises
    ------
    MemroofError
        If the strategy kept no timeline, or the timeline has no such memory.
    """
    timeline = _timeline(result)
    memories = {each.name: each for each in timeline.ledger.memories.values()}
    if not memories or (memory is not None and memory not in memories):
        known = ", ".join(memories) or "none"
        raise MemroofError(f"{result.name}: no memory {memory!r} in the timeline; known: {known}")
    name = memory or max(
        memories, key=lambda each: timeline.ledger.peak(each).bytes / (memories[each].capacity or 1.0)
    )
    times, by_category = timeline.ledger.resident(name)
    return figures.footprint_figure(
        times,
        by_category,
        capacity=memories[name].capacity,
        end=timeline.makespan,
        title=f"bytes resident in {name}",
    )


def plot_timeline(result: Result, window: tuple[float, float] | None = None) -> Figure:
    """Draw what ran where over a window [s], the whole run if absent; MemroofError if no timeline was kept."""
    when = f" from {format_quantity(window[0], 'seconds')}" if window else ""
    return figures.timeline_figure(
        _timeline(result), window=window, title=f"{result.name}: what ran when{when}"
    )


def close_window(timeline: Timeline) -> tuple[float, float] | None:
    """Return a window [s] half-way through a run that holds some sixty tasks of the busiest stream; None for short runs."""
    on_streams = timeline.stream[timeline.stream >= 0]
    most = int(np.bincount(on_streams).max()) if len(on_streams) else 0
    if most <= 2 * CLOSE_TASKS:
        return None
    length = timeline.makespan * CLOSE_TASKS / most
    start = (timeline.makespan - length) / 2.0
    return start, start + length


def plot_bottlenecks(result: Result) -> Figure:
    """Draw what the time is lost to."""
    shares: dict[str, float] = dict(result.shares.items())
    return figures.bottleneck_figure(shares, title=f"{result.name}: time by what binds it")


def plot_sensitivity(result: Result) -> Figure:
    """Draw the effect of 10 % more of each hardware figure on the headline."""
    effects = [(row.figure, row.effect) for row in result.sensitivity()]
    label = f"change of {result.headline.label} for 10 % more [%]"
    return figures.effect_figure(
        effects, label=label, title=f"{result.name}: what more hardware would change"
    )


def has_roofline(result: Result) -> bool:
    """Whether one model graph stands for what runs, so that its operators can be drawn."""
    return isinstance(result.setup.scenario, (TrainingScenario, ServingScenario, ZigzagScenario))


def plot_roofline(result: Result) -> Figure:
    """Draw the operators of one device's share under its roof; MemroofError where :func:`has_roofline` is false."""
    device = result.setup.hardware.devices[0]
    graph, passes = _graph(result)
    peak = float(peak_flops(device, graph.numerics.compute))
    bandwidth = next(iter(device.memory.values())).bandwidth
    title = f"{result.name}: operators on {device.name}, {graph.numerics.compute}, {' and '.join(passes)}"
    return figures.roofline_figure(
        roofline_points(result.setup, graph, passes), peak=peak, bandwidth=bandwidth, title=title
    )


def roofline_points(
    setup: Setup, graph: ModelGraph, passes: Mapping[str, tuple[str, ...]]
) -> list[RooflinePoint]:
    """Return the operators of all blocks as points, equal names together, communication left out.

    Parameters
    ----------
    setup : Setup
        Whose cost model prices them.
    graph : ModelGraph
        One device's share.
    passes : mapping of str to tuple of str
        Name of a phase to the parts of its operators: ``{"forward": ("forward",)}``.

    Returns
    -------
    list of RooflinePoint
        FLOP, bytes and seconds of one pass through the model.
    """
    sums: dict[str, list[float]] = {}
    for block, count in graph.all_blocks:
        for operator in block.operators:
            for phase, parts in passes.items():
                name = operator.name if len(passes) == 1 else f"{operator.name}, {phase}"
                for work in (work for part in parts for work in getattr(operator, part)):
                    if not isinstance(work, Collective):
                        total = sums.setdefault(name, [0.0, 0.0, 0.0])
                        total[0] += float(work.flops) * count
                        total[1] += float(work.bytes) * count
                        total[2] += float(setup.cost.price(work).time) * count
    return [RooflinePoint(name, flops, size, time) for name, (flops, size, time) in sums.items()]


def _timeline(result: Result) -> Timeline:
    if result.timeline is None:
        raise MemroofError(f"{result.name}: this strategy keeps no timeline")
    return result.timeline


def _graph(result: Result) -> tuple[ModelGraph, dict[str, tuple[str, ...]]]:
    """Return one device's share of the model in the phase that takes the time, and the passes through it."""
    scenario, model = result.setup.scenario, result.setup.model
    if isinstance(scenario, TrainingScenario):
        plan = scenario.strategy
        sequence = scenario.workload.sequence
        shape = Shape(plan.micro_batch, sequence, target=sequence if model.num_encoder_layers else None)
        partition = Partition(plan.tensor_parallel, plan.expert_parallel, plan.sequence_parallel)
        graph = build(
            model, shape, partition, Numerics.of(plan.precision), fused_attention=plan.fused_attention
        )
        return graph, {"forward": ("forward",), "backward": ("input_gradient", "weight_gradient")}
    if not isinstance(scenario, (ServingScenario, ZigzagScenario)):
        raise MemroofError(f"{result.name}: no roofline is drawn of this method")
    return _decode_graph(result, scenario), {"decode": ("forward",)}


def _decode_graph(result: Result, scenario: ServingScenario | ZigzagScenario) -> ModelGraph:
    strategy = scenario.strategy
    numerics = Numerics.of(strategy.precision, strategy.weight_precision, strategy.kv_precision)
    if isinstance(scenario, ZigzagScenario):
        cached = scenario.workload.prompt + scenario.workload.output // 2
        return build(
            result.setup.model, Shape(scenario.workload.batch, 1, cached, "decode"), Partition(), numerics
        )
    values: dict[str, Any] = result.values
    running = next((values[key].value for key in ("mean_batch", "largest_batch") if key in values), 1.0)
    shape = Shape(max(1.0, running), 1, _mean_context(scenario), "decode")
    return build(result.setup.model, shape, Partition(scenario.strategy.tensor_parallel), numerics)


def _mean_context(scenario: ServingScenario) -> float:
    workload = scenario.workload
    if workload.list:
        return sum(row.prompt + row.output / 2.0 for row in workload.list) / len(workload.list)
    lengths = []
    for item in (workload.prompt, workload.output):
        if item is None:
            lengths.append(0.0)
        elif item.uniform:
            lengths.append(sum(item.uniform) / 2.0)
        else:
            lengths.append(float(item.fixed or item.mean or 0.0))
    return lengths[0] + lengths[1] / 2.0
