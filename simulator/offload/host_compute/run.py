"""Generate with part of the weights on CPUs: plan, a program for each kind of pass, and what their timelines say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from simulator.cost import relative_error
from simulator.engine import Timeline, execute
from simulator.graph import Partition, Shape, build
from simulator.offload.answer import bound_by, by_class, critical, memory_uses
from simulator.offload.columns import Rows
from simulator.offload.emit import Emitter
from simulator.offload.host_compute.experts import held
from simulator.offload.host_compute.lower import Resident, lower
from simulator.offload.host_compute.plan import Pass, Plan, make_plan
from simulator.offload.tiers import DRAM, GPU
from simulator.specs import OperatorClass
from simulator.strategy import MemoryUse, Metric, Outcome, Setup, constants_used, pass_errors

SOURCES = (
    "Chen et al. 2025, SOSP (KTransformers): routed experts on CPUs, tensor split over sockets, deferred experts",
    "Kamahori et al. 2024, arXiv:2402.07033 (Fiddler): experts computed where they lie",
    "ggml-org/llama.cpp: layers split between accelerator and CPU",
)


@dataclass(frozen=True)
class Ran:
    """A pass that was simulated, and how many it stands for."""

    each: Pass
    emit: Emitter
    timeline: Timeline

    @property
    def time(self) -> float:
        """Seconds."""
        return self.timeline.makespan

    @property
    def row(self) -> Rows:
        """Seconds of its critical path by columns."""
        return critical(self.emit, self.timeline)

    def busy(self, stream: str) -> float:
        """Seconds in which a stream works."""
        return self.timeline.busy().get(stream, 0.0)


def simulate(setup: Setup, *, detail: bool = False) -> Outcome:
    """Simulate the generation of some sequences, prefill and decode.

    Parameters
    ----------
    setup : Setup
        An offload scenario of method ``host-compute``.
    detail : bool
        Without effect: passes between two simulated ones differ in the context alone.

    Raises
    ------
    MemroofError
        For a combination that is refused; see :func:`simulator.offload.host_compute.plan.make_plan`.
    """
    plan = make_plan(setup)
    resident = find_resident(plan)
    prefill, decode = (
        [_run(plan, each, resident) for each in passes] for passes in (plan.prefill, plan.decode)
    )
    return _outcome(setup, plan, resident, prefill, decode)


def _run(plan: Plan, each: Pass, resident: Resident) -> Ran:
    emit = lower(plan, each, resident)
    return Ran(each, emit, execute(emit.program))


def find_resident(plan: Plan) -> Resident:
    """Return what lies in each memory throughout."""
    graph = build(
        plan.model, Shape(1, 1, 1, "decode"), Partition(tensor=plan.tensor_parallel), numerics=plan.on_gpu
    )
    whole = build(plan.model, Shape(1, 1, 1, "decode"), numerics=plan.on_host)
    gpu_width, dram_width = plan.on_gpu.weight_bytes, plan.on_host.weight_bytes
    strategy = plan.strategy
    moe_layers = sum(any(op.expert for op in graph.blocks[i].operators) for i in graph.layers)
    tokens = plan.batch * (plan.prompt + plan.output - 1)
    gpu = dram = cache_gpu = cache_dram = 0.0
    moe = 0
    for number, index in enumerate(graph.layers):
        block, all_of_it = graph.blocks[index], whole.blocks[index]
        if number < plan.host_layers:
            dram += float(all_of_it.parameters) * dram_width
            cache_dram += _cache(plan, float(all_of_it.kv_width), float(all_of_it.kv_window), tokens)
            continue
        experts = sum(float(op.parameters) for op in block.operators if op.expert)
        here = 1.0
        if experts and strategy.placement == "experts":
            here = held(strategy.expert_placement or "uniform", strategy.gpu_experts, moe, moe_layers)
            stored = sum(float(op.parameters) for op in all_of_it.operators if op.expert)
            dram += stored * (1.0 - here) * dram_width
            moe += 1
        gpu += (float(block.parameters) - experts * (1.0 - here)) * gpu_width
        cache_gpu += _cache(plan, float(block.kv_width), float(block.kv_window), tokens)
    ends = (graph.embedding, whole.embedding, plan.host_layers > 0), (
        graph.head, whole.head, plan.host_layers == plan.model.num_hidden_layers
    )  # fmt: skip
    for here_block, there_block, on_cpus in ends:
        if on_cpus:
            dram += float(there_block.parameters) * dram_width
        else:
            gpu += float(here_block.parameters) * gpu_width
    return Resident(gpu, dram * plan.copies, cache_gpu, cache_dram)


def fits(setup: Setup) -> bool:
    """Return whether weights and cache alone fit, activations apart; raises what refuses the scenario."""
    plan = make_plan(setup)
    resident = find_resident(plan)
    gpu, dram = resident.weights_gpu + resident.cache_gpu, resident.weights_dram + resident.cache_dram
    return all(
        tiers.pools[tier].capacity >= size
        for tiers in plan.place.ranks
        for tier, size in ((GPU, gpu), (DRAM, dram))
        if tier in tiers.pools
    )


def _cache(plan: Plan, width: float, window: float, tokens: float) -> float:
    kept = min(tokens, window * plan.batch)
    return width * plan.on_gpu.kv_bytes * kept


# --- outcome ---------------------------------------------------------------------------------------------------------


def _outcome(
    setup: Setup, plan: Plan, resident: Resident, prefill: Sequence[Ran], decode: Sequence[Ran]
) -> Outcome:
    first = np.sum([ran.row * ran.each.weight for ran in prefill], axis=0)
    later = np.sum([ran.row * ran.each.weight for ran in decode], axis=0) if decode else np.zeros_like(first)
    times = tuple(float(sum(ran.time * ran.each.weight for ran in part)) for part in (prefill, decode))
    total = sum(times)
    errors = _errors(setup, plan)
    memory = _memory([*prefill, *decode])
    everything = first + later
    return Outcome(
        headline="generation_throughput",
        metrics=_metrics(plan, resident, (prefill, decode), (first, later), errors) | _peaks(memory),
        memory=memory,
        class_times=by_class(everything),
        bottlenecks=bound_by(everything),
        total_time=total,
        assumptions=_assumptions(plan, setup, fits=all(use.free >= 0 for use in memory)),
        sources=SOURCES,
        timeline=(decode or prefill)[0].timeline,
        devices=plan.tensor_parallel,
        busy_fraction=_utilization([*prefill, *decode], plan, "gpu" if plan.place.accelerators else "cpu"),
        tables=_tables(prefill, decode),
        class_errors=errors,
        phases={"prefill": bound_by(first)} | ({"decode": bound_by(later)} if decode else {}),
    )


def _errors(setup: Setup, plan: Plan) -> dict[OperatorClass, float]:
    """Errors of class sums: kernels of the accelerators in a decode step, and the CPUs' products."""
    shape = Shape(plan.batch, 1, plan.prompt + plan.steps // 2, "decode")
    graph = build(plan.model, shape, Partition(tensor=plan.tensor_parallel), numerics=plan.on_gpu)
    found = pass_errors(setup.cost, graph, plan.spans)
    return found | {"host": plan.host.calibration.error["grouped-matmul"]}


def _memory(runs: Sequence[Ran]) -> tuple[MemoryUse, ...]:
    """Return each memory at the fullest of its peaks in all passes."""
    fullest: dict[str, MemoryUse] = {}
    for ran in runs:
        for use in memory_uses(ran.emit, ran.timeline):
            if use.memory not in fullest or use.peak > fullest[use.memory].peak:
                fullest[use.memory] = use
    return tuple(fullest.values())


def _utilization(runs: Sequence[Ran], plan: Plan, resource: str) -> float:
    """Return the share of time in which the first accelerator, or the CPUs, work."""
    if resource == "gpu":
        resource = "gpu" if plan.place.accelerators <= 1 else "gpu0"
    total = sum(ran.time * ran.each.weight for ran in runs)
    return sum(ran.busy(resource) * ran.each.weight for ran in runs) / total if total else 0.0


def _metrics(
    plan: Plan,
    resident: Resident,
    runs: tuple[Sequence[Ran], Sequence[Ran]],
    rows: tuple[Rows, Rows],
    errors: Mapping[OperatorClass, float],
) -> dict[str, Metric]:
    decode = runs[1]
    whole, first, later = (float(relative_error(by_class(row), errors)) for row in (rows[0] + rows[1], *rows))
    prefill_time, decode_time = (sum(ran.time * ran.each.weight for ran in part) for part in runs)
    total, batch, steps = prefill_time + decode_time, plan.batch, plan.steps
    metrics = {
        "generation_throughput": Metric(
            "output tokens per second, prefill included", batch * plan.output / total, "1/s", whole, "higher"
        ),
        "generation_time": Metric("time of all sequences", total, "seconds", whole, "lower"),
        "time_to_first_token": Metric("time to first token", prefill_time, "seconds", first, "lower"),
        "prefill_throughput": Metric(
            "prompt tokens per second of prefill", batch * plan.prompt / prefill_time, "1/s", first, "higher"
        ),
    }
    if steps:
        read = sum(sum(ran.emit.carried.get("dram to cpu", {}).values()) * ran.each.weight for ran in decode)
        metrics |= {
            "decode_throughput": Metric(
                "output tokens per second of decode", batch * steps / decode_time, "1/s", later, "higher"
            ),
            "time_per_output_token": Metric(
                "time per decode step", decode_time / steps, "seconds", later, "lower"
            ),
            "cpu_utilization": Metric(
                "share of decode in which the CPUs work", _utilization(decode, plan, "cpu"), "fraction"
            ),
            "dram_bytes_per_token": Metric(
                "read from DRAM for an output token", read / (steps * batch), "bytes"
            ),
        }
        if plan.place.accelerators:
            metrics["gpu_utilization"] = Metric(
                "share of decode in which the accelerator works",
                _utilization(decode, plan, "gpu"),
                "fraction",
            )
    return metrics | {
        "gpu_weight_bytes": Metric("weights on one accelerator", resident.weights_gpu, "bytes"),
        "dram_weight_bytes": Metric("weights in DRAM", resident.weights_dram, "bytes"),
        "kv_cache_bytes": Metric(
            "KV cache at its fullest, of one accelerator and of DRAM",
            resident.cache_gpu + resident.cache_dram,
            "bytes",
        ),
    }


def _peaks(memory: Sequence[MemoryUse]) -> dict[str, Metric]:
    """Return the peaks of the first accelerator and of DRAM."""
    found: dict[str, Metric] = {}
    for use in reversed(memory):
        name, label = ("dram_peak_bytes", "peak of DRAM") if use.tier == "dram" else (
            "gpu_peak_bytes", "peak of one accelerator"
        )  # fmt: skip
        found[name] = Metric(label, use.peak, "bytes")
    return found


def _tables(prefill: Sequence[Ran], decode: Sequence[Ran]) -> dict[str, Mapping[str, Any]]:
    runs = [*prefill, *decode]
    return {
        "passes": {
            "phase": [ran.each.shape.phase for ran in runs],
            "tokens": np.array([float(ran.each.shape.sequence) for ran in runs]),
            "context": np.array([float(ran.each.shape.context) for ran in runs]),
            "time": np.array([ran.time for ran in runs]),
            "stands_for": np.array([ran.each.weight for ran in runs]),
        }
    }


def _assumptions(plan: Plan, setup: Setup, *, fits: bool) -> tuple[str, ...]:
    strategy, sockets = plan.strategy, plan.sockets
    found = [constants_used(setup.cost.calibration)] if plan.place.accelerators else []
    found += [
        f"CPU kernels '{strategy.kernels}': {plan.kernels.source}",
        f"{sockets.count} socket{'s' * (sockets.count > 1)} of {sockets.device.name}, whose DRAM sustains "
        f"{sockets.sustained:.0%} of {sockets.bandwidth / 1e9:.0f} GB/s",
        "tokens choose experts independently; all tokens of an expert are computed together",
        "passes between two simulated ones are interpolated; the timeline shows one decode step",
    ]
    if strategy.placement == "experts":
        found.append("attention, router, shared experts and cache are the accelerator's")
    if strategy.prefill == "streamed":
        found.append("prompts are computed on the accelerators with weights that come in one layer ahead")
    if plan.place.accelerators > 1:
        found.append("accelerators split every matrix; the first hands inputs to the CPUs and outputs on")
    if not fits:
        found.append("times are as if the memories that are too small were large enough")
    return tuple(found)
