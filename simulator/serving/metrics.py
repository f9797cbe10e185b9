"""Figures of a serving run: latencies by request, throughput, cache and batch over time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from simulator.serving.kv_cache import PagedCache
from simulator.serving.scheduler import Served
from simulator.serving.workload import Floats
from simulator.strategy import Metric

BACKLOG = 0.05
"""Share of the requests that may wait when the last one arrives before the queue is said to grow without bound."""


def latency_metrics(served: Served, prefill_error: float, run_error: float) -> dict[str, Metric]:
    """Mean and percentiles of time to first token, time per output token, and end-to-end time.

    Time per output token is (end - first token) / (outputs - 1), over requests of two outputs or more, as serving
    benchmarks count it; of a static batch the end is that of the batch.

    Parameters
    ----------
    served : Served
        A run.
    prefill_error, run_error : float
        Relative standard errors of the iterations with prompts and of all.
    """
    requests = served.requests
    first = served.first_token - requests.arrival
    several = requests.output > 1
    gaps = (served.end - served.first_token)[several] / (requests.output[several] - 1)
    metrics = _spread("time_to_first_token", "time to first token", first, prefill_error)
    metrics |= _spread("time_per_output_token", "time per output token", gaps, run_error)
    metrics |= _spread("end_to_end", "end-to-end time", served.end - requests.arrival, run_error)
    metrics |= _spread("queue_time", "time in the queue", served.admitted - requests.arrival, run_error)
    return metrics


def _spread(key: str, label: str, seconds: Floats, error: float) -> dict[str, Metric]:
    if not len(seconds):
        return {}
    p50, p90, p99 = np.percentile(seconds, (50, 90, 99)).tolist()
    values = {"mean": float(seconds.mean()), "p50": p50, "p90": p90, "p99": p99}
    return {f"{key}_{k}": Metric(f"{label}, {k}", v, "seconds", error, "lower") for k, v in values.items()}


def throughput_metrics(served: Served, replicas: int, gpus: int, error: float) -> dict[str, Metric]:
    """Tokens and requests per second of all replicas from the first arrival to the last end; per GPU of ``gpus`` in all."""
    requests, seconds = served.requests, duration(served)
    output = replicas * float(requests.output.sum()) / seconds
    total = replicas * float((requests.prompt + requests.output).sum()) / seconds
    rates = {
        "output_throughput": ("output tokens per second", output),
        "total_throughput": ("prompt and output tokens per second", total),
        "request_throughput": ("requests per second", replicas * len(requests) / seconds),
        "output_throughput_per_gpu": ("output tokens per second and GPU", output / gpus),
    }
    return {key: Metric(label, value, "1/s", error, "higher") for key, (label, value) in rates.items()}


def state_metrics(served: Served, cache: PagedCache) -> dict[str, Metric]:
    """Cache capacity and peak, batch, preemptions, and requests that wait when the last one arrives."""
    log = served.log
    batch = np.array(log.decoding) + np.array(log.prefilling)
    seconds = np.array(log.seconds)
    return {
        "kv_capacity": Metric("KV cache capacity", float(cache.tokens), "tokens", 0.0, "higher"),
        "kv_peak_occupancy": Metric("largest share of the KV cache in use", max(log.kv_bytes) / cache.capacity, "fraction"),
        "largest_batch": Metric("largest batch", float(batch.max()), "count"),
        "mean_batch": Metric("mean batch while busy", float(batch @ seconds / seconds.sum()), "count"),
        "preemptions": Metric("preemptions", float(served.preemptions), "count", 0.0, "lower"),
        "backlog": Metric("requests waiting when the last one arrives", float(backlog(served)), "count", 0.0, "lower"),
    }


def duration(served: Served) -> float:
    """Seconds from the first arrival to the last end [s]."""
    return served.makespan - float(served.requests.arrival[0])


def backlog(served: Served) -> int:
    """Requests that are not admitted yet when the last one arrives."""
    return int((served.admitted > served.requests.arrival[-1]).sum())


def saturated(served: Served) -> bool:
    """Whether arrivals outrun service: more wait at the last arrival than :data:`BACKLOG` of all, and than two."""
    return served.requests.arrival[-1] > served.requests.arrival[0] and backlog(served) > max(
        2.0, BACKLOG * len(served.requests)
    )


def tables(served: Served) -> dict[str, Mapping[str, Any]]:
    """Columns by request and by run of iterations."""
    requests, log = served.requests, served.log
    by_request = {
        "arrival": requests.arrival, "prompt": requests.prompt, "output": requests.output,
        "admitted": served.admitted, "first_token": served.first_token, "end": served.end,
    }  # fmt: skip
    return {"requests": by_request, "iterations": {name: np.array(column) for name, column in vars(log).items()}}
