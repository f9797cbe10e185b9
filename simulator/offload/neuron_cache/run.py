"""Decode from flash: plan, program, timeline, and what they say; the stated baselines too."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from simulator.cost import relative_error
from simulator.engine import Timeline, execute
from simulator.offload.answer import bound_by, by_class, critical, link_table, memory_uses
from simulator.offload.columns import Rows
from simulator.offload.neuron_cache.lower import MANAGE, READ, SOFTWARE, Lowered, lower
from simulator.offload.neuron_cache.plan import Plan, make_plan
from simulator.offload.neuron_cache.residency import Residency, reside
from simulator.specs import MemroofError, NeuronCacheScenario, OperatorClass
from simulator.specs.neuron_cache_scenario import Scheme
from simulator.strategy import Metric, Outcome, Setup, constants_used

Array = npt.NDArray[np.float64]
TOKENS = 20
"""Decode steps that are simulated where they differ in what they miss."""
TAIL = NormalDist().inv_cdf(0.99)
SOURCES = (
    "Alizadeh et al. 2024, arXiv:2312.11514 (LLM in a flash): windows of neurons, bundled reads, rows moved in place",
    "Xue et al. 2024, arXiv:2406.06282 (PowerInfer-2): pinned neurons beside others, reads in two phases, clusters in a pipeline",
    "Che, Tung and Wang 2002, Hierarchical Web caching systems: age at which an LRU cache drops an item",
)


def simulate(setup: Setup, *, detail: bool = False) -> Outcome:
    """Simulate decode steps of one sequence.

    Parameters
    ----------
    setup : Setup
        A neuron-cache scenario with its model and hardware.
    detail : bool
        Simulate as many steps as tokens are generated, up to ten times as many as without.

    Returns
    -------
    Outcome
        Of an average decode step in the middle of the output; with baselines, the speed-up over each.

    Raises
    ------
    MemroofError
        For a combination that is refused; see :func:`simulator.offload.neuron_cache.plan.make_plan`.
    """
    scenario = setup.scenario
    if not isinstance(scenario, NeuronCacheScenario):
        raise MemroofError(f"neuron-cache cannot run a {scenario.kind} scenario")
    steps = min(scenario.workload.output, 10 * TOKENS) if detail else TOKENS
    ran = _run(setup, scenario.strategy, steps)
    others = {
        name: _run(setup, scenario.strategy.baseline(name), steps) for name in scenario.strategy.baselines
    }
    errors = setup.cost.calibration.error
    uses = memory_uses(ran.lowered.emit, ran.timeline)
    step = ran.row / ran.lowered.tokens
    return Outcome(
        headline="time_per_output_token",
        metrics=_metrics(ran, others, errors),
        memory=uses,
        class_times=by_class(step),
        bottlenecks=bound_by(step),
        total_time=ran.step_time,
        assumptions=_assumptions(setup, ran, fits=all(use.free >= 0 for use in uses)),
        sources=SOURCES,
        timeline=ran.timeline,
        busy_fraction=min(1.0, ran.busy(*ran.computing) / ran.step_time),
        tables={"links": link_table(ran.lowered.emit, ran.timeline.makespan)},
        class_errors=dict(errors),
    )


@dataclass(frozen=True)
class Ran:
    """A scheme that was run."""

    plan: Plan
    residency: Residency
    lowered: Lowered
    timeline: Timeline = field(repr=False)

    @property
    def step_time(self) -> float:
        """Seconds of an average decode step."""
        return self.timeline.makespan / self.lowered.tokens

    @cached_property
    def row(self) -> Rows:
        """Seconds of the critical path by columns, of all steps."""
        return critical(self.lowered.emit, self.timeline)

    @property
    def computing(self) -> tuple[str, ...]:
        """Streams of processors."""
        plan = self.plan
        return tuple(dict.fromkeys((plan.dense.name, plan.sparse.name, plan.predicting.name)))

    def busy(self, *streams: str) -> float:
        """Seconds of a step in which streams are busy, added up."""
        found = self.timeline.busy()
        return sum(found.get(name, 0.0) for name in streams) / self.lowered.tokens

    @property
    def read(self) -> float:
        """Bytes that a step reads from flash."""
        carried = self.lowered.emit.carried.get(self.plan.flash.channel.name, {})
        return sum(carried.values()) / self.lowered.tokens

    @cached_property
    def waiting(self) -> float:
        """Share of the time in which nothing but flash is busy."""
        timeline = self.timeline
        flash = self.lowered.emit.stream(READ)
        others = (timeline.stream != flash) & (timeline.duration > 0.0)
        return 1.0 - covered(timeline.start[others], timeline.end[others]) / timeline.makespan


def covered(start: Array, end: Array) -> float:
    """Return the length of a union of intervals; shape (intervals,) each."""
    order = np.argsort(start)
    start, latest = start[order], np.maximum.accumulate(end[order])
    before = np.concatenate([[-np.inf], latest[:-1]])
    return float(np.maximum(latest - np.maximum(start, before), 0.0).sum())


def _run(setup: Setup, scheme: Scheme, steps: int) -> Ran:
    plan = make_plan(setup, scheme)
    residency = reside(plan)
    lowered = lower(plan, residency, factors(scheme, steps))
    return Ran(plan, residency, lowered, execute(lowered.emit.program))


def factors(scheme: Scheme, steps: int) -> tuple[float, ...]:
    """Return what steps miss over the mean: the middles of equal slices of a log-normal law of mean 1, from few to many."""
    spread = scheme.neurons.dispersion if scheme.neurons and scheme.cache else 0.0
    if not spread:
        return (1.0,)
    law = NormalDist()
    found = np.exp([spread * law.inv_cdf((i + 0.5) / steps) for i in range(steps)])
    return tuple((found / found.mean()).tolist())


# --- metrics ---------------------------------------------------------------------------------------------------------


def _metrics(ran: Ran, others: Mapping[str, Ran], errors: Mapping[OperatorClass, float]) -> dict[str, Metric]:
    time = ran.step_time
    error = _error(ran, errors)
    flash = ran.busy(READ)
    storage = errors.get("transfer", 0.0)
    metrics = {
        "time_per_output_token": Metric("time per decode step", time, "seconds", error, "lower"),
        "decode_throughput": Metric("output tokens per second of decode", 1.0 / time, "1/s", error, "higher"),
        "flash_bytes": Metric("bytes read from flash per token", ran.read, "bytes"),
        "flash_time": Metric("time in which flash is read per token", flash, "seconds", storage, "lower"),
        "management_time": Metric("time in which rows are moved in DRAM per token", ran.busy(MANAGE), "seconds", storage),
        "compute_time": Metric("time of computations per token, all processors", ran.busy(*ran.computing), "seconds", error),
        "software_time": Metric("time of software per token", ran.busy(SOFTWARE), "seconds"),
        "flash_wait_share": Metric("share of time in which all wait for flash", ran.waiting, "fraction", better="lower"),
        "busy_share": Metric("share of time in which something computes", 1.0 - ran.waiting, "fraction", better="higher"),
        "resident_bytes": Metric("weights in DRAM", ran.residency.weights_held, "bytes"),
        "resident_share": Metric(
            "weights in DRAM over the model", ran.residency.weights_held / ran.plan.model_bytes, "fraction"
        ),
    }  # fmt: skip
    if flash:
        metrics["flash_throughput"] = Metric(
            "rate of flash reads", ran.read / flash, "bytes/s", storage, "higher"
        )
    metrics |= _neuron_metrics(ran)
    for name, other in others.items():
        slower, spread = other.step_time, _error(other, errors)
        metrics[f"{name}_time_per_output_token"] = Metric(
            f"time per decode step, {name}", slower, "seconds", spread, "lower"
        )
        metrics[f"speedup_over_{name}"] = Metric(
            f"speed-up over {name}", slower / time, "ratio", math.hypot(error, spread), "higher"
        )
        metrics[f"{name}_busy_share"] = Metric(
            f"share of time in which something computes, {name}",
            1.0 - other.waiting,
            "fraction",
            better="higher",
        )
    return metrics


def _neuron_metrics(ran: Ran) -> dict[str, Metric]:
    layers = [ran.residency.neurons[layer] for layer in ran.plan.weights.layers if ran.residency.neurons]
    if not layers:
        return {}
    count = sum(layer.neurons for layer in ran.plan.weights.layers)
    active, missed = sum(each.active for each in layers), sum(each.missed for each in layers)
    kept = sum(each.hot + each.kept for each in layers)
    neurons = ran.plan.scheme.neurons
    spread = neurons.dispersion if neurons else 0.0
    tail = min(1.0, missed / active * math.exp(TAIL * spread - spread**2 / 2.0))
    found = {
        "active_share": Metric("neurons that a token needs", active / count, "fraction"),
        "new_share": Metric("neurons that a token reads", missed / count, "fraction", better="lower"),
        "cached_share": Metric("neurons in DRAM", kept / count, "fraction"),
        "miss_rate": Metric("needed neurons that are read, mean over tokens", missed / active, "fraction", better="lower"),
        "miss_rate_p99": Metric("needed neurons that are read, 99th percentile of tokens", tail, "fraction", better="lower"),
    }  # fmt: skip
    for category, size in ran.residency.held.items():
        if category not in ("KV cache", "buffers"):
            key = category.replace(" ", "_") + "_share"
            found[key] = Metric(f"{category} over the model", size / ran.plan.model_bytes, "fraction")
    return found


def _error(ran: Ran, errors: Mapping[OperatorClass, float]) -> float:
    return float(relative_error(by_class(ran.row), errors))


def _assumptions(setup: Setup, ran: Ran, *, fits: bool) -> tuple[str, ...]:
    plan, scheme = ran.plan, ran.plan.scheme
    found = [
        constants_used(setup.cost.calibration),
        "decode of one sequence; products with one row are a roofline over the memory's port, without time between kernels",
        f"a step is priced at a context of {plan.context:g} tokens",
    ]
    if scheme.cache:
        found += [
            "tokens need neurons independently of each other, by frequencies of a power law through the stated point",
            "all layers are alike in their frequencies, and experts are chosen equally often",
        ]
        if scheme.pipeline:
            found.append(
                "reads of a layer begin when its predictor is done; what is in DRAM is computed meanwhile"
            )
    if scheme.neurons and scheme.cache and scheme.neurons.dispersion:
        found.append(
            f"{ran.lowered.tokens} steps are simulated, from those that miss few neurons to those that miss many"
        )
    if scheme.mapped:
        found.append("page faults and computation take turns; what a token touches is in a fixed order")
    if not fits:
        found.append("times are as if the memories that are too small were large enough")
    return tuple(found)
