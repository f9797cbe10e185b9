"""Figures of a serving run: latencies by request, throughput, cache and batch over time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from simulator.serving.kv_cache import PagedCache
from simulator.serving.scheduler import Served
from simulator.serving.workload import Floats
from simulator.strategy import Metric

BACKLOG = 0.05
"""Share of the requests that may wait when the last one arrives before the queue is said to grow without bound."""

ITERATION_SPREAD = 0.15
"""Relative standard error of iteration times beyond that of kernels: fusion, gaps, sampling, settings that nobody states.
Set from the residuals of the published points in ``aiconfigurator/serving_ttft_tpot.csv``, which it is therefore not judged by:
times per output token are half within 12 %, where kernels are half within 5 to 8 %."""
QUEUE_SPREAD = 0.6
"""The same of times to the first token: how a client sends, when an engine looks for requests and how it batches prompts.
Set from the same points."""

LATENCIES = {
    "time_to_first_token": "time to first token",
    "time_per_output_token": "time per output token",
    "end_to_end": "end-to-end time",
    "queue_time": "time in the queue",
}
RATES = {
    "output_throughput": "output tokens per second",
    "total_throughput": "prompt and output tokens per second",
    "request_throughput": "requests per second",
    "output_throughput_per_gpu": "output tokens per second and GPU",
}


def latency_metrics(
    served: Served, prefill_error: float, run_error: float, frontend: float = 0.0
) -> dict[str, Metric]:
    """Mean and percentiles of time to first token, time per output token, and end-to-end time.

    Time per output token is (end - first token) / (outputs - 1), over requests of two outputs or more, as serving
    benchmarks count it; of a static batch the end is that of the batch.

    Parameters
    ----------
    served : Served
        A run.
    prefill_error, run_error : float
        Relative standard errors of the iterations with prompts and of all.
    frontend : float
        Round trip between client and scheduler: in the times to the first token and to the end [s].
    """
    requests = served.requests
    first = served.first_token - requests.arrival + frontend
    several = requests.output > 1
    gaps = (served.end - served.first_token)[several] / (requests.output[several] - 1)
    seconds = {
        "time_to_first_token": (first, prefill_error),
        "time_per_output_token": (gaps, run_error),
        "end_to_end": (served.end - requests.arrival + frontend, run_error),
        "queue_time": (served.admitted - requests.arrival, run_error),
    }
    metrics: dict[str, Metric] = {}
    for key, label in LATENCIES.items():
        metrics |= _spread(key, label, *seconds[key])
    return metrics


def _spread(key: str, label: str, seconds: Floats, error: float) -> dict[str, Metric]:
    if not len(seconds):
        return {}
    percentiles = np.percentile(seconds, (50, 90, 99)).tolist()
    return _named(key, label, (float(seconds.mean()), *percentiles), error)


def _named(key: str, label: str, values: Iterable[float], error: float = 0.0) -> dict[str, Metric]:
    return {
        f"{key}_{statistic}": Metric(f"{label}, {statistic}", value, "seconds", error, "lower")
        for statistic, value in zip(("mean", "p50", "p90", "p99"), values, strict=True)
    }


def throughput_metrics(served: Served, replicas: int, gpus: int, error: float) -> dict[str, Metric]:
    """Tokens and requests per second from the first arrival to the last end, of all replicas and per GPU.

    Where arrivals set the pace, slower iterations lengthen only what is left after the last of them: ``error``, the
    relative standard error of iteration times, counts for this share of the run.
    """
    requests, seconds = served.requests, duration(served)
    if not (saturated(served) or requests.closed):
        error *= (served.makespan - float(requests.arrival[-1])) / seconds
    output = replicas * float(requests.output.sum()) / seconds
    values = {
        "output_throughput": output,
        "total_throughput": output + replicas * float(requests.prompt.sum()) / seconds,
        "request_throughput": replicas * len(requests) / seconds,
        "output_throughput_per_gpu": output / gpus,
    }
    return {key: Metric(label, values[key], "1/s", error, "higher") for key, label in RATES.items()}


def state_metrics(served: Served, cache: PagedCache) -> dict[str, Metric]:
    """Cache capacity and peak, batch, preemptions, and requests that wait when the last one arrives."""
    log = served.log
    batch = np.array(log.decoding) + np.array(log.prefilling)
    seconds = np.array(log.seconds)
    return {
        "kv_capacity": Metric("tokens that the KV cache holds", float(cache.tokens), "tokens", 0.0, "higher"),
        "kv_peak_occupancy": Metric(
            "largest share of the KV cache in use", max(log.kv_bytes) / cache.capacity, "fraction"
        ),
        "largest_batch": Metric("largest batch", float(batch.max()), "count"),
        "mean_batch": Metric("mean batch while busy", float(batch @ seconds / seconds.sum()), "count"),
        "preemptions": Metric("preemptions", float(served.preemptions), "count", 0.0, "lower"),
        "backlog": Metric(
            "requests waiting when the last one arrives", float(backlog(served)), "count", 0.0, "lower"
        ),
    }


def unserved_metrics() -> dict[str, Metric]:
    """Throughput and latency of a replica that cannot run: it yields nothing, and a request waits without end."""
    metrics = {key: Metric(label, 0.0, "1/s", 0.0, "higher") for key, label in RATES.items()}
    for key, label in LATENCIES.items():
        metrics |= _named(key, label, (np.inf,) * 4)
    return metrics


def duration(served: Served) -> float:
    """Seconds from the first arrival to the last end [s]."""
    return served.makespan - float(served.requests.arrival[0])


def backlog(served: Served) -> int:
    """Requests that are not admitted yet when the last one arrives."""
    return int((served.admitted > served.requests.arrival[-1]).sum())


def saturated(served: Served) -> bool:
    """Whether arrivals outrun service: more wait at the last arrival than :data:`BACKLOG` of all, and than two."""
    given = not (served.requests.offline or served.requests.closed)
    return given and backlog(served) > max(2.0, BACKLOG * len(served.requests))


def tables(served: Served) -> dict[str, Mapping[str, Any]]:
    """Columns by request and by run of iterations."""
    requests, log = served.requests, served.log
    by_request = {
        "arrival": requests.arrival, "prompt": requests.prompt, "output": requests.output,
        "admitted": served.admitted, "first_token": served.first_token, "end": served.end,
    }  # fmt: skip
    return {
        "requests": by_request,
        "iterations": {name: np.array(column) for name, column in vars(log).items()},
    }
