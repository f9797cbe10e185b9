"""Generate a block of sequences: plan, program, timeline, and what they say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf
from typing import Any

import numpy as np

from simulator.cost import ALONE, relative_error
from simulator.engine import execute
from simulator.graph import Shape, build
from simulator.offload.columns import BOTTLENECKS
from simulator.offload.tiers import GPU
from simulator.offload.zigzag.account import Account, Array, sample_steps
from simulator.offload.zigzag.lower import lower
from simulator.offload.zigzag.optimise import again, choose, placement_table, sentences, worth_table, worths
from simulator.offload.zigzag.plan import PREFILL, Plan, make_plan
from simulator.specs import OPERATOR_CLASSES, OperatorClass, ZigzagScenario
from simulator.strategy import Holding, MemoryUse, Metric, Outcome, Setup, constants_used, pass_errors

ATTEMPTS = 6
"""Placements that are tried where buffers make one too large."""
MARGIN = 1e-3
"""Share of a capacity that is kept free beyond what they needed."""
FULL_TASKS = 25_000
"""Tasks up to which every decode step is simulated; of longer outputs a sample is."""
SOURCES = (
    "Sheng et al. 2023, arXiv:2303.06865 (FlexGen): zig-zag block schedule, placement shares, attention on the CPU",
    "Aminabadi et al. 2022, arXiv:2207.00032 (ZeRO-Inference): weights streamed layer by layer",
)


def simulate(setup: Setup, *, detail: bool = False) -> Outcome:
    """Simulate the generation of one block of sequences, prefill and decode.

    Parameters
    ----------
    setup : Setup
        An offload scenario with its model, hardware and cost model.
    detail : bool
        Simulate every decode step, however many there are.

    Returns
    -------
    Outcome
        Of the whole block; one that cannot fit, whatever is overlapped, is not run: its throughput is 0.

    Raises
    ------
    MemroofError
        For a combination that is refused; see :func:`simulator.offload.zigzag.plan.make_plan`.
    """
    scenario = setup.scenario
    if isinstance(scenario, ZigzagScenario) and scenario.strategy.baseline:
        return _compared(setup, scenario, detail=detail)
    if isinstance(scenario, ZigzagScenario) and scenario.strategy.optimised:
        return _optimised(setup, scenario.strategy.objective, detail=detail)
    plan = make_plan(setup)
    needed = resident(plan)
    if any(use.free < 0 for use in needed):
        return _not_run(plan, needed)
    steps, weights = sample_steps(plan.computation(), None if detail else _affordable(plan))
    lowered = lower(plan, steps)
    return _outcome(setup, plan, Account(lowered, execute(lowered.program), weights, plan.steps))


def _compared(setup: Setup, scenario: ZigzagScenario, *, detail: bool) -> Outcome:
    """Run a scenario and what it is compared with."""
    other = scenario.strategy.compared
    assert other is not None  # or the scenario had been refused
    own = scenario.strategy.model_copy(update={"baseline": {}})
    first, second = (
        simulate(replace(setup, scenario=scenario.model_copy(update={"strategy": strategy})), detail=detail)
        for strategy in (own, other)
    )
    found, before = (outcome.metrics["generation_throughput"] for outcome in (first, second))
    changed = ", ".join(f"{key} {value}" for key, value in scenario.strategy.baseline.items())
    if not found.value or not before.value:
        return first
    speedup = Metric(
        f"throughput over that with {changed}", found.value / before.value, "ratio", 0.0, "higher"
    )
    return replace(first, metrics={**first.metrics, "speedup": speedup})


def _optimised(setup: Setup, objective: str, *, detail: bool) -> Outcome:
    """Run the best placement; where the engine finds that buffers need more than the program knew, find another."""
    short: dict[str, float] = {}
    choice = choose(setup)
    for _ in range(ATTEMPTS):
        plan = make_plan(choice.setup)
        lacking = {} if choice.placing.shortage else _lacking(plan)
        if not lacking:
            break
        for tier, size in lacking.items():
            short[tier] = short.get(tier, 0.0) + size + MARGIN * plan.tiers.pools[tier].capacity
        choice = again(setup, choice, short)
    outcome = simulate(choice.setup, detail=detail)
    found = worths(choice, objective)
    tables = {"placement": placement_table(choice, make_plan(choice.setup)), "worth": worth_table(found)}
    tokens = choice.scenario.workload
    expected = tokens.batch * tokens.batches * choice.scenario.strategy.pipeline_parallel * tokens.output
    planned = Metric(
        "output tokens per second that the linear program expects",
        expected / choice.placing.time,
        "1/s",
        0.0,
        "higher",
    )
    return replace(
        outcome,
        metrics={**outcome.metrics, "planned_throughput": planned}
        if objective == "throughput"
        else outcome.metrics,
        assumptions=(*sentences(choice, objective, found), *outcome.assumptions),
        sources=(*outcome.sources, "Sheng et al. 2023, section 4.3: placement by linear program"),
        tables={**outcome.tables, **tables},
    )


def _lacking(plan: Plan) -> dict[str, float]:
    """Return the bytes that tiers lack in the passes that need most: the prefill and the last decode step."""
    lowered = lower(plan, (PREFILL, plan.steps - 1) if plan.steps else (PREFILL,))
    ledger = execute(lowered.program).ledger
    over = {tier: ledger.peak(pool.name).bytes - pool.capacity for tier, pool in plan.tiers.pools.items()}
    return {tier: size for tier, size in over.items() if size > 0.0}


def _affordable(plan: Plan) -> int:
    """Passes that may be simulated in full."""
    streamed = 2 * bool(plan.weights.dram) + 2 * bool(plan.weights.nvme)
    cached = 5 if plan.cpu_attention else 3 * bool(plan.cache.away)
    moved = 2 * bool(plan.hidden.away) + plan.barrier
    return max(
        1, FULL_TASKS // (plan.stages * len(plan.order) * (plan.batches * (1 + cached + moved) + streamed))
    )


# --- memory ----------------------------------------------------------------------------------------------------------


def resident(plan: Plan) -> tuple[MemoryUse, ...]:
    """Return what must stay in each tier to the end, whatever the schedule: weights, and the cache at its fullest."""
    uses = []
    for tier, pool in plan.tiers.pools.items():
        parts = {
            "weights": plan.stored_bytes() * plan.weights.by_tier.get(tier, 0.0),
            "KV cache": plan.cache_bytes() * plan.cache.by_tier.get(tier, 0.0),
            "activations": plan.block
            * plan.hidden_bytes
            * plan.hidden.by_tier.get(tier, 0.0)
            * (tier != GPU),
        }
        held = {name: size for name, size in parts.items() if size}
        largest = tuple(Holding(name, size) for name, size in sorted(held.items(), key=lambda item: -item[1]))
        uses.append(
            MemoryUse(pool.name, pool.stores[0].tier, pool.capacity, sum(held.values()), 0.0, held, largest)
        )
    return tuple(uses)


def _memory(plan: Plan, account: Account) -> tuple[MemoryUse, ...]:
    uses = []
    for pool in plan.tiers.pools.values():
        peak = account.timeline.ledger.peak(pool.name)
        largest = tuple(Holding(name, size) for name, size in peak.holders)
        moment = account.real(peak.time)
        uses.append(
            MemoryUse(
                pool.name, pool.stores[0].tier, pool.capacity, peak.bytes, moment, peak.by_category, largest
            )
        )
    return tuple(uses)


# --- outcome ---------------------------------------------------------------------------------------------------------


def _outcome(setup: Setup, plan: Plan, account: Account) -> Outcome:
    weights, rows = account.weights, account.rows
    prefill, decode = plan.fill * rows[0], weights[1:] @ rows[1:]
    times = plan.fill * float(account.times[0]), float(weights[1:] @ account.times[1:])
    total, memory = sum(times), _memory(plan, account)
    bottlenecks = {
        name: float(value) for name, value in zip(BOTTLENECKS, prefill + decode, strict=False) if value
    }
    errors = _errors(setup, plan)
    return Outcome(
        headline="generation_throughput",
        metrics=_metrics(plan, (prefill, decode), times, errors),
        memory=memory,
        class_times={name: value for name, value in _classes(prefill + decode).items() if value},
        bottlenecks=bottlenecks,
        total_time=total,
        assumptions=_assumptions(setup, plan, account, fits=all(use.free >= 0 for use in memory)),
        sources=SOURCES,
        timeline=account.timeline,
        devices=plan.stages,
        busy_fraction=account.computing() / total,
        tables=_tables(plan, account, total),
        class_errors=errors,
    )


def _errors(setup: Setup, plan: Plan) -> dict[OperatorClass, float]:
    """Errors of class sums, from a decode step in the middle of the output."""
    shape = Shape(plan.batch, 1, plan.prompt + plan.steps // 2, "decode")
    return pass_errors(setup.cost, build(setup.model, shape, numerics=plan.numerics), ALONE)


def _tables(plan: Plan, account: Account, total: float) -> dict[str, dict[str, Any]]:
    links = account.links(plan.channels)
    size = np.array(list(links.values()))
    bandwidth = np.array([link[1] for link in links])
    steps = np.arange(plan.steps)
    return {
        "links": {
            "link": [name for name, _ in links], "bytes": size, "bandwidth": bandwidth,
            "achieved_bandwidth": size / total, "share_of_bandwidth": size / total / bandwidth,
        },
        "steps": {"step": steps, "context": plan.prompt + steps, "time": account.step_times},
    }  # fmt: skip


def _metrics(
    plan: Plan, rows: tuple[Array, Array], times: tuple[float, float], errors: Mapping[OperatorClass, float]
) -> dict[str, Metric]:
    whole, first, later = (float(relative_error(_classes(row), errors)) for row in (rows[0] + rows[1], *rows))
    (prefill_time, decode_time), total = times, sum(times)
    block, steps = plan.sequences, plan.steps
    metrics = {
        "generation_throughput": Metric(
            "output tokens per second, prefill included", block * plan.output / total, "1/s", whole, "higher"
        ),
        "generation_time": Metric("time of the whole block", total, "seconds", whole, "lower"),
        "time_to_first_token": Metric(
            "time to the block's first tokens", prefill_time, "seconds", first, "lower"
        ),
        "prefill_time": Metric("prefill time", prefill_time, "seconds", first, "lower"),
    }
    if steps:
        metrics |= {
            "decode_time": Metric("decode time", decode_time, "seconds", later, "lower"),
            "decode_throughput": Metric(
                "output tokens per second of decode", block * steps / decode_time, "1/s", later, "higher"
            ),
            "time_per_output_token": Metric(
                "time per decode step", decode_time / steps, "seconds", later, "lower"
            ),
        }
    return metrics | _exact_metrics(plan)


def _exact_metrics(plan: Plan) -> dict[str, Metric]:
    whose, held = ("the model", "the block") if plan.stages == 1 else ("a stage", "a stage's blocks")
    return {
        "block_size": Metric("sequences generated together", plan.sequences, "count"),
        "weight_bytes": Metric(f"weights of {whose}", plan.stored_bytes(), "bytes"),
        "kv_cache_bytes": Metric(f"KV cache of {held} at its fullest", plan.cache_bytes(), "bytes"),
    }


def _not_run(plan: Plan, memory: Sequence[MemoryUse]) -> Outcome:
    metrics = {
        "generation_throughput": Metric(
            "output tokens per second, prefill included", 0.0, "1/s", 0.0, "higher"
        ),
        **_exact_metrics(plan),
    }
    note = "not run: weights and KV cache alone exceed a memory"
    return Outcome(
        "generation_throughput", metrics, tuple(memory), {}, {}, 0.0, (note,), SOURCES, busy_fraction=0.0
    )


def _classes(row: Array) -> dict[OperatorClass, float]:
    return dict(zip(OPERATOR_CLASSES, row[len(BOTTLENECKS) :].tolist(), strict=True))


def _assumptions(setup: Setup, plan: Plan, account: Account, *, fits: bool) -> tuple[str, ...]:
    prefetch, on_cpu = plan.prefetch, plan.cpu_attention
    ahead = "weights are" if plan.ahead_bytes == inf else f"{plan.ahead_bytes / 1e6:.0f} MB of weights are"
    found = [
        constants_used(setup.cost.calibration),
        f"one block of {plan.block} sequences, {plan.batches} GPU batch{'es' * (plan.batches > 1)} of {plan.batch}, all prompts "
        f"of {plan.prompt} tokens",
        "nothing overlaps: each copy and each computation waits for the one before"
        if not prefetch
        else f"{ahead} fetched {prefetch} layer{'s' * (prefetch > 1)} ahead, the cache one batch ahead",
        "shares of a placement apply to every layer alike; embedding and head are streamed like layers",
        "copies are as large as a layer's share; "
        + (
            f"those of {', '.join(sorted(plan.pageable))} in DRAM that is not pinned"
            if plan.pageable
            else "all are pinned"
        ),
    ]
    if on_cpu:
        found.append(
            "attention on the CPU is a roofline over its vector peak and its DRAM, and the GPU waits for it batch by batch"
        )
    if plan.weights.nvme + plan.cache.nvme:
        found.append(
            "reads from flash are sequential" + (", staged in DRAM layer by layer" if plan.staged else "")
        )
    if plan.stages > 1:
        found.append(
            f"{plan.stages} stages of layers, a block of {plan.block} sequences in flight for each; all are as slow as the last, "
            "and hidden states between nodes take no time"
        )
    if setup.model.moe and plan.weights.away:
        found.append("all experts of a layer are fetched, whichever are chosen")
    if len(account.weights) <= plan.steps:
        simulated = np.count_nonzero(account.weights[1:])
        found.append(
            f"{simulated} of {plan.steps} decode steps are simulated, those between interpolated; the timeline shows these"
        )
    if not fits:
        found.append("times are as if the memories that are too small were large enough")
    return tuple(found)
