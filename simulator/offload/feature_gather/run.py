"""Train on mini-batches: plan, program, timeline, and what they say; the same for what it is compared with."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from simulator.cost import relative_error
from simulator.engine import Timeline, execute
from simulator.offload.answer import bound_by, by_class, critical, link_table, memory_uses
from simulator.offload.feature_gather.lower import ITERATIONS, Lowered, lower
from simulator.offload.feature_gather.plan import Plan, make_plan
from simulator.specs.feature_gather_scenario import FeatureGatherScenario, Way
from simulator.strategy import Metric, Outcome, Remedy, Setup, constants_used

SOURCES = (
    "Min et al. 2021, arXiv:2101.07956 (PyTorch-Direct): zero-copy reads of scattered rows, shifted to whole lines",
    "Min et al. 2021, arXiv:2103.03330 (Large GCN training): reads by a share of the units beside training",
    "Min et al. 2021, arXiv:2111.05894 (Data Tiering): hottest features by reverse PageRank in accelerator memory",
)


@dataclass(frozen=True)
class _Run:
    plan: Plan
    lowered: Lowered
    timeline: Timeline

    @property
    def iteration(self) -> float:
        """Seconds of an iteration of all accelerators, once the pipeline is full."""
        ends = [float(self.timeline.end[step].max()) for step in self.lowered.trained]
        half = ITERATIONS // 2
        return (ends[-1] - ends[half - 1]) / (ITERATIONS - half)

    @property
    def transfer(self) -> float:
        """Seconds from the start of a mini-batch's fetch to its end, mean over the later half."""
        if not (self.plan.cold or self.plan.remote):
            return 0.0
        start, end = self.timeline.start, self.timeline.end
        spans = [
            float(end[list(last)].max() - start[list(first)].min())
            for step in self.lowered.fetched[ITERATIONS // 2 :]
            for first, last in step
        ]
        return float(np.mean(spans))


def simulate(setup: Setup, *, detail: bool = False) -> Outcome:
    """Simulate some iterations of mini-batch training and scale them to an epoch.

    Parameters
    ----------
    setup : Setup
        A feature-gather scenario with its graph, hardware and cost model.
    detail : bool
        Without effect: all iterations are alike.

    Returns
    -------
    Outcome
        Of one iteration in which every accelerator trains on one mini-batch.

    Raises
    ------
    MemroofError
        See :func:`simulator.offload.feature_gather.plan.make_plan`.
    """
    scenario = setup.scenario
    assert isinstance(scenario, FeatureGatherScenario) and setup.graph is not None
    run = _run(setup, scenario.strategy)
    baseline = scenario.strategy.baseline
    other = None if baseline is None else _run(setup, baseline)
    row = critical(run.lowered.emit, run.timeline) * (run.iteration / run.timeline.makespan)
    errors = dict(setup.cost.calibration.error)
    error = float(relative_error(by_class(row), errors))
    return Outcome(
        headline="iteration_time", metrics=_metrics(setup, run, other, error),
        memory=memory_uses(run.lowered.emit, run.timeline), class_times=by_class(row), bottlenecks=bound_by(row),
        total_time=run.iteration, assumptions=_assumptions(setup, run.plan), sources=SOURCES, timeline=run.timeline,
        devices=len(run.plan.ranks), busy_fraction=min(1.0, run.plan.train.time(0) / run.iteration),
        tables={"links": link_table(run.lowered.emit, run.timeline.makespan)}, class_errors=errors,
    )  # fmt: skip


def remedies(setup: Setup) -> Iterator[Remedy]:
    """Yield fewer hot features, then smaller mini-batches."""
    scenario = setup.scenario
    assert isinstance(scenario, FeatureGatherScenario)
    if scenario.strategy.hot not in ("auto", 0.0):
        yield Remedy("as many hot features as fit", {"strategy.hot": "auto"})
    batch = scenario.workload.batch
    while batch > 1:
        batch //= 2
        yield Remedy(f"mini-batches of {batch} seed{'s' * (batch > 1)}", {"workload.batch": str(batch)})


def _run(setup: Setup, way: Way) -> _Run:
    plan = make_plan(setup, way)
    lowered = lower(plan, setup.scenario.name)
    return _Run(plan, lowered, execute(lowered.emit.program))


def _metrics(setup: Setup, run: _Run, other: _Run | None, error: float) -> Mapping[str, Metric]:
    scenario, graph, plan = setup.scenario, setup.graph, run.plan
    assert isinstance(scenario, FeatureGatherScenario) and graph is not None
    count = len(plan.ranks)
    iterations = math.ceil(graph.train_nodes / (scenario.workload.batch * count))
    errors = setup.cost.calibration.error
    transfer_error = errors["transfer"]
    metrics = {
        "iteration_time": Metric("time of an iteration", run.iteration, "seconds", error, "lower"),
        "epoch_time": Metric("time of an epoch", run.iteration * iterations, "seconds", error, "lower"),
        "transfer_time": Metric("to fetch a mini-batch's features", run.transfer, "seconds", transfer_error, "lower"),
        "sampling_time": Metric("to sample a mini-batch", plan.sampling, "seconds", errors["host"], "lower"),
        "training_time": Metric("to train on a mini-batch", plan.train.time(0), "seconds", error, "lower"),
        "gathered_rows": Metric("distinct nodes of a mini-batch", plan.batch.nodes[-1], "count"),
        "feature_bytes": Metric("features of a mini-batch", plan.features, "bytes"),
        "host_bytes": Metric("of which over the host link", plan.cold, "bytes", better="lower"),
    }  # fmt: skip
    if plan.hot:
        metrics["hot_share"] = Metric("nodes with features in accelerator memory", plan.hot, "fraction")
        metrics["hot_accesses"] = Metric("rows found there", plan.caught, "fraction", better="higher")
    if other is not None:
        saved = 1.0 - run.transfer / (other.transfer or 1.0)
        less = 1.0 - plan.cold / (other.plan.cold or 1.0)
        metrics |= {
            "speedup": Metric("speedup over the baseline", other.iteration / run.iteration, "ratio", error, "higher"),
            "transfer_reduction": Metric("transfer time saved", saved, "fraction", transfer_error, "higher"),
            "traffic_reduction": Metric("host traffic saved", less, "fraction", better="higher"),
        }  # fmt: skip
    return metrics


def _assumptions(setup: Setup, plan: Plan) -> tuple[str, ...]:
    count = len(plan.ranks)
    found = [
        constants_used(setup.cost.calibration),
        "seeds are drawn evenly from the nodes in reach, neighbours by Zipf's law; a mini-batch fetches each node once",
        "sampling is bound by two cache misses an edge and thread; features that the CPU gathers go through a pinned buffer",
        f"{ITERATIONS} iterations are simulated; an epoch is as many of the later ones as its seeds need",
    ]
    if count > 1:
        found.append("each accelerator has mini-batches of its own; their gradients are few and cost nothing")
    if plan.way.transfer == "zero-copy" and plan.way.overlap == "all":
        found.append("training slows by the share of units that reads beside it")
    return tuple(found)
