"""A fleet from setup to outcome: the answer of all its requests, its pools beside each other."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from simulator.cost import relative_error
from simulator.serving.accounts import SIZE
from simulator.serving.fleet import FleetServed, PoolPlan, serve_fleet
from simulator.serving.fleet_plan import FleetPlan, make_fleet
from simulator.serving.metrics import (
    ITERATION_SPREAD,
    QUEUE_SPREAD,
    duration,
    latency_metrics,
    objective_metrics,
    saturated,
    state_metrics,
    tables,
    throughput_metrics,
)
from simulator.serving.simulate import SOURCES, class_spreads, headline, unfit
from simulator.serving.workload import Floats
from simulator.specs import OperatorClass, ServingScenario
from simulator.specs.serving_fleet import Fleet
from simulator.strategy import Bottleneck, Holding, MemoryUse, Metric, Outcome, Setup, constants_used

APART = (
    "Zhong et al. 2024, arXiv:2401.09670, DistServe: prefill and decode on GPUs of their own",
    "Patel et al. 2024, arXiv:2311.18677, Splitwise: phases on machines of their own, caches sent layer by layer",
)


def simulate_fleet(setup: Setup, fleet: Fleet, *, detail: bool = False) -> Outcome:
    """Serve a scenario's requests on its fleet.

    Parameters
    ----------
    setup : Setup
        With a scenario of kind serving.
    fleet : Fleet
        Of this scenario.
    detail : bool
        One task of the timeline for each iteration.

    Returns
    -------
    Outcome
        As of :func:`~simulator.serving.simulate.simulate`, of all requests. Seconds by class and bottleneck are those of a
        mean GPU.

    Raises
    ------
    MemroofError
        See :func:`~simulator.serving.fleet_plan.make_fleet`.
    """
    plan = make_fleet(setup, fleet)
    for pool, own in zip(plan.pools, plan.setups, strict=True):
        if pool.plan.needed > pool.plan.usable:
            return unfit(own, pool.plan)
    served = serve_fleet(plan.requests, plan.pools, plan.router, plan.hand_over, one_by_one=detail)
    whole, total = served.whole, duration(served.whole)
    mean_gpus = _gpu_seconds(plan, served) / total
    spreads = class_spreads(plan.setups[-1], plan.pools[-1].plan, whole)
    class_times, bottlenecks, busy = _mean_times(plan, served, mean_gpus)
    bottlenecks["waiting"] = max(0.0, total - sum(bottlenecks.values()))
    metrics = _metrics(setup, plan, served, class_times, spreads, mean_gpus)
    sources = (*SOURCES, *APART) if fleet.apart else SOURCES
    frontend = plan.pools[0].plan.frontend(whole.requests)
    return Outcome(
        headline(plan.requests), metrics, _memory(plan, served), class_times, bottlenecks, total,
        _assumptions(setup, plan, served, fleet), sources, whole.timeline, max(1, round(mean_gpus)), min(1.0, busy / total),
        {**tables(whole, frontend), "pools": _pools(plan, served)}, spreads, ITERATION_SPREAD,
    )  # fmt: skip


def _gpu_seconds(plan: FleetPlan, served: FleetServed) -> float:
    """Seconds that GPUs are there for, those that start among them [s]; both phases on one GPU count once."""
    total = 0.0
    for name, spans in served.up.items():
        pool = plan.pools[served.pool_of[name]]
        if plan.hand_over.within and pool.role == "decode":
            continue
        gpus = pool.plan.layout.gpus
        start = float(served.whole.requests.arrival[0])
        total += gpus * sum(max(0.0, end - max(begin, start)) for begin, end in spans)
    return total


def _mean_times(
    plan: FleetPlan, served: FleetServed, mean_gpus: float
) -> tuple[dict[OperatorClass, float], dict[Bottleneck, float], float]:
    """Seconds of a mean GPU by class and by bottleneck, and busy ones in all [s]."""
    class_times: dict[OperatorClass, float] = {}
    bottlenecks: dict[Bottleneck, float] = {}
    busy = 0.0
    for name, member in served.members.items():
        pool = plan.pools[served.pool_of[name]]
        account = pool.plan.pricer.account(_account(member.prefill_account, member.decode_account))
        share = pool.plan.layout.gpus / pool.groups / mean_gpus
        if plan.hand_over.within:
            # two phases at a time: each second of a GPU counts for the phase that it is
            share *= 0.5
        for key, seconds in account.by_class.items():
            class_times[key] = class_times.get(key, 0.0) + share * seconds
        for bound, seconds in account.by_bottleneck.items():
            bottlenecks[bound] = bottlenecks.get(bound, 0.0) + share * seconds
        busy += share * account.seconds
    return class_times, bottlenecks, busy


def _account(prefill: Floats | float, decode: Floats | float) -> Floats:
    total = np.asarray(prefill, float) + np.asarray(decode, float)
    return total if total.ndim else np.zeros(SIZE)


def _metrics(
    setup: Setup,
    plan: FleetPlan,
    served: FleetServed,
    class_times: Mapping[OperatorClass, float],
    spreads: Mapping[OperatorClass, float],
    mean_gpus: float,
) -> dict[str, Metric]:
    whole = served.whole
    run = math.hypot(relative_error(class_times, spreads), ITERATION_SPREAD)
    prefill = math.hypot(run, QUEUE_SPREAD)
    frontend = plan.pools[0].plan.frontend(whole.requests)
    metrics = throughput_metrics(whole, 1, 1, run)
    per_gpu = metrics["output_throughput_per_gpu"]
    metrics["output_throughput_per_gpu"] = Metric(
        per_gpu.label, per_gpu.value / mean_gpus, per_gpu.dimension, per_gpu.error, per_gpu.better
    )
    metrics |= latency_metrics(whole, prefill, run, frontend)
    scenario = setup.scenario
    if isinstance(scenario, ServingScenario) and scenario.slo:
        by_latency = {"time_to_first_token": prefill, "time_per_output_token": run, "end_to_end": run}
        metrics |= objective_metrics(whole, scenario.slo, 1, by_latency, frontend)
    metrics |= state_metrics(
        whole, min((pool.plan.cache for pool in plan.pools), key=lambda cache: cache.capacity)
    )
    for pool in plan.pools:
        busy = _busy(plan, served, pool)
        key = pool.name.replace(" ", "_")
        metrics[f"busy_{key}"] = Metric(f"share of the run that {pool.name} computes", busy, "fraction", run)
    metrics["mean_gpus"] = Metric("GPUs that are there on average", mean_gpus, "count")
    handed = served.handed_over[~np.isnan(served.handed_over)]
    if len(handed):
        for statistic, value in (
            ("mean", handed.mean()),
            ("p50", np.median(handed)),
            ("p99", np.percentile(handed, 99)),
        ):
            metrics[f"hand_over_{statistic}"] = Metric(
                f"time from prompt to cache at its decoder, {statistic}",
                float(value),
                "seconds",
                run,
                "lower",
            )
    if not (whole.requests.offline or whole.requests.closed):
        known = whole.requests.arrival
        offered = (len(known) - 1) / float(known[-1] - known[0])
        metrics["offered_request_rate"] = Metric("requests offered per second", offered, "1/s")
        metrics["saturated"] = Metric(
            "queue grows without bound (1: yes)", float(saturated(whole)), "count", 0.0, "lower"
        )
    return metrics


def _busy(plan: FleetPlan, served: FleetServed, pool: PoolPlan) -> float:
    members = served.of_pool(plan.pools.index(pool))
    seconds = sum(
        pool.plan.pricer.account(_account(m.prefill_account, m.decode_account)).seconds for m in members
    )
    there = sum(
        end - begin
        for name, spans in served.up.items()
        if plan.pools[served.pool_of[name]] is pool
        for begin, end in spans
    )
    return min(1.0, seconds / (there * pool.groups)) if there else 0.0


def _memory(plan: FleetPlan, served: FleetServed) -> tuple[MemoryUse, ...]:
    """The fullest member of each pool."""
    uses = []
    ledger = served.whole.timeline.ledger
    for index, (pool, own) in enumerate(zip(plan.pools, plan.setups, strict=True)):
        if plan.hand_over.within and index:
            continue
        store = own.hardware.memory
        peaks = {m.machine.name: ledger.peak(f"{m.machine.name}: memory") for m in served.of_pool(index)}
        name = max(peaks, key=lambda name: peaks[name].bytes)
        peak = peaks[name]
        largest = tuple(Holding(holder, size) for holder, size in peak.holders)
        label = name if len(served.members) > 1 else ""
        uses.append(
            MemoryUse(
                store.name,
                store.tier,
                pool.plan.usable,
                peak.bytes,
                peak.time,
                peak.by_category,
                largest,
                label,
            )
        )
    return tuple(uses)


def _pools(plan: FleetPlan, served: FleetServed) -> dict[str, list[object]]:
    """Columns by member: requests that it completed or handed over, tokens, busy seconds."""
    columns: dict[str, list[object]] = {
        "member": [],
        "pool": [],
        "iterations": [],
        "busy": [],
        "preemptions": [],
    }
    for name, member in served.members.items():
        pool = plan.pools[served.pool_of[name]]
        columns["member"].append(name)
        columns["pool"].append(pool.name)
        columns["iterations"].append(int(sum(member.log.steps)))
        columns["busy"].append(float(sum(member.log.seconds)))
        columns["preemptions"].append(member.preemptions)
    return columns


def _assumptions(setup: Setup, plan: FleetPlan, served: FleetServed, fleet: Fleet) -> tuple[str, ...]:
    lines = [constants_used(setup.cost.calibration)]
    if saturated(served.whole):
        lines.insert(
            0,
            "saturated: requests arrive faster than the fleet serves them, so queues grow with the length of the run",
        )
    for pool in plan.pools:
        gpus = pool.plan.layout.gpus
        most = "up to " if pool.autoscale else ""
        lines.append(
            f"{pool.name}: {most}{pool.replicas} replicas of {gpus} GPU{'s' * (gpus > 1)}, all simulated"
        )
        lines += pool.plan.layout.assumptions(moe=setup.model.moe is not None)
    if plan.hand_over.within:
        lines.append(
            f"prefill has {fleet.prefill_share:.0%} of the multiprocessors of each GPU, decode the others; what both draw "
            "from the memory is shared as if both were at work all the time"
        )
    elif fleet.apart:
        links = " and ".join(f"{pool.bandwidth / 1e9:.0f} GB/s at {pool.name}" for pool in plan.pools)
        lines.append(f"caches are handed over at {links}, shared by all that are under way")
        lines.append(
            "a cache is sent when its decoder has blocks and a slot for it; till then its blocks stay where it was made"
        )
    lines.append(
        f"intervals hold {ITERATION_SPREAD:.0%} for what kernels do not explain of an iteration and {QUEUE_SPREAD:.0%} of a "
        "first token; how a queue near its limit amplifies them is not in them"
    )
    return tuple(dict.fromkeys(lines))
