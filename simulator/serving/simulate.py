"""A serving scenario from setup to outcome."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from simulator.cost import peak_flops, relative_error
from simulator.graph import Shape, build
from simulator.serving.accounts import Account
from simulator.serving.cache_metrics import cache_metrics, class_metrics
from simulator.serving.joined_cache import JoinedCache
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
    unserved_metrics,
)
from simulator.serving.plan import ReplicaPlan, make_plan
from simulator.serving.scheduler import Served, serve
from simulator.serving.techniques import technique_lines
from simulator.serving.workload import Requests
from simulator.specs import OperatorClass, ServingScenario, Span
from simulator.strategy import (
    Bottleneck,
    Holding,
    MemoryUse,
    Metric,
    Outcome,
    Setup,
    constants_used,
    pass_errors,
)

SOURCES = (
    "Yu et al. 2022, OSDI, Orca: iteration-level scheduling",
    "Kwon et al. 2023, arXiv:2309.06180, PagedAttention: paged KV cache, preemption by recomputation",
    "Agrawal et al. 2024, arXiv:2403.02310, Sarathi-Serve: chunked prefill beside decodes",
    "Shoeybi et al. 2019, arXiv:1909.08053, Megatron-LM: tensor parallelism",
)


def simulate(setup: Setup, *, detail: bool = False) -> Outcome:
    """Serve a scenario's requests on one replica.

    Parameters
    ----------
    setup : Setup
        With a scenario of kind serving.
    detail : bool
        One task of the timeline for each iteration, instead of one for each run of equal decode steps.

    Returns
    -------
    Outcome
        Headline ``output_throughput`` where all requests are there from the start, else ``time_per_output_token_p50``
        (``end_to_end_p50`` where nothing has a second token). If weights or the longest request do not fit, nothing is
        run: throughput is 0, latencies are infinite, and the memory says what is missing.

    Raises
    ------
    MemroofError
        If the strategy is not legal for model and hardware.
    """
    scenario = setup.scenario
    if isinstance(scenario, ServingScenario) and scenario.fleet is not None:
        # it is built from what is here
        from simulator.serving.fleet_outcome import simulate_fleet

        return simulate_fleet(setup, scenario.fleet, detail=detail)
    plan = make_plan(setup)
    name = setup.hardware.memory.name
    if plan.needed > plan.usable:
        return unfit(setup, plan)
    served = serve(
        plan.requests, plan.policy, plan.cache, plan.pricer,
        memory=(name, plan.usable), resident=plan.resident, one_by_one=detail,
        **plan.caching.parts(plan.requests, plan.cache),
    )  # fmt: skip
    account = plan.pricer.account(served.account)
    spreads = class_spreads(setup, plan, served)
    metrics = _metrics(setup, plan, served, account, spreads)
    total = duration(served)
    bottlenecks: dict[Bottleneck, float] = dict(account.by_bottleneck)
    class_times: dict[OperatorClass, float] = dict(account.by_class)
    waits: tuple[tuple[Bottleneck, OperatorClass, float], ...] = (
        ("host link", "transfer", served.stall), ("host", "host", served.mapping),
    )  # fmt: skip
    for bottleneck, operator_class, seconds in waits:
        if seconds:
            bottlenecks[bottleneck] = bottlenecks.get(bottleneck, 0.0) + seconds
            class_times[operator_class] = class_times.get(operator_class, 0.0) + seconds
    bottlenecks["waiting"] = max(0.0, total - sum(bottlenecks.values()))
    return Outcome(
        headline(plan.requests), metrics, (_memory(setup, plan, served), *_lower(plan, served)), class_times, bottlenecks, total,
        _assumptions(setup, plan, served), SOURCES, served.timeline, plan.gpus,
        min(1.0, account.seconds / total), tables(served, plan.frontend(served.requests)), spreads,
        ITERATION_SPREAD, phases=_phases(plan, served),
    )  # fmt: skip


def _phases(plan: ReplicaPlan, served: Served) -> dict[str, dict[Bottleneck, float]]:
    """Seconds of the iterations that hold prompts (decodes beside them among it), and of those that only decode."""
    parts = {"prefill": served.prefill_account, "decode": served.decode_account}
    return {name: plan.pricer.account(account).by_bottleneck for name, account in parts.items()}


def headline(requests: Requests) -> str:
    """Key of the metric that answers a workload."""
    if requests.offline:
        return "output_throughput"
    return "time_per_output_token_p50" if (requests.output > 1).any() else "end_to_end_p50"


def class_spreads(setup: Setup, plan: ReplicaPlan, served: Served) -> dict[OperatorClass, float]:
    """Errors of class sums, from the decode step of a middling context at the largest batch."""
    pricer, requests = plan.pricer, served.requests
    context = float((requests.prompt + requests.output / 2).mean())
    batch = min(plan.strategy.max_batch, len(requests.prompt))
    graph = build(pricer.model, Shape(batch, 1, context, "decode"), pricer.partition, pricer.numerics)
    return pass_errors(setup.cost, graph, {"tensor": pricer.span, "expert": Span(())})


def _metrics(
    setup: Setup, plan: ReplicaPlan, served: Served, account: Account, errors: Mapping[OperatorClass, float]
) -> dict[str, Metric]:
    run = math.hypot(relative_error(account.by_class, errors), ITERATION_SPREAD)
    prompts = plan.pricer.account(served.prefill_account).by_class
    prefill = math.hypot(relative_error(prompts, errors), QUEUE_SPREAD)
    frontend = plan.frontend(served.requests)
    metrics = throughput_metrics(served, plan.shares, plan.gpus, run) | latency_metrics(
        served, prefill, run, frontend
    )
    scenario = setup.scenario
    if isinstance(scenario, ServingScenario) and scenario.slo:
        spreads = {"time_to_first_token": prefill, "time_per_output_token": run, "end_to_end": run}
        metrics |= objective_metrics(served, scenario.slo, plan.shares, spreads, frontend)
    metrics |= state_metrics(served, plan.cache)
    metrics |= cache_metrics(served, plan.caching, setup.hardware.memory.name)
    metrics |= class_metrics(
        served, frontend, {"time_to_first_token": prefill, "time_per_output_token": run, "end_to_end": run}
    )
    flops = account.flops / account.seconds / peak_flops(setup.cost.device, plan.pricer.numerics.compute)
    traffic = account.traffic / account.seconds / setup.hardware.memory.read.bandwidth
    metrics["gpu_memory"] = Metric(
        "accelerator memory taken, at most", _taken(setup, plan, served), "bytes", better="lower"
    )
    metrics["mfu"] = Metric("model FLOPs utilisation while busy", flops, "fraction", run, "higher")
    metrics["mbu"] = Metric("memory bandwidth utilisation while busy", traffic, "fraction", run, "higher")
    if not (served.requests.offline or served.requests.closed):
        arrival = served.requests.arrival
        offered = plan.shares * (len(arrival) - 1) / float(arrival[-1] - arrival[0])
        metrics["offered_request_rate"] = Metric("requests offered per second", offered, "1/s")
        metrics["saturated"] = Metric(
            "queue grows without bound (1: yes)", float(saturated(served)), "count", 0.0, "lower"
        )
    return metrics


def _taken(setup: Setup, plan: ReplicaPlan, served: Served) -> float:
    """Bytes that a tool that reads the device's memory sees: more than is in use where an allocator keeps what was freed [B]."""
    peak = served.timeline.ledger.peak(setup.hardware.memory.name).bytes
    if not isinstance(plan.cache, JoinedCache):
        return peak
    together = np.sort(plan.requests.prompt)[-plan.policy.max_batch :]
    kept = plan.cache.taken(together.tolist(), float(plan.strategy.max_batched_tokens))
    return min(plan.usable, max(peak, sum(plan.resident.values()) + kept))


def _memory(setup: Setup, plan: ReplicaPlan, served: Served) -> MemoryUse:
    store = setup.hardware.memory
    peak = served.timeline.ledger.peak(store.name)
    largest = tuple(Holding(name, size) for name, size in peak.holders)
    return MemoryUse(store.name, store.tier, plan.usable, peak.bytes, peak.time, peak.by_category, largest)


def _lower(plan: ReplicaPlan, served: Served) -> tuple[MemoryUse, ...]:
    """What one GPU's part of DRAM and drives holds at its peak."""
    room: dict[str, float] = {}
    for tier in (*plan.caching.lower, plan.caching.swap):
        if tier is not None:
            room[tier.name] = room.get(tier.name, 0.0) + tier.capacity
    uses = []
    for name, capacity in room.items():
        peak = served.timeline.ledger.peak(name)
        largest = tuple(Holding(holder, size) for holder, size in peak.holders)
        uses.append(
            MemoryUse(
                name, name, capacity, peak.bytes, peak.time, peak.by_category, largest, "one GPU's share"
            )
        )
    return tuple(uses)


def unfit(setup: Setup, plan: ReplicaPlan) -> Outcome:
    """Answer for a replica whose weights or longest request exceed its memory."""
    store = setup.hardware.memory
    longest = plan.requests.longest
    held = {**plan.resident, "KV cache": float(plan.cache.size(longest))}
    names = {"KV cache": f"KV cache of the longest request, {longest} tokens"}
    largest = sorted(
        (Holding(names.get(name, name), size) for name, size in held.items()), key=lambda h: -h.size
    )
    memory = MemoryUse(store.name, store.tier, plan.usable, plan.needed, 0.0, held, tuple(largest))
    metrics = unserved_metrics()
    if isinstance(setup.scenario, ServingScenario) and setup.scenario.slo:
        metrics["slo_attainment"] = Metric(
            "requests that hold the objective", 0.0, "fraction", better="higher"
        )
        metrics["goodput"] = Metric("goodput, requests per second", 0.0, "1/s", better="higher")
    metrics["kv_capacity"] = Metric(
        "tokens that the KV cache holds", float(plan.cache.tokens), "tokens", 0.0, "higher"
    )
    notes = (
        "nothing was run: weights, workspace and the cache of the longest request exceed the memory that may be used",
    )
    return Outcome(
        headline(plan.requests), metrics, (memory,), {}, {}, 0.0, notes, SOURCES, None, plan.gpus, 0.0
    )


def _assumptions(setup: Setup, plan: ReplicaPlan, served: Served) -> tuple[str, ...]:
    strategy = plan.strategy
    lines = [constants_used(setup.cost.calibration)]
    if saturated(served):
        lines.insert(
            0,
            "saturated: requests arrive faster than they are served, so the queue and the time to first token grow "
            "with the length of the run",
        )
    arrival = served.requests.arrival
    if served.requests.closed:
        lines.append(
            f"{served.requests.concurrency} clients of a replica send their next request as soon as the one before is answered"
        )
    elif not served.requests.offline and served.makespan - arrival[-1] > 0.25 * (arrival[-1] - arrival[0]):
        lines.append(
            "the run is short against the time of one request: more requests would come nearer to a steady state"
        )
    if plan.shares > 1:
        what = "equal replicas" if plan.layout.data == 1 else "groups of GPUs that attend together"
        lines.append(
            f"{plan.shares} {what} take requests in turn; one is simulated with every {plan.shares}th request"
        )
    if strategy.schedule_ahead:
        lines.append(
            "iterations are put together ahead: their host time is hidden, and a request that arrives waits for one more"
        )
    if plan.pricer.host > 0.0:
        lines.append(f"host time of {plan.pricer.host * 1e3:.3g} ms an iteration is not hidden")
    lines += plan.layout.assumptions(moe=setup.model.moe is not None)
    if strategy.weight_precision not in (None, strategy.precision):
        lines.append(
            f"all weights, embeddings among them, are stored in {strategy.weight_precision} and widened without cost"
        )
    lines += technique_lines(strategy, getattr(plan.pricer, "expected", None))
    if strategy.batching == "static":
        lines.append("a finished request keeps its slot, and is returned, until its batch ends")
    lines.append(
        f"intervals hold {ITERATION_SPREAD:.0%} for what kernels do not explain of an iteration and {QUEUE_SPREAD:.0%} of a "
        "first token; how a queue near its limit amplifies them is not in them"
    )
    return tuple(lines)
