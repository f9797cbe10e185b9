"""Figures of a serving run: latencies by request, throughput, cache and batch over time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from simulator.serving.kv_cache import KVCache
from simulator.serving.scheduler import Served
from simulator.serving.workload import Floats
from simulator.specs import ServiceObjective
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

_NORMAL_80 = 1.2816
"""Standard normal deviate of the ends of an 80 % interval."""
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
    served: Served, prefill_error: float, run_error: float, frontend: float | Floats = 0.0
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
    frontend : float or array, shape (n,)
        Round trip between client and scheduler: in the times to the first token and to the end [s].
    """
    latencies = request_latencies(served, frontend)
    errors = {"time_to_first_token": prefill_error}
    metrics: dict[str, Metric] = {}
    for key, label in LATENCIES.items():
        seconds = latencies[key]
        metrics |= _spread(key, label, seconds[~np.isnan(seconds)], errors.get(key, run_error))
    return metrics


def request_latencies(served: Served, frontend: float | Floats = 0.0) -> dict[str, Floats]:
    """Latencies of each request, by the keys of :data:`LATENCIES` [s].

    Parameters
    ----------
    served : Served
        A run.
    frontend : float or array, shape (n,)
        Round trip between client and scheduler [s].

    Returns
    -------
    dict of str to array, shape (n,)
        The time per output token of an answer of one token is not a number.
    """
    requests = served.requests
    later = np.where(requests.output > 1, requests.output - 1.0, np.nan)
    return {
        "time_to_first_token": served.first_token - requests.arrival + frontend,
        "time_per_output_token": (served.end - served.first_token) / later,
        "end_to_end": served.end - requests.arrival + frontend,
        "queue_time": served.admitted - requests.arrival,
    }


def served_well(latencies: Mapping[str, Any], bounds: Mapping[str, float]) -> Floats:
    """Return by how much each request misses or holds all bounds: the largest latency over its bound, 1 at the bound.

    Parameters
    ----------
    latencies : mapping of str to array, shape (n,)
        As from :func:`request_latencies`; what is not a number holds any bound [s].
    bounds : mapping of str to float
        Largest latency, by key [s].
    """
    ratios = [np.nan_to_num(np.asarray(latencies[key]) / bound, nan=0.0) for key, bound in bounds.items()]
    worst: Floats = np.max(ratios, axis=0)
    return worst


def objective_metrics(
    served: Served,
    slo: ServiceObjective,
    replicas: int,
    errors: Mapping[str, float],
    frontend: float | Floats = 0.0,
) -> dict[str, Metric]:
    """Share of the requests that hold a service-level objective, and how many of them a second (goodput).

    The requests of Zhong et al. 2024 (arXiv:2401.09670, DistServe, section 2): all bounds at once. The interval is what
    comes out if all latencies are longer or shorter by their 80 % interval.

    Parameters
    ----------
    served : Served
        A run of one replica.
    slo : ServiceObjective
        Bounds.
    replicas : int
        Equal replicas that the goodput counts.
    errors : mapping of str to float
        Relative standard error of a latency, by key.
    frontend : float or array, shape (n,)
        As for :func:`latency_metrics` [s].
    """
    latencies, rate = request_latencies(served, frontend), replicas * len(served.requests) / duration(served)

    def attained(bounds: Mapping[str, float], side: float) -> float:
        moved = {
            key: bound * math.exp(-side * _NORMAL_80 * errors.get(key, 0.0)) for key, bound in bounds.items()
        }
        return float((served_well(latencies, moved) <= 1.0).mean())

    share, low, high = (attained(slo.bounds, side) for side in (0.0, 1.0, -1.0))
    label = "requests that hold the objective"
    metrics = {
        "slo_attainment": Metric(label, share, "fraction", better="higher", span=(low, high)),
        "goodput": Metric(
            "goodput, requests per second",
            share * rate,
            "1/s",
            better="higher",
            span=(low * rate, high * rate),
        ),
    }
    if len(slo.bounds) > 1:
        for key, bound in slo.bounds.items():
            alone = [attained({key: bound}, side) for side in (0.0, 1.0, -1.0)]
            metrics[f"slo_attainment_{key}"] = Metric(
                f"requests that hold its {LATENCIES[key]}", alone[0], "fraction", better="higher",
                span=(alone[1], alone[2]),
            )  # fmt: skip
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


def state_metrics(served: Served, cache: KVCache) -> dict[str, Metric]:
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


def tables(served: Served, frontend: float | Floats = 0.0) -> dict[str, Mapping[str, Any]]:
    """Columns by request, with its latencies, and by run of iterations."""
    requests, log = served.requests, served.log
    by_request = {
        "arrival": requests.arrival, "prompt": requests.prompt, "output": requests.output,
        "admitted": served.admitted, "first_token": served.first_token, "end": served.end,
        "found": served.found, **_given(priority=requests.priority, kind=requests.kind),
        **request_latencies(served, frontend),
    }  # fmt: skip
    return {
        "requests": by_request,
        "iterations": {name: np.array(column) for name, column in vars(log).items()},
    }


def _given(**columns: Any) -> dict[str, Any]:
    return {name: column for name, column in columns.items() if column is not None}
