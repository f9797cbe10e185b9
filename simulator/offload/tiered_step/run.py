"""Run a training step over tiers: plan, choice of activations, program, timeline, and what they say."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from simulator.cost import peak_flops, relative_error
from simulator.engine import Timeline, execute
from simulator.offload import answer
from simulator.offload.tiered_step.activations import keep
from simulator.offload.tiered_step.kept import Kept
from simulator.offload.tiered_step.largest import largest_model
from simulator.offload.tiered_step.lower import Key, Lowered, lower
from simulator.offload.tiered_step.plan import Plan, make_plan
from simulator.offload.tiers import GPU, NVME
from simulator.specs.tiered_step_scenario import TieredStepScenario
from simulator.strategy import Bottleneck, MemoryUse, Metric, Outcome, Setup, constants_used, pass_errors

SOURCES = (
    "Ren et al. 2021, arXiv:2101.06840 (ZeRO-Offload): gradients stream out, CPU Adam, delayed update",
    "Rajbhandari et al. 2021, arXiv:2104.07857 (ZeRO-Infinity): shares over every GPU's own link, flash, tiling",
    "Wu et al. 2024, arXiv:2408.10013 (SSDTrain): activations to flash, forwarding, adaptive amount, lifetime",
    "Liao et al. 2024, arXiv:2403.06504 (Fuyou, Ratel): updates inside the backward pass, activations by a cost model",
    "Liaw & Chen 2025, arXiv:2507.03305: allocation over DRAM and CXL memory",
)


@dataclass(frozen=True)
class Step:
    """A step that was run."""

    plan: Plan
    kept: tuple[Kept, ...]
    lowered: Lowered
    timeline: Timeline

    @property
    def time(self) -> float:
        """Seconds of the step."""
        return self.timeline.makespan

    @property
    def memory(self) -> tuple[MemoryUse, ...]:
        """Memories at their peaks."""
        return answer.memory_uses(self.lowered.emit, self.timeline)

    @property
    def activation_peak(self) -> float:
        """Most bytes of activations on the first GPU at once."""
        _, by_category = self.timeline.ledger.resident(self.plan.tiers.pools[GPU].name)
        held = by_category.get("activations")
        return float(held.max()) if held is not None else 0.0


def simulate(setup: Setup, *, detail: bool = False) -> Outcome:
    """Simulate one optimizer step.

    Parameters
    ----------
    setup : Setup
        A scenario of the method with its model, hardware and cost model.
    detail : bool
        The timeline has every task in any case.

    Returns
    -------
    Outcome
        Of a step in its steady state; its memories say what does not fit.

    Raises
    ------
    MemroofError
        For a combination that is refused; see :func:`simulator.offload.tiered_step.plan.make_plan`.
    """
    plan = make_plan(setup)
    step = run_step(plan)
    return _outcome(setup, step, _kept_on_gpu(setup, step))


def run_step(plan: Plan) -> Step:
    """Choose what becomes of activations, and run the step.

    Whether an activation is still being stored when it is needed is known only once a step has run: it runs again with those
    that are.
    """
    kept = keep(plan)
    lowered = lower(plan, kept)
    timeline = execute(lowered.emit.program)
    found = _forwarded(lowered, timeline) if plan.strategy.forwarding else frozenset()
    if found:
        lowered = lower(plan, kept, found)
        timeline = execute(lowered.emit.program)
    return Step(plan, kept, lowered, timeline)


def _forwarded(lowered: Lowered, timeline: Timeline) -> frozenset[Key]:
    """Return the activations whose store ends after they could have been fetched."""
    return frozenset(
        key
        for key, store in lowered.stores.items()
        if lowered.gates[key] >= 0 and timeline.end[store] > timeline.end[lowered.gates[key]]
    )


def _kept_on_gpu(setup: Setup, step: Step) -> Step | None:
    """Run the same step with all activations on the GPU; None where they are there."""
    scenario = setup.scenario
    assert isinstance(scenario, TieredStepScenario)  # or make_plan had refused it
    if scenario.strategy.activations == GPU:
        return None
    changed = {"activations": GPU, "activation_amount": "all"}
    strategy = scenario.strategy.model_copy(update=changed)
    return run_step(replace(step.plan, strategy=strategy))


# --- outcome ---------------------------------------------------------------------------------------------------------


def _outcome(setup: Setup, step: Step, on_gpu: Step | None) -> Outcome:
    plan, timeline, emit = step.plan, step.timeline, step.lowered.emit
    row = answer.critical(emit, timeline)
    errors = pass_errors(setup.cost, plan.graph, plan.spans)
    composition = float(setup.cost.calibration.error["step"])
    error = math.hypot(float(relative_error(answer.by_class(row), errors)), composition)
    memory = step.memory
    computing = float(timeline.duration[timeline.stream == emit.gpu].sum())
    return Outcome(
        headline="step_time",
        metrics=_metrics(setup, step, on_gpu, error),
        memory=memory,
        class_times=answer.by_class(row),
        bottlenecks=answer.bound_by(row),
        total_time=step.time,
        assumptions=_assumptions(setup, step, fits=all(use.free >= 0 for use in memory)),
        sources=SOURCES,
        timeline=timeline,
        devices=len(plan.ranks),
        busy_fraction=computing / step.time,
        tables={"links": answer.link_table(emit, step.time), "activations": _activation_table(step)},
        class_errors=errors,
        composition_error=composition,
        phases=_phases(step),
        further=_further(setup),
    )


def _further(setup: Setup) -> Callable[[], Mapping[str, Metric]]:
    return partial(largest_model, setup, lambda changed: run_step(make_plan(changed)).memory)


def model_flops(plan: Plan) -> float:
    """Return the FLOPs of a forward and a backward pass over all tokens of a step, nothing computed twice, on one GPU [FLOP]."""
    passes = plan.graph.flops(("forward", "input_gradient", "weight_gradient"))
    return float(passes) * plan.micro_batches


def repeated_flops(step: Step) -> float:
    """Return the FLOPs that the backward pass computes again, on one GPU [FLOP]."""
    return step.plan.micro_batches * sum(kept.level.flops for kept in step.kept)


def _metrics(setup: Setup, step: Step, on_gpu: Step | None, error: float) -> dict[str, Metric]:
    plan, time = step.plan, step.time
    useful = model_flops(plan)
    done = useful + repeated_flops(step)
    peak = peak_flops(setup.hardware.device, plan.strategy.precision)

    def timed(label: str, value: float, dimension: Any, better: Any) -> Metric:
        return Metric(label, value, dimension, error, better)

    metrics = {
        "step_time": timed("step time", time, "seconds", "lower"),
        "tokens_per_second": timed("tokens per second", plan.tokens / time, "1/s", "higher"),
        "model_flops_utilization": timed("MFU", useful / time / peak, "fraction", "higher"),
        "hardware_flops_utilization": timed("HFU", done / time / peak, "fraction", "higher"),
        "model_flops_per_second_per_gpu": timed("model FLOP/s per GPU", useful / time, "FLOP/s", "higher"),
        "hardware_flops_per_second_per_gpu": timed(
            "with those computed again", done / time, "FLOP/s", "higher"
        ),
        "model_flops_per_second": timed(
            "model FLOP/s of all GPUs", useful * len(plan.ranks) / time, "FLOP/s", "higher"
        ),
        "parameters": Metric("parameters", plan.elements, "count"),
        "free_memory": Metric(
            "room left in the fullest memory", min(use.free for use in step.memory), "bytes", 0.0, "higher"
        ),
        "activation_peak": Metric(
            "activations of a GPU at their peak", step.activation_peak, "bytes", 0.0, "lower"
        ),
    }  # fmt: skip
    if on_gpu is not None:
        kept = on_gpu.activation_peak
        metrics |= {
            "activation_peak_reduction": Metric(
                "peak against activations kept", 1.0 - step.activation_peak / kept, "fraction", 0.0, "higher"
            ),
            "step_time_ratio": Metric(
                "step time over that with them kept", time / on_gpu.time, "ratio", 0.0, "lower"
            ),
            "activation_bytes_moved": Metric(
                "activations that leave a GPU", step.lowered.stored, "bytes"
            ),
            "activation_write_bandwidth": timed(
                "rate to write them in half a step", 2.0 * step.lowered.stored / time, "bytes/s", "lower"
            ),
        }  # fmt: skip
    asked = {*setup.scenario.expect, *setup.scenario.limit} & {"largest_model", "largest_layers"}
    more = _further(setup)() if asked else {}
    return {**metrics, **_update(step), **_flash(step, error), **more}


def _update(step: Step) -> dict[str, Metric]:
    """Seconds in which CPUs update, whatever runs beside them."""
    plan, timeline = step.plan, step.timeline
    if all(tier == GPU for tier in plan.place.states):
        return {}
    program = step.lowered.emit.program
    on_gpu = set(step.lowered.emit.gpus)
    tag = program.tags.index("optimizer")
    chosen = [i for i, t in enumerate(program.tag) if t == tag and program.streams[i] not in on_gpu]
    spans = sorted((float(timeline.start[i]), float(timeline.end[i])) for i in chosen)
    total, until = 0.0, 0.0
    for start, end in spans:
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return {"update_time": Metric("time in which CPUs update", total, "seconds", 0.0, "lower")}


def flash_written(step: Step) -> float:
    """Return the bytes that a step writes to flash, of all GPUs together [B]."""
    emit = step.lowered.emit
    names = [name for name in emit.carried if name.endswith(f" to {NVME}")]
    return sum(sum(emit.carried[name].values()) for name in names)


def _flash(step: Step, error: float) -> dict[str, Metric]:
    written = flash_written(step)
    pool = step.plan.tiers.pools.get(NVME)
    if not written or pool is None:
        return {}
    found = {
        "flash_bytes_written": Metric("written to flash", written, "bytes", 0.0, "lower"),
        "flash_write_bandwidth": Metric(
            "write rate of flash", written / step.time, "bytes/s", error, "lower"
        ),
    }
    ratings = [store.device.endurance if store.device else None for store in pool.stores]
    if all(ratings):
        life = lifetime(
            sum(rating or 0.0 for rating in ratings),
            step.time,
            written,
            step.plan.strategy.write_amplification,
        )
        found["ssd_lifetime"] = Metric("SSD lifetime", life, "seconds", error, "higher")
    return found


def lifetime(endurance: float, step_time: float, written: float, amplification: float = 1.0) -> float:
    """Return how long drives last that are written to in every step [s].

    Parameters
    ----------
    endurance : float
        Bytes that may be written to all of them, at the write amplification of the rating.
    step_time : float
        [s].
    written : float
        In a step [B].
    amplification : float
        Bytes programmed for a byte written, over that of the rating: JESD218's random writes are taken at 2.5, large sequential
        ones at 1, so that these give 0.4 (Wu et al. 2024, arXiv:2408.10013, section 3).
    """
    return endurance * step_time / (written * amplification)


def _phases(step: Step) -> Mapping[str, Mapping[Bottleneck, float]]:
    """Divide the critical path by what the first GPU is at: a forward or a backward pass, or, behind the last one, the update."""
    timeline, lowered = step.timeline, step.lowered
    path = timeline.critical_path().tasks
    passes = np.array([*lowered.forwards, *lowered.backwards])
    backward = np.arange(len(passes)) >= len(lowered.forwards)
    order = np.argsort(timeline.start[passes], kind="stable")
    begun = np.searchsorted(timeline.start[passes][order], timeline.start[path], "right") - 1
    phase = np.where(backward[order][np.maximum(begun, 0)], 1, 0)
    phase[timeline.start[path] >= timeline.end[passes].max()] = 2
    seconds = timeline.end[path] - timeline.start[path]
    shares = np.array([lowered.emit.shares[task] for task in path.tolist()])
    return {
        name: answer.bound_by((seconds * (phase == number)) @ shares)
        for number, name in enumerate(("forward", "backward", "update"))
    }


def _activation_table(step: Step) -> Mapping[str, Any]:
    plan, kept = step.plan, step.kept
    shown = [i for i, unit in enumerate(plan.units) if unit.sublayer]
    tiers = [tier for tier in plan.tiers.pools if any(tier in kept[i].shares for i in shown)]
    return {
        "unit": [plan.units[i].name for i in shown],
        "kept_bytes": np.array([kept[i].level.saved for i in shown]),
        **{f"share_{tier}": np.array([kept[i].shares.get(tier, 0.0) for i in shown]) for tier in tiers},
        "recomputed": [", ".join(sorted(kept[i].level.again)) for i in shown],
    }


def _assumptions(setup: Setup, step: Step, *, fits: bool) -> tuple[str, ...]:
    plan, strategy = step.plan, step.plan.strategy
    found = [
        constants_used(setup.cost.calibration),
        f"{plan.data} replica{'s' * (plan.data > 1)} of {plan.tensor} GPU{'s' * (plan.tensor > 1)}, each "
        f"{plan.micro_batches} micro-batch{'es' * (plan.micro_batches > 1)} of {plan.micro_batch}; all GPUs do the same",
        "one task a sublayer, micro-batch and pass; gradients of activations take as much room as the tensors they belong to",
        "a step begins when the one before has ended"
        if strategy.update != "delayed"
        else "CPUs update with the gradients of the step before meanwhile",
    ]
    if any(tier != GPU for tier in plan.place.states):
        found.append(
            "CPUs update with 3.4 cache lines under way a core (ZeRO-Offload's CPU-Adam), slower where copies use the memory too"
        )
    if plan.data > 1 and strategy.exchange == "gpu":
        found.append("collectives between replicas do not slow copies over the same links")
    if NVME in plan.tiers.pools and step.lowered.emit.carried:
        found.append("flash is read and written in large sequential requests, both directions at once")
    if not fits:
        found.append("times are as if the memories that are too small were large enough")
    return tuple(found)
