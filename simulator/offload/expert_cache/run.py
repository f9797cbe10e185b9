"""Generate with a cache of experts: plan, process, timeline, and what they say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from simulator.engine import Timeline
from simulator.offload.answer import bound_by, by_class, link_table, memory_uses
from simulator.offload.columns import COLUMNS, Rows
from simulator.offload.emit import Emitter
from simulator.offload.expert_cache.metrics import holdings, metrics_of, sizes
from simulator.offload.expert_cache.plan import Plan, make_plan
from simulator.offload.expert_cache.process import Process
from simulator.offload.expert_cache.record import Ran
from simulator.offload.expert_cache.routing import SEQUENCES, TOKENS
from simulator.offload.expert_cache.slots import make_caches, warm
from simulator.strategy import Holding, MemoryUse, Metric, Outcome, Setup, constants_used, pass_errors

SPEEDUPS: Mapping[str, str] = {
    "prefill_speedup": "prefill_time", "encoder_speedup": "encoder_time", "decode_speedup": "time_per_output_token",
    "generation_speedup": "generation_time", "prefill_expert_speedup": "prefill_expert_wait",
    "decode_expert_speedup": "decode_expert_wait",
}  # fmt: skip
"""Over a baseline, by the times that they compare."""
REUSES = (0.0, 0.1, 0.2, 0.4)
"""Of the table that says how much hangs on locality."""
SOURCES = (
    "Song et al. 2024, arXiv:2410.22134 (ProMoE): prediction, prefetch by chunks in two priorities, reordering of experts",
    "Kim et al. 2024, arXiv:2405.18832 (MoNDE): experts computed near the data, hot ones on the accelerator",
    "Tairin et al. 2025, arXiv:2503.06823 (eMoE): a set of experts for several prompts, absent ones replaced",
)


def simulate(setup: Setup, *, detail: bool = False) -> Outcome:
    """Simulate requests one after another: prefill, then decode steps.

    Parameters
    ----------
    setup : Setup
        An expert-cache scenario with its model, hardware and cost model.
    detail : bool
        Nothing more: each expert's chunks are in the timeline anyway.

    Returns
    -------
    Outcome
        Of the mean request. One whose weights and cache exceed a memory is not run: its throughput is 0.

    Raises
    ------
    MemroofError
        For a combination that is refused; see :func:`simulator.offload.expert_cache.plan.make_plan`.
    """
    plan = make_plan(setup)
    outcome = _simulate(setup, plan)
    if not outcome.fits:
        return outcome
    outcome = replace(outcome, tables={**outcome.tables, **_reuse_table(plan)})
    return outcome if plan.strategy.baseline is None else _compared(setup, plan, outcome)


def _simulate(setup: Setup, plan: Plan) -> Outcome:
    needed = resident(plan)
    if any(use.free < 0 for use in needed):
        return _not_run(plan, needed)
    emit, ran = _run(plan)
    return _outcome(setup, plan, emit, ran)


def resident(plan: Plan) -> tuple[MemoryUse, ...]:
    """Return what each tier holds throughout."""
    uses = []
    for tier, pool in plan.tiers.pools.items():
        held = {name: size for at, name, size in holdings(plan) if at == tier and size}
        largest = tuple(Holding(name, size) for name, size in sorted(held.items(), key=lambda item: -item[1]))
        uses.append(
            MemoryUse(pool.name, pool.stores[0].tier, pool.capacity, sum(held.values()), 0.0, held, largest)
        )
    return tuple(uses)


def _run(plan: Plan) -> tuple[Emitter, Ran]:
    """Run the requests, after one that fills the caches."""
    near = () if plan.near is None else (plan.near.channel,)
    emit = Emitter(plan.name, plan.tiers, channels=(plan.fetch, plan.back, *near))
    for tier, category, size in holdings(plan):
        emit.keep(tier, size, category, category)
    router, workload = plan.router(), plan.workload
    steps = len(plan.contexts) if workload.output > 1 else 0
    drawn = [
        router.draw(plan.tokens, plan.decoding, steps, workload.batch) for _ in range(workload.requests + 1)
    ]
    caches = make_caches(plan, router.popularity, plan.strategy.routing.seed)
    warm(plan, caches, drawn[0])
    return emit, Process(plan, emit, drawn[1:], caches, router.popularity).run()


# --- outcome ---------------------------------------------------------------------------------------------------------


def _outcome(setup: Setup, plan: Plan, emit: Emitter, ran: Ran) -> Outcome:
    timeline = ran.timeline
    assert timeline is not None
    rows = _by_pass(emit, timeline, np.array([each.end for each in ran.passes]))
    first = np.array([each.prefill for each in ran.passes])
    steps = plan.workload.output - 1
    prefill = rows[first].mean(axis=0)
    decode = steps * rows[~first].mean(axis=0) if steps else np.zeros(len(COLUMNS))
    errors = pass_errors(setup.cost, plan.typical, plan.spans)
    metrics = metrics_of(plan, ran, (prefill, decode), errors)
    total = metrics["generation_time"].value
    return Outcome(
        headline="generation_throughput",
        metrics=metrics,
        memory=memory_uses(emit, timeline),
        class_times=by_class(prefill + decode),
        bottlenecks=bound_by(prefill + decode),
        total_time=total,
        assumptions=_assumptions(setup, plan),
        sources=SOURCES,
        timeline=timeline,
        devices=plan.strategy.tensor_parallel,
        busy_fraction=sum(each.computing for each in ran.passes) / ran.passes[-1].end,
        tables=_tables(plan, emit, ran),
        class_errors=errors,
        phases={"prefill": bound_by(prefill)} | ({"decode": bound_by(decode)} if steps else {}),
    )


def _compared(setup: Setup, plan: Plan, outcome: Outcome) -> Outcome:
    """Run the baseline too, and add how many times as long it takes."""
    scenario = setup.scenario.model_copy(update={"strategy": plan.strategy.alternative()})
    against_setup = replace(setup, scenario=scenario)
    other = _simulate(against_setup, make_plan(against_setup))
    found = dict(outcome.metrics)
    for name, key in SPEEDUPS.items():
        if key in found and key in other.metrics:
            own, against = found[key], other.metrics[key]
            error = math.hypot(own.error, against.error)
            label = f"times as fast as the baseline: {against.label}"
            if own.value:
                found[name] = Metric(label, against.value / own.value, "ratio", error, "higher")
            found[f"baseline_{key}"] = replace(against, label=f"baseline's {against.label}")
    for key in (
        "prefill_expert_wait_share",
        "decode_expert_wait_share",
        "prefill_hit_rate",
        "decode_hit_rate",
    ):
        if key in other.metrics:
            found[f"baseline_{key}"] = replace(
                other.metrics[key], label=f"baseline's {other.metrics[key].label}"
            )
    note = "the baseline runs the same requests with the same routing"
    if not other.fits:
        note = "the baseline does not fit, and is not compared with"
    return replace(outcome, metrics=found, assumptions=(*outcome.assumptions, note))


def _by_pass(emit: Emitter, timeline: Timeline, ends: Rows) -> Rows:
    """Return the seconds of each pass along the critical path by columns; shape (passes, columns)."""
    path = timeline.critical_path().tasks
    start, end = timeline.start[path], timeline.end[path]
    shares = np.array([emit.shares[task] for task in path.tolist()])
    rows = np.zeros((len(ends), len(COLUMNS)))
    waiting = COLUMNS.index("waiting")
    for index, high in enumerate(ends.tolist()):
        low = float(ends[index - 1]) if index else 0.0
        at, to = np.searchsorted(end, low, "right"), np.searchsorted(start, high, "left")
        seconds = np.maximum(np.minimum(end[at:to], high) - np.maximum(start[at:to], low), 0.0)
        rows[index] = seconds @ shares[at:to]
        idle = (high - low) - float(seconds.sum())
        if idle > 1e-9 * (high - low):
            rows[index, waiting] += idle
    return rows


def _not_run(plan: Plan, memory: Sequence[MemoryUse]) -> Outcome:
    metrics = {
        "generation_throughput": Metric(
            "output tokens per second, prefill included", 0.0, "1/s", 0.0, "higher"
        ),
        **sizes(plan),
    }
    note = "not run: weights, expert slots and KV cache exceed a memory"
    return Outcome(
        "generation_throughput", metrics, tuple(memory), {}, {}, 0.0, (note,), SOURCES, busy_fraction=0.0
    )


# --- tables ----------------------------------------------------------------------------------------------------------


def _tables(plan: Plan, emit: Emitter, ran: Ran) -> dict[str, Mapping[str, Any]]:
    later = [each for each in ran.passes if not each.prefill]
    found: dict[str, Mapping[str, Any]] = {"links": link_table(emit, ran.passes[-1].end)}
    if later:
        found["steps"] = {
            "request": np.repeat(np.arange(plan.workload.requests), len(plan.contexts)),
            "context": np.tile(plan.contexts, plan.workload.requests),
            "time": np.array([each.end - each.begin for each in later]),
            "expert_wait": np.array([each.end - each.begin - each.computing for each in later]),
        }  # fmt: skip
    return found


def _reuse_table(plan: Plan) -> dict[str, Mapping[str, Any]]:
    """Return what hangs on locality: the hit rate of decode by the probability that a token keeps an expert."""
    routing = plan.strategy.routing
    if (
        routing.trace is not None
        or routing.hit_rate is not None
        or plan.workload.output < 2
        or not any(plan.slots)
    ):
        return {}
    rates = [_decode_hits(_with_reuse(plan, reuse)) for reuse in REUSES]
    return {"reuse": {"reuse": np.array(REUSES), "decode_hit_rate": np.array(rates)}}


def _with_reuse(plan: Plan, reuse: float) -> Plan:
    """Return a plan with another probability that a token keeps an expert of the one before."""
    routing = plan.strategy.routing.model_copy(update={"reuse": reuse})
    return replace(plan, strategy=plan.strategy.model_copy(update={"routing": routing}))


def _decode_hits(plan: Plan) -> float:
    """Return the share of experts that decode steps find in the caches alone, without prefetch and without time."""
    router = plan.router()
    caches = make_caches(plan, router.popularity, plan.strategy.routing.seed)
    hits = misses = 0
    for number in range(2):
        drawn = router.draw(plan.tokens, plan.decoding, len(plan.contexts), plan.workload.batch)
        if not number:
            warm(plan, caches, drawn)
            continue
        warm(plan, caches, replace(drawn, steps=drawn.steps[:0]))
        before = sum(cache.hits for cache in caches), sum(cache.misses for cache in caches)
        warm(plan, caches, replace(drawn, prompt=np.zeros_like(drawn.prompt)))
        hits += sum(cache.hits for cache in caches) - before[0]
        misses += sum(cache.misses for cache in caches) - before[1]
    return hits / max(hits + misses, 1)


def _assumptions(setup: Setup, plan: Plan) -> tuple[str, ...]:
    strategy, workload = plan.strategy, plan.workload
    routing = strategy.routing
    found = [
        constants_used(setup.cost.calibration),
        f"{workload.requests} requests one after another, each with routing of its own; one before them fills the cache",
    ]
    if routing.trace is not None:
        found.append(f"routing as recorded in {routing.trace}")
    elif routing.hit_rate is not None:
        found.append(f"each expert is resident with probability {routing.hit_rate:g}")
    else:
        law = f"Zipf's law of exponent {routing.skew:g}" if routing.skew else "equal popularity"
        found.append(
            f"experts of {law}; a token keeps one of the token before with probability {routing.reuse:g}"
        )
    if len(plan.contexts) < workload.output - 1:
        found.append(
            f"{len(plan.contexts)} of {workload.output - 1} decode steps are simulated, spread evenly"
        )
    if routing.trace is None and (workload.batch > SEQUENCES or workload.prompt > TOKENS):
        found.append(
            f"routing of {SEQUENCES} sequences and {TOKENS:,} tokens of a prompt at most is drawn, the rest is like it"
        )
    if strategy.execution == "eager":
        found.append(
            "operators are issued one by one, each expert's own; where that is longer, the accelerator waits for it"
        )
    if plan.near is not None:
        found.append(f"experts on {plan.near.device.name} are a roofline over its peak and its memory")
    if strategy.misses == "substitute":
        found.append("an absent expert is replaced by a resident one: the output is not exact")
    if strategy.prefetch is not None:
        found.append(f"the first {strategy.prefetch.lead} MoE layers of a pass are not predicted")
    if strategy.predicted is not None:
        found.append("the set is loaded before the requests; its load is a figure of its own")
    return tuple(found)
