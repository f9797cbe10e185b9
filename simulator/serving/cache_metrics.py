"""Figures of the KV cache over a run: fragmentation, prefix hits, bytes by tier, copies; and latencies by class of request."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from simulator.serving.caching import Caching
from simulator.serving.metrics import LATENCIES, request_latencies
from simulator.serving.served import Served
from simulator.serving.workload import Floats
from simulator.strategy import Metric


def cache_metrics(served: Served, caching: Caching, accelerator: str) -> dict[str, Metric]:
    """Return fragmentation, and where there is a prefix cache or swapping what came of it.

    Parameters
    ----------
    served : Served
        A run.
    caching : Caching
        Tiers of the run.
    accelerator : str
        Name of the accelerator's memory.
    """
    log = served.log
    held = float(log.kv_bytes @ log.seconds)
    wasted = 1.0 - float(log.stored_bytes @ log.seconds) / held if held > 0.0 else 0.0
    metrics = {
        "kv_fragmentation": Metric(
            "share of held KV cache without keys and values, mean while busy",
            wasted,
            "fraction",
            0.0,
            "lower",
        )
    }
    if caching.prefixes:
        metrics |= _hits(served, caching, accelerator)
    for way, size in served.moved.items():
        key = f"kv_{way.replace(' ', '_')}_bytes"
        metrics[key] = Metric(f"KV cache {way} of one GPU", size, "bytes")
    if served.moved:
        metrics["kv_copy_stall"] = Metric(
            "time that iterations wait for copies", served.stall, "seconds", 0.0, "lower"
        )
    if served.mapping:
        metrics["kv_mapping_time"] = Metric(
            "time that iterations wait for pages", served.mapping, "seconds", 0.0, "lower"
        )
    return metrics


def _hits(served: Served, caching: Caching, accelerator: str) -> dict[str, Metric]:
    found, asked = float(served.found.sum()), float(served.requests.prompt.sum())
    metrics = {
        "prefix_hit_rate": Metric(
            "share of prompt tokens found in the prefix cache", found / asked, "fraction", 0.0, "higher"
        ),
        "prefix_tokens_saved": Metric("prompt tokens not computed", found, "tokens", 0.0, "higher"),
    }
    ledger = served.timeline.ledger
    for tier, memory in ((accelerator, accelerator), *((tier.name, tier.name) for tier in caching.lower)):
        _, resident = ledger.resident(memory)
        peak = float(np.max(resident.get("prefix cache", np.zeros(1)), initial=0.0))
        key = "hbm" if tier == accelerator else tier
        metrics[f"prefix_peak_bytes_{key}"] = Metric(
            f"most bytes of idle cached prefixes in {tier} for one GPU", peak, "bytes"
        )
    return metrics


def class_metrics(served: Served, frontend: float | Floats, errors: Mapping[str, float]) -> dict[str, Metric]:
    """Return latencies by class of request, where there are several: ``time_to_first_token_p99_NAME``."""
    kind = served.requests.kind
    if kind is None:
        return {}
    metrics: dict[str, Metric] = {}
    latencies = request_latencies(served, frontend)
    for index, name in enumerate(served.requests.names):
        mine = kind == index
        for key in ("time_to_first_token", "time_per_output_token"):
            label = LATENCIES[key]
            seconds = latencies[key][mine]
            seconds = seconds[~np.isnan(seconds)]
            if not len(seconds):
                continue
            for statistic in (50, 99):
                metrics[f"{key}_p{statistic}_{name.replace(' ', '_')}"] = Metric(
                    f"{label} of {name}, p{statistic}", float(np.percentile(seconds, statistic)), "seconds",
                    errors.get(key, 0.0), "lower",
                )  # fmt: skip
    return metrics
