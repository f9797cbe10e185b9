"""Simulate the steady state of streamed weights with mixed iterations, and say what it rests on."""

from __future__ import annotations

import numpy as np

from simulator.cost import ALONE, relative_error
from simulator.engine import Timeline, execute
from simulator.graph import Shape, build
from simulator.offload.answer import bound_by, by_class, critical, link_table, memory_uses
from simulator.offload.mixed_stream.bounds import host_bandwidth, stream_time, token_rate
from simulator.offload.mixed_stream.lower import ITERATIONS, Lowered, lower
from simulator.offload.mixed_stream.plan import Plan, make_plan
from simulator.offload.tiers import DRAM
from simulator.specs import OperatorClass
from simulator.strategy import Metric, Outcome, Setup, constants_used, pass_errors

SOURCES = (
    "MoE-Lens, 2025: all weights streamed each iteration, decode attention on CPUs, prompts and decode steps mixed; section 5",
)


def simulate(setup: Setup, *, detail: bool = False) -> Outcome:
    """Simulate some iterations of the steady state; the last one counts.

    Parameters
    ----------
    setup : Setup
        An offload scenario of method ``mixed-stream``.
    detail : bool
        Without effect.

    Raises
    ------
    MemroofError
        For a combination that is refused; see :func:`simulator.offload.mixed_stream.plan.make_plan`.
    """
    plan = make_plan(setup)
    lowered = lower(plan)
    timeline = execute(lowered.emit.program)
    ends = [float(timeline.end[list(tasks)].max()) for tasks in lowered.ends]
    iteration = ends[-1] - ends[-2]
    row = critical(lowered.emit, timeline) / ends[-1] * iteration
    shape = Shape(plan.decoding, 1, plan.prompt + plan.output // 2, "decode")
    errors = pass_errors(setup.cost, build(plan.model, shape, numerics=plan.numerics), ALONE)
    if setup.host is not None:
        errors = errors | {"host": setup.host.calibration.error["decode-attention"]}
    busy = _within(lowered.emit.gpu, timeline, ends[-2], ends[-1]) / iteration
    memory = memory_uses(lowered.emit, timeline)
    return Outcome(
        headline="generation_throughput",
        metrics=_metrics(plan, lowered, timeline, iteration, busy, errors, by_class(row)),
        memory=memory,
        class_times=by_class(row),
        bottlenecks=bound_by(row),
        total_time=iteration,
        assumptions=_assumptions(plan, setup, fits=all(use.free >= 0 for use in memory)),
        sources=SOURCES,
        timeline=timeline,
        busy_fraction=busy,
        tables={"links": link_table(lowered.emit, ends[-1])},
        class_errors=errors,
    )


def fits(setup: Setup) -> bool:
    """Return whether weights and cache fit in DRAM; raises what refuses the scenario."""
    plan = make_plan(setup)
    return plan.model_bytes + plan.capacity <= plan.place.ranks[0].pools[DRAM].capacity


def _within(stream: int, timeline: Timeline, low: float, high: float) -> float:
    """Return the seconds in which a stream works between two moments."""
    tasks = np.flatnonzero(timeline.stream == stream)
    spent = np.minimum(timeline.end[tasks], high) - np.maximum(timeline.start[tasks], low)
    return float(np.maximum(spent, 0.0).sum())


def _metrics(
    plan: Plan,
    lowered: Lowered,
    timeline: Timeline,
    iteration: float,
    busy: float,
    errors: dict[OperatorClass, float],
    times: dict[OperatorClass, float],
) -> dict[str, Metric]:
    error = float(relative_error(times, errors))
    rate = plan.tokens / iteration
    delta = float(stream_time(plan.model_bytes, plan.copy_rate))
    computing = float(np.sum(timeline.duration[timeline.stream == lowered.emit.gpu])) / ITERATIONS
    bound = token_rate(
        plan.prompt,
        plan.output,
        plan.decoding * (plan.prompt + plan.output / 2.0),
        delta,
        plan.tokens / computing,
    )
    copies = list(lowered.loads[-1])
    streaming = float(timeline.duration[copies].sum())
    cache = plan.decoding * (plan.prompt + plan.output / 2.0) * plan.token_bytes
    return {
        "generation_throughput": Metric(
            "output tokens per second", plan.decoding / iteration, "1/s", error, "higher"
        ),
        "token_throughput": Metric("tokens per second, of prompts and outputs", rate, "1/s", error, "higher"),
        "bound_token_throughput": Metric(
            "the same by the closed form of its bounds", float(np.asarray(bound)), "1/s", error, "higher"
        ),
        "iteration_time": Metric("time of an iteration", iteration, "seconds", error, "lower"),
        "weight_stream_time": Metric(
            "time in which weights are copied", streaming, "seconds", error, "lower"
        ),
        "gpu_utilization": Metric("share of time in which the accelerator computes", busy, "fraction"),
        "host_bandwidth": Metric(
            "what DRAM must deliver for cache and weights",
            float(np.asarray(host_bandwidth(cache, iteration, plan.model_bytes / iteration))),
            "bytes/s",
        ),
        "decoding_sequences": Metric("requests that decode at once", plan.decoding, "count"),
        "weight_bytes": Metric("weights of the model", plan.model_bytes, "bytes"),
        "kv_cache_bytes": Metric("cache in use", cache, "bytes"),
    }


def _assumptions(plan: Plan, setup: Setup, *, fits: bool) -> tuple[str, ...]:
    found = [
        constants_used(setup.cost.calibration),
        f"an endless queue: {plan.decoding:.0f} requests at all ages alike decode, {plan.joining:.0f} prompts join an iteration",
        "CPUs and copies share the DRAM in proportion to what each would take alone",
        f"copies reach {plan.copy_rate / 1e9:.1f} GB/s",
        "products take the tokens of prompts and decode steps together; tokens choose experts independently",
    ]
    if not fits:
        found.append("times are as if the memories that are too small were large enough")
    return tuple(found)
