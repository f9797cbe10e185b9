"""An iteration of training by task swapping: layers, search, program, timeline, and what they say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from simulator.cost import ALONE, relative_error
from simulator.offload.answer import bound_by, by_class, critical, link_table, memory_uses
from simulator.offload.columns import Rows
from simulator.offload.task_packs.layers import (
    Layers,
    known_micro_batches,
    measured_layers,
    priced_layers,
    seconds,
)
from simulator.offload.task_packs.search import Found, samples_of, search
from simulator.offload.task_packs.server import Server, alone, divided, find_server
from simulator.offload.task_packs.tasks import BACKWARD, FORWARD, reserved_memory
from simulator.offload.task_packs.virtual import (
    Demand,
    demand,
    run_virtual,
    update_rows,
    virtual_time,
)
from simulator.offload.tiers import GPU
from simulator.specs import MemroofError, OperatorClass, TaskPacksScenario
from simulator.strategy import Holding, MemoryUse, Metric, Outcome, Setup, constants_used, pass_errors

HEADLINE = "training_throughput"
SOURCES = (
    "Li et al. 2022, VLDB 15(11), doi 10.14778/3551793.3551828 (Harmony): packs, input-batch grouping, search",
    "github.com/msr-fiddle/harmony, commit 5fd838f: order of tasks, dependencies and constants of its event simulator",
    "Li et al. 2021, HotOS (Doing more with less): volume of swaps of virtualised memory",
)


def scenario_of(setup: Setup) -> TaskPacksScenario:
    """Return the scenario; MemroofError if it is one of another method."""
    if not isinstance(setup.scenario, TaskPacksScenario):
        raise MemroofError(f"{setup.scenario.name} is no scenario of task-packs")
    return setup.scenario


def simulate(setup: Setup, *, detail: bool = False) -> Outcome:
    """Simulate one iteration over a minibatch with the fastest schedule that fits.

    Parameters
    ----------
    setup : Setup
        A scenario of task-packs with its model, or its measured layers.
    detail : bool
        Without effect: every task is simulated.

    Returns
    -------
    Outcome
        Of one iteration; where no packs fit nothing is run, and the throughput is 0.

    Raises
    ------
    MemroofError
        If the minibatch cannot be cut as asked, or the hardware has no DRAM.
    """
    scenario = scenario_of(setup)
    layers = find_layers(setup)
    whole = find_server(setup.hardware, setup.cost.calibration, scenario.strategy)
    single = alone(whole)
    capacity = single.ranks[0].pools[GPU].capacity
    share = scenario.workload.minibatch // whole.gpus
    updates = update_rows(layers, setup.cost)
    if scenario.strategy.mode == "virtualised":
        samples_of(scenario, whole.gpus)
        base = _virtual(
            setup, layers, single, capacity, share, updates, scenario.strategy.backward_micro_batch
        )
        return (
            _not_run(setup, layers, capacity, whole.gpus)
            if base is None
            else _on_demand(setup, layers, single, base[0], updates)
        )
    several = divided(whole) if scenario.strategy.link_sharing == "even" else whole
    found = search(scenario, layers, several if scenario.strategy.mode == "pipeline" else single, capacity)
    if found is None:
        return _not_run(setup, layers, capacity, whole.gpus)
    even = share * whole.gpus == scenario.workload.minibatch
    asked = scenario.strategy.baseline_micro_batch
    base = _virtual(setup, layers, single, capacity, share, updates, asked) if even else None
    return _outcome(setup, layers, whole.gpus, found, base)


def find_layers(setup: Setup) -> Layers:
    """Return the measured layers of a scenario, or those of its model as the cost model prices them."""
    scenario = scenario_of(setup)
    if setup.layers is not None:
        return measured_layers(setup.layers)
    sequence = scenario.workload.sequence or 1
    rests_on = setup.cost, setup.model, sequence, scenario.strategy
    kept = setup.memo.get("task-packs layers")
    if kept is None or kept[0][0] is not setup.cost or kept[0][1:] != rests_on[1:]:
        kept = rests_on, priced_layers(setup.model, sequence, setup.cost, scenario.strategy)
        setup.memo["task-packs layers"] = kept
    found: Layers = kept[1]
    return found


def _virtual(
    setup: Setup,
    layers: Layers,
    single: Server,
    capacity: float,
    share: int,
    updates: Rows,
    asked: int | None,
) -> tuple[Demand, float] | None:
    """Return the fastest micro-batch size of virtualised data parallelism, and its seconds."""
    best: tuple[Demand, float] | None = None
    own = scenario_of(setup).strategy.mode == "virtualised"
    key = "strategy.backward_micro_batch" if own else "strategy.baseline_micro_batch"
    for size in known_micro_batches(layers, share, BACKWARD, asked, key):
        if size > layers.largest[FORWARD]:
            continue
        found = demand(layers, capacity, size, share // size)
        if found is None:
            break
        time = virtual_time(found, layers, single, updates)
        if best is None or time < best[1]:
            best = found, time
    return best


# --- outcomes --------------------------------------------------------------------------------------------------------


def _outcome(
    setup: Setup, layers: Layers, gpus: int, found: Found, base: tuple[Demand, float] | None
) -> Outcome:
    lowered, timeline = found.lowered, found.timeline
    row = critical(lowered.emit, timeline)
    errors = _errors(setup, layers, found.schedule.backward_micro_batch)
    error = float(relative_error(by_class(row), {**setup.cost.calibration.error, **errors}))
    twins = gpus // len(lowered.moves.computing)
    swapped = {name: size * twins for name, size in lowered.moves.swapped.items()}
    metrics = _metrics(setup, timeline.makespan, error) | _schedule_metrics(layers, found)
    metrics |= _swap_metrics(swapped, layers)
    metrics["peer_bytes"] = Metric(
        "bytes between GPUs in an iteration", lowered.moves.peer_bytes * twins, "bytes"
    )
    if lowered.moves.message_bytes:
        metrics["message_bytes"] = Metric(
            "bytes passed on between processes in an iteration", lowered.moves.message_bytes, "bytes"
        )
    if base is not None:
        metrics |= _compared(base, gpus, sum(swapped.values()), timeline.makespan, error)
    memory = memory_uses(lowered.emit, timeline)
    return Outcome(
        headline=HEADLINE,
        metrics=metrics,
        memory=memory,
        class_times=by_class(row),
        bottlenecks=bound_by(row),
        total_time=timeline.makespan,
        assumptions=_assumptions(setup, layers, found, gpus),
        sources=SOURCES,
        timeline=timeline,
        devices=gpus,
        busy_fraction=sum(lowered.moves.computing) / len(lowered.moves.computing) / timeline.makespan,
        tables={
            "packs": _packs(layers, found),
            "schedules": _tried(found),
            "links": link_table(lowered.emit, timeline.makespan),
        },
        class_errors=errors,
    )


def _on_demand(setup: Setup, layers: Layers, single: Server, found: Demand, updates: Rows) -> Outcome:
    emit, timeline, computing = run_virtual(setup.scenario.name, found, layers, single, updates)
    row = critical(emit, timeline)
    errors = _errors(setup, layers, found.micro_batch)
    error = float(relative_error(by_class(row), {**setup.cost.calibration.error, **errors}))
    swapped = {name: size * single.gpus for name, size in found.swapped.items()}
    metrics = _metrics(setup, timeline.makespan, error) | _swap_metrics(swapped, layers)
    metrics["backward_micro_batch"] = Metric("micro-batch", found.micro_batch, "count")
    return Outcome(
        headline=HEADLINE,
        metrics=metrics,
        memory=memory_uses(emit, timeline),
        class_times=by_class(row),
        bottlenecks=bound_by(row),
        total_time=timeline.makespan,
        assumptions=(
            *_common(setup, layers),
            "tensors are swapped on demand, the least recently used out first, and every eviction writes back",
            "copies and computation take turns; each layer keeps its input for the backward pass and computes the rest again",
            "weights, gradients and optimizer states are updated on the GPU, layer by layer",
        ),
        sources=SOURCES,
        timeline=timeline,
        devices=single.gpus,
        busy_fraction=computing / timeline.makespan,
        tables={"links": link_table(emit, timeline.makespan)},
        class_errors=errors,
    )


def _not_run(setup: Setup, layers: Layers, capacity: float, gpus: int) -> Outcome:
    """Return what one sample needs of the largest layer alone, which is more than there is."""
    scenario = scenario_of(setup)
    edges = np.arange(layers.count + 1)
    asked = {FORWARD: scenario.strategy.forward_micro_batch, BACKWARD: scenario.strategy.backward_micro_batch}
    needs = {
        (which, layer): float(size)
        for which in (FORWARD, BACKWARD)
        for layer, size in enumerate(layers.at(asked[which] or 1).pack_memory(which, edges))
    }
    (which, layer), most = max(needs.items(), key=lambda item: item[1])
    limit = min(capacity, scenario.strategy.memory_limit or capacity)
    store = setup.hardware.memory
    name = f"{which} task of {layers.names[layer]} alone"
    # layers that fit one by one do not fit with the buffers beside them, or in as few packs as are asked for
    peak = max(most, limit + 1.0)
    use = MemoryUse(store.name, store.tier, limit, peak, 0.0, {"task": peak}, (Holding(name, most),))
    metrics = {HEADLINE: Metric("samples per second", 0.0, "1/s", 0.0, "higher")}
    note = "not run: no packs fit the memory that they may take"
    return Outcome(HEADLINE, metrics, (use,), {}, {}, 0.0, (note,), SOURCES, devices=gpus, busy_fraction=0.0)


# --- metrics ---------------------------------------------------------------------------------------------------------


def _metrics(setup: Setup, time: float, error: float) -> dict[str, Metric]:
    workload = scenario_of(setup).workload
    metrics = {
        HEADLINE: Metric("samples per second", workload.minibatch / time, "1/s", error, "higher"),
        "iteration_time": Metric("time of an iteration", time, "seconds", error, "lower"),
    }
    if workload.sequence:
        tokens = workload.minibatch * workload.sequence / time
        metrics["tokens_per_second"] = Metric("tokens per second", tokens, "1/s", error, "higher")
    return metrics


def _schedule_metrics(layers: Layers, found: Found) -> dict[str, Metric]:
    schedule = found.schedule
    reserved = reserved_memory(layers, schedule)
    return {
        "forward_micro_batch": Metric(
            "micro-batch of the forward pass", schedule.forward_micro_batch, "count"
        ),
        "forward_packs": Metric("packs of the forward pass", len(schedule.forward_packs), "count"),
        "backward_micro_batch": Metric(
            "micro-batch of the backward pass", schedule.backward_micro_batch, "count"
        ),
        "backward_packs": Metric("packs of the backward pass", len(schedule.backward_packs), "count"),
        "reserved_memory": Metric(
            "most that a task may hold with double buffers", reserved, "bytes", 0.0, "lower"
        ),
    }


def _swap_metrics(swapped: Mapping[str, float], layers: Layers) -> dict[str, Metric]:
    whole = sum(swapped.values())
    weights = swapped.get("weights", 0.0) + swapped.get("gradients", 0.0)
    return {
        "swap_bytes": Metric("bytes between GPUs and DRAM in an iteration", whole, "bytes", 0.0, "lower"),
        "weight_swap_bytes": Metric("of these, weights and their gradients", weights, "bytes", 0.0, "lower"),
        "weight_bytes": Metric("weights and buffers of the model", float(layers.weights.sum()), "bytes"),
    }


def _compared(
    base: tuple[Demand, float], gpus: int, swapped: float, time: float, error: float
) -> dict[str, Metric]:
    """Metrics of the same minibatch under virtualised data parallelism, which swaps on demand."""
    found, seconds_on_demand = base
    whole = gpus * sum(found.swapped.values())
    return {
        "virtual_iteration_time": Metric(
            "time of an iteration with virtualised memory", seconds_on_demand, "seconds", error, "lower"
        ),
        "virtual_swap_bytes": Metric("bytes swapped with virtualised memory", whole, "bytes"),
        "swap_reduction": Metric(
            "less swapped than with virtualised memory", whole / swapped, "ratio", 0.0, "higher"
        ),
        "speedup": Metric(
            "faster than with virtualised memory", seconds_on_demand / time, "ratio", error, "higher"
        ),
    }


def _errors(setup: Setup, layers: Layers, micro_batch: int) -> dict[OperatorClass, float]:
    """Errors of class sums; measured seconds are taken as they are."""
    if layers.graph is None:
        return {"matmul": 0.0, "host": 0.0}
    return pass_errors(setup.cost, layers.graph(micro_batch), ALONE)


# --- tables and notes ------------------------------------------------------------------------------------------------


def _packs(layers: Layers, found: Found) -> dict[str, Any]:
    tasks = found.lowered.tasks
    tables = [layers.at(task.micro_batch) for task in tasks]
    spans = [slice(*task.pack) for task in tasks]
    return {
        "pass": [task.which for task in tasks],
        "gpu": [task.rank for task in tasks],
        "first_layer": [task.pack[0] for task in tasks],
        "last_layer": [task.pack[1] - 1 for task in tasks],
        "micro_batch": [task.micro_batch for task in tasks],
        "micro_batches": [task.count for task in tasks],
        "computation": np.array(
            [
                task.count
                * (seconds(t.forward[s]) + (seconds(t.backward[s]) if task.which == BACKWARD else 0.0))
                for task, t, s in zip(tasks, tables, spans, strict=True)
            ]
        ),
        "weights": np.array([float(layers.weights[s].sum()) for s in spans]),
        "pack_memory": np.array(
            [
                float(t.pack_memory(task.which, np.array(task.pack))[0])
                for task, t in zip(tasks, tables, strict=True)
            ]
        ),
    }


def _tried(found: Found) -> dict[str, Any]:
    tried = found.tried
    return {
        "forward_micro_batch": [c.schedule.forward_micro_batch for c in tried],
        "forward_packs": [len(c.schedule.forward_packs) for c in tried],
        "backward_micro_batch": [c.schedule.backward_micro_batch for c in tried],
        "backward_packs": [len(c.schedule.backward_packs) for c in tried],
        "packing": [c.schedule.packing for c in tried],
        "bound": np.array([c.bound for c in tried]),
        "time": np.array([np.nan if c.time is None else c.time for c in tried]),
    }


def _common(setup: Setup, layers: Layers) -> list[str]:
    found = [constants_used(setup.cost.calibration)]
    if setup.layers is not None:
        found.append(f"layers as measured on {setup.layers.device}: {setup.layers.source}")
    rates = scenario_of(setup).strategy.rates
    if rates.swap or rates.peer or rates.message:
        found.append("rates of copies are the scenario's own, measured ones")
    return found


def _assumptions(setup: Setup, layers: Layers, found: Found, gpus: int) -> tuple[str, ...]:
    strategy = scenario_of(setup).strategy
    notes = _common(setup, layers)
    if strategy.mode == "pipeline":
        notes.append(f"packs go round {gpus} GPUs; each pack's weights are swapped on one GPU only")
        if strategy.link_sharing == "even":
            notes.append(
                "each GPU has a fixed part of the links that several use, whether the others use theirs or not"
            )
    elif gpus > 1:
        notes.append(
            f"{gpus} GPUs do the same at the same time, so that one is simulated with its share of what they have in common; "
            "gradients are reduced pack by pack in a ring over peers while the GPU waits"
        )
    notes.append(
        "inputs, gradients and the next pack's weights are fetched ahead into double buffers"
        if strategy.prefetch
        else "nothing is fetched ahead: each copy waits for the computation before it"
    )
    notes.append(f"{strategy.task_overhead * 1e3:g} ms after each task in which its tensors are dropped")
    simulated = sum(candidate.time is not None for candidate in found.tried)
    notes.append(
        f"fastest of {len(found.tried)} schedules, of which {simulated} were simulated and the rest bounded"
    )
    return tuple(notes)
