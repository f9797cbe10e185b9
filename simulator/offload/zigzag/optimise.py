"""The best placement of a block by linear program, over a grid of blocks if asked, and what more of each resource would give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from simulator.offload.placement import Placing, Problem, place
from simulator.offload.tiers import GPU
from simulator.offload.zigzag.plan import Plan, make_plan
from simulator.offload.zigzag.problem import TIERS, build_problem, shared_links, tier_of, used_channels
from simulator.specs import ZigzagScenario
from simulator.specs.zigzag_scenario import Placement, ZigzagStrategy, ZigzagWorkload
from simulator.strategy import Setup

MORE_BYTES = 10e9
MORE_RATE = 0.1
"""What the worth of a memory [B] and of a lane (share of its rate) is told for."""
LABELS: Mapping[str, str] = {"gpu": "GPU memory", "dram": "DRAM", "cxl": "CXL memory", "nvme": "flash"}
WORTH_TELLING = 5e-4
"""Gain below which a resource is left out."""


@dataclass(frozen=True, slots=True)
class Worth:
    """What more of a resource gives.

    Attributes
    ----------
    resource : str
        A tier, or a lane.
    more : float
        Bytes, or bytes (or seconds of work) a second, that it has more.
    gain : float
        Relative gain of what is optimised, solved again with that.
    price : float
        Seconds that one more byte, or unit a second, saves: the dual at the optimum.
    """

    resource: str
    more: float
    gain: float
    price: float


@dataclass(frozen=True, slots=True)
class Choice:
    """A block and its placement."""

    setup: Setup
    """The scenario with the placement written out."""
    problem: Problem
    placing: Placing
    tried: tuple[tuple[int, int, float], ...]
    """Batch, batches and expected value (tokens per second, or seconds of a decode step) of each block."""

    @property
    def scenario(self) -> ZigzagScenario:
        """The scenario with the placement written out."""
        assert isinstance(self.setup.scenario, ZigzagScenario)
        return self.setup.scenario


def choose(setup: Setup) -> Choice:
    """Return the best block of the grid of a scenario that leaves placements open, with its best placement."""
    scenario = setup.scenario
    assert isinstance(scenario, ZigzagScenario)
    objective = scenario.strategy.objective
    best: tuple[float, ZigzagScenario, Problem, Placing] | None = None
    tried = []
    for workload in _grid(scenario.workload, scenario.strategy):
        candidate = scenario.model_copy(update={"workload": workload})
        problem = build_problem(replace(setup, scenario=candidate), {})
        placing = place(problem)
        value = _value(candidate, placing)
        tried.append((workload.batch, workload.batches, value))
        if best is None or (value > best[0] if objective == "throughput" else value < best[0]):
            best = (value, candidate, problem, placing)
    assert best is not None  # a grid has one block at least
    _, candidate, problem, placing = best
    return Choice(replace(setup, scenario=written(candidate, placing)), problem, placing, tuple(tried))


def again(setup: Setup, choice: Choice, short: Mapping[str, float]) -> Choice:
    """Return the best placement of the block that was chosen, where tiers keep bytes free that buffers turned out to need."""
    scenario = setup.scenario
    assert isinstance(scenario, ZigzagScenario)
    candidate = scenario.model_copy(update={"workload": choice.scenario.workload})
    problem = build_problem(replace(setup, scenario=candidate), short)
    placing = place(problem)
    return Choice(replace(setup, scenario=written(candidate, placing)), problem, placing, choice.tried)


def written(scenario: ZigzagScenario, placing: Placing) -> ZigzagScenario:
    """Return the scenario with the placement that was found in place of the word."""
    strategy = scenario.strategy
    update: dict[str, object] = {"objective": "throughput", "search": None}
    for key in strategy.optimised:
        shares = {
            tier: round(share, 6) for tier, share in placing.shares[key].items() if tier != GPU and share
        }
        most = sum(shares.values())
        update[key] = Placement(**{tier: min(share, share / most) for tier, share in shares.items()})
    # what was to be pageable may not lie in DRAM now
    placed = {key: update.get(key, getattr(strategy, key)) for key in strategy.pageable}
    update["pageable"] = tuple(
        key for key, where in placed.items() if isinstance(where, Placement) and where.dram
    )
    kv = update.get("kv")
    if strategy.attention == "cpu" and isinstance(kv, Placement) and not any(kv.away.values()):
        update["attention"] = "gpu"
    return scenario.model_copy(update={"strategy": strategy.model_copy(update=update)})


def worths(choice: Choice, objective: str) -> list[Worth]:
    """Return what more of each resource gives, the most first; none where nothing fits."""
    problem, placing = choice.problem, choice.placing
    if placing.shortage:
        return []
    found = []
    for tier in TIERS:
        rows = [name for name in problem.capacity if tier_of(name) == tier]
        price = sum(placing.memory_price.get(row, 0.0) for row in rows)
        if rows and price > 0.0:
            grown = {name: size + MORE_BYTES * (name in rows) for name, size in problem.capacity.items()}
            gain = _gain(placing, place(replace(problem, capacity=grown)), objective)
            found.append(Worth(tier, MORE_BYTES, gain, price))
    for lanes in _widened_together(choice):
        priced = [lane for lane in lanes if placing.lane_price.get(lane, 0.0) > 0.0]
        if priced:
            grown = {name: rate * (1.0 + MORE_RATE * (name in lanes)) for name, rate in problem.rate.items()}
            gain = _gain(placing, place(replace(problem, rate=grown)), objective)
            price = sum(placing.lane_price[lane] for lane in priced)
            found.append(Worth(priced[0], problem.rate[priced[0]] * MORE_RATE, gain, price))
    return sorted((each for each in found if each.gain > WORTH_TELLING), key=lambda each: -each.gain)


def sentences(choice: Choice, objective: str, found: list[Worth]) -> list[str]:
    """Say what was chosen, what binds it, and what more would give."""
    placing = choice.placing
    shares = {key: placing.shares[key] for key in ("weights", "kv", "hidden") if key in placing.shares}
    text = "; ".join(
        f"{key} "
        + ", ".join(f"{share:.0%} {tier}" for tier, share in by_tier.items() if share > WORTH_TELLING)
        for key, by_tier in shares.items()
    )
    workload = choice.scenario.workload
    block = (
        f", best of {len(choice.tried)} blocks: {workload.batches} of {workload.batch}"
        if len(choice.tried) > 1
        else ""
    )
    lines = [f"placement by linear program for {objective}{block}: {text}"]
    if placing.shortage:
        lacking = ", ".join(
            f"{size / 1e9:.1f} GB of {LABELS[tier_of(name)]} in {name.rpartition(' ')[2]}"
            for name, size in placing.shortage.items()
        )
        return [*lines, f"no placement holds everything: it lacks {lacking}"]
    bound = [f"{phase} by {' and '.join(lanes[:2])}" for phase, lanes in placing.busiest.items() if lanes]
    lines.append(f"bound in {', in '.join(bound)}" if bound else "nothing binds")
    told = [f"10 GB more {LABELS[w.resource]} gives {w.gain:.1%}" for w in found if w.more == MORE_BYTES]
    told += [f"10 % more of {w.resource} gives {w.gain:.1%}" for w in found if w.more != MORE_BYTES]
    lines.append("; ".join(told) if told else "more of any single memory or link gives nothing")
    return lines


def _widened_together(choice: Choice) -> list[tuple[str, ...]]:
    """Return lanes by what they are part of: channels with the shared link that is as narrow as they are, others alone."""
    plan = make_plan(choice.setup)
    shared, owner = shared_links(plan), {}
    for channel in used_channels(plan):
        width = min(bandwidth for _, bandwidth in channel.links)
        own = [
            name for name, bandwidth in channel.links if bandwidth == width and (name, bandwidth) in shared
        ]
        owner[channel.name] = own[0] if own else channel.name
    groups: dict[str, list[str]] = {}
    for lane in choice.problem.rate:
        groups.setdefault(owner.get(lane, lane), []).append(lane)
    return [tuple(lanes) for lanes in groups.values()]


def _gain(before: Placing, after: Placing, objective: str) -> float:
    if objective == "latency":
        return before.phases["decode"] / after.phases["decode"] - 1.0 if after.phases["decode"] else 0.0
    return before.time / after.time - 1.0


def _value(scenario: ZigzagScenario, placing: Placing) -> float:
    """Expected tokens per second, or seconds of a decode step."""
    workload, strategy = scenario.workload, scenario.strategy
    if strategy.objective == "latency":
        return float("inf") if placing.shortage else placing.phases.get("decode", placing.time)
    tokens = workload.batch * workload.batches * strategy.pipeline_parallel * workload.output
    return 0.0 if placing.shortage else tokens / placing.time


def _grid(workload: ZigzagWorkload, strategy: ZigzagStrategy) -> Iterator[ZigzagWorkload]:
    search = strategy.search
    for batch in (search.batch if search else ()) or (workload.batch,):
        for batches in (search.batches if search else ()) or (workload.batches,):
            yield workload.model_copy(update={"batch": batch, "batches": batches})


def placement_table(choice: Choice, plan: Plan) -> dict[str, object]:
    """Return shares and bytes by class of tensors and tier, as columns."""
    size = {
        "weights": plan.stored_bytes(),
        "kv": plan.cache_bytes(),
        "hidden": plan.block * plan.prompt * plan.hidden_bytes,
    }
    rows = [
        (key, tier, share, share * size[key])
        for key, split in plan.splits.items()
        for tier, share in split.by_tier.items()
        if share
    ]
    return {
        "tensors": [row[0] for row in rows], "tier": [row[1] for row in rows],
        "share": np.array([row[2] for row in rows]), "bytes": np.array([row[3] for row in rows]),
    }  # fmt: skip


def worth_table(found: list[Worth]) -> dict[str, object]:
    """Return what more of each resource gives, as columns."""
    return {
        "resource": [each.resource for each in found],
        "more": np.array([each.more for each in found]),
        "gain": np.array([each.gain for each in found]),
        "seconds_saved_per_unit": np.array([each.price for each in found]),
    }
