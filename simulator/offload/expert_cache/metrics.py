"""The figures of a run: times, hit rates, waiting, prediction, bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from simulator.cost import relative_error
from simulator.offload.answer import by_class
from simulator.offload.columns import Rows
from simulator.offload.expert_cache.plan import Plan
from simulator.offload.expert_cache.record import Counts, Ran
from simulator.offload.tiers import GPU
from simulator.specs import OperatorClass
from simulator.strategy import Metric

NEGLIGIBLE = 1e-9
"""Share of a time that is rounding."""


def metrics_of(
    plan: Plan, ran: Ran, rows: tuple[Rows, Rows], errors: Mapping[OperatorClass, float]
) -> dict[str, Metric]:
    """Return the metrics of the mean request.

    Parameters
    ----------
    plan, ran : Plan, Ran
        What was asked, and what came of it.
    rows : pair of arrays, shape (columns,)
        Seconds of the prefill and of all decode steps along the critical path.
    errors : mapping
        Relative standard error of each class's seconds; how requests differ by their routing comes on top.
    """
    workload, steps = plan.workload, plan.workload.output - 1
    times = np.array(
        [[each.prefill, each.end - each.begin, each.computing, each.resident] for each in ran.passes]
    )
    first, later = times[times[:, 0] == 1.0, 1:], times[times[:, 0] == 0.0, 1:]
    prefill = float(first[:, 0].mean())
    step = float(later[:, 0].mean()) if steps else 0.0
    total = prefill + steps * step
    drawn = [
        _spread(first[:, 0]),
        _spread(later[:, 0].reshape(workload.requests, -1).mean(axis=1)) if steps else 0.0,
    ]
    known = [float(relative_error(by_class(row), errors)) for row in (*rows, rows[0] + rows[1])]
    whole = math.hypot(known[2], (drawn[0] * prefill + drawn[1] * steps * step) / total)
    error = [math.hypot(a, b) for a, b in zip(known, drawn, strict=False)]
    tokens = workload.batch * workload.output
    found = {
        "generation_throughput": Metric(
            "output tokens per second, prefill included", tokens / total, "1/s", whole, "higher"
        ),
        "generation_time": Metric("time of a request", total, "seconds", whole, "lower"),
        "time_to_first_token": Metric("time to first token", prefill, "seconds", error[0], "lower"),
        "prefill_time": Metric("prefill time", prefill, "seconds", error[0], "lower"),
        "prefill_throughput": Metric(
            "prompt tokens per second of prefill",
            workload.batch * workload.prompt / prefill,
            "1/s",
            error[0],
            "higher",
        ),
    }
    encoded = [each.encoded - each.begin for each in ran.passes if each.encoded]
    if encoded:
        found["encoder_time"] = Metric(
            "time of the encoder", float(np.mean(encoded)), "seconds", error[0], "lower"
        )
    if steps:
        found |= {
            "time_per_output_token": Metric("time per decode step", step, "seconds", error[1], "lower"),
            "decode_throughput": Metric(
                "output tokens per second of decode", workload.batch / step, "1/s", error[1], "higher"
            ),
        }
    found |= _phase("prefill", first, ran.prefill, error[0])
    if steps:
        found |= _phase("decode", later, ran.decode, error[1])
        found |= _predicting(ran.decode)
    return found | sizes(plan)


def _spread(values: Rows) -> float:
    """Return the relative standard error of a mean over requests."""
    if len(values) < 2 or not values.mean():
        return 0.0
    return float(values.std(ddof=1) / values.mean() / math.sqrt(len(values)))


def _phase(name: str, times: Rows, counts: Counts, error: float) -> dict[str, Metric]:
    wall, computing, all_resident = times.mean(axis=0).tolist()
    waits = wall - computing if wall - computing > NEGLIGIBLE * wall else 0.0
    used = max(counts.used, 1)
    found = {
        f"{name}_hit_rate": Metric(f"share of a layer's experts that are there in {name}", counts.hits / used, "fraction"),
        f"{name}_expert_wait": Metric(
            f"time of a pass of {name} in which the accelerator waits for experts", waits, "seconds", error, "lower"
        ),
        f"{name}_wait_over_compute": Metric(
            f"waiting for experts over computing in {name}", waits / computing, "ratio", error, "lower"
        ),
        f"{name}_expert_wait_share": Metric(
            f"share of {name} in which the accelerator waits for experts", waits / wall, "fraction", 0.0, "lower"
        ),
        f"{name}_slowdown": Metric(f"{name} over that with all experts resident", wall / all_resident, "ratio", error, "lower"),
    }  # fmt: skip
    if counts.substituted:
        label = f"share of a layer's experts that another one replaces in {name}"
        found[f"{name}_substituted_share"] = Metric(
            label, counts.substituted / used, "fraction", 0.0, "lower"
        )
    if counts.elsewhere:
        label = f"share of a layer's experts that are computed where they lie in {name}"
        found[f"{name}_elsewhere_share"] = Metric(label, counts.elsewhere / used, "fraction")
    return found


def _predicting(counts: Counts) -> dict[str, Metric]:
    if not counts.predicted:
        return {}
    accuracy = counts.right / counts.predicted
    timely = counts.timely / counts.wanted if counts.wanted else 1.0
    return {
        "prediction_accuracy": Metric(
            "share of the experts named that are used", accuracy, "fraction", 0.0, "higher"
        ),
        "fetch_rate": Metric(
            "share of the experts to be fetched ahead that come in time", timely, "fraction", 0.0, "higher"
        ),
        "good_prediction": Metric(
            "GOODPRED: accuracy times fetch rate", accuracy * timely, "fraction", 0.0, "higher"
        ),
    }


def sizes(plan: Plan) -> dict[str, Metric]:
    """Return bytes of experts and of everything else, on the accelerators and with all experts resident."""
    degree = plan.strategy.tensor_parallel
    on_gpu = sum(size for tier, _, size in holdings(plan) if tier == GPU)
    slots, buffers = sum(plan.slots) * plan.expert_bytes, plan.buffers * plan.expert_bytes
    everything = on_gpu - slots - buffers + plan.all_experts * plan.expert_bytes
    found = {
        "cached_share": Metric("share of the experts that have a slot", plan.cached_share, "fraction"),
        "expert_bytes": Metric(
            "routed experts of the model", plan.all_experts * plan.whole_expert_bytes, "bytes"
        ),
        "non_expert_bytes": Metric("all other weights of the model", plan.other_weights * degree, "bytes"),
        "accelerator_memory": Metric("memory on all accelerators", on_gpu * degree, "bytes", 0.0, "lower"),
        "resident_memory": Metric("the same with all experts resident", everything * degree, "bytes"),
    }
    chosen = plan.strategy.predicted
    if chosen is not None:
        seconds = plan.fetch.seconds(slots)
        found["set_load_time"] = Metric(
            "time to load the whole set of experts", seconds, "seconds", 0.0, "lower"
        )
        found["set_load_time_per_prompt"] = Metric(
            "the same for each prompt that it serves", seconds / chosen.prompts, "seconds", 0.0, "lower"
        )
    return found


def holdings(plan: Plan) -> tuple[tuple[str, str, float], ...]:
    """Return what each tier holds throughout: tier, category and bytes."""
    return (
        (GPU, "weights", plan.other_weights),
        (GPU, "expert cache", sum(plan.slots) * plan.expert_bytes),
        (GPU, "expert buffers", plan.buffers * plan.expert_bytes),
        (GPU, "KV cache", plan.kv_bytes),
        (GPU, "workspace", plan.workspace),
        (plan.strategy.experts, "experts", plan.all_experts * plan.whole_expert_bytes),
    )
