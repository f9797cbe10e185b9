"""vLLM benchmark results: ``vllm bench serve``, ``throughput`` and ``latency``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simulator.traces.trace import Benchmark, Trace, fault, number, read_documents

STATISTICS = {"mean": "mean", "median": "p50", "p50": "p50", "p90": "p90", "p99": "p99"}
LATENCIES = {"ttft": "time_to_first_token", "tpot": "time_per_output_token", "e2el": "end_to_end"}
RATES = {
    "request_throughput": "request_throughput", "output_throughput": "output_throughput",
    "total_token_throughput": "total_throughput", "requests_per_second": "request_throughput",
    "tokens_per_second": "total_throughput",
}  # fmt: skip
"""Keys of the results to memroof's metrics, all per second."""
SETTINGS = (
    "backend", "endpoint_type", "model_id", "dataset_name", "num_prompts", "num_requests", "completed", "request_rate",
    "max_concurrency", "duration", "elapsed_time", "total_input_tokens", "total_output_tokens", "total_num_tokens",
)  # fmt: skip


def matches(head: str) -> bool:
    """Whether the keys of one of the three benchmarks are there."""
    return head.lstrip()[:1] == "{" and any(
        f'"{key}"' in head
        for key in ("total_token_throughput", "mean_ttft_ms", "requests_per_second", "avg_latency")
    )


def read(file: Path) -> Trace:
    """Read one result, or one a line."""
    return Trace(str(file), "vllm", benchmarks=results(file, LATENCIES, RATES))


def results(file: Path, latencies: Mapping[str, str], rates: Mapping[str, str]) -> tuple[Benchmark, ...]:
    """Read results whose latencies stand as ``mean_ttft_ms`` and whose rates by name.

    Parameters
    ----------
    file : Path
        One JSON object, a list of them, or one a line.
    latencies : mapping
        Part of the key between statistic and ``_ms``, to the stem of memroof's metric.
    rates : mapping
        Key to metric.
    """
    found = []
    for line, document in read_documents(file):
        for result in document if isinstance(document, list) else [document]:
            if not isinstance(result, dict):
                raise fault(file, "a result is no JSON object", line)
            metrics = _metrics(result, file, line, latencies, rates)
            if not metrics:
                raise fault(file, "holds no latency or throughput that is known", line)
            found.append(Benchmark(_label(result), metrics, _settings(result)))
    return tuple(found)


def _metrics(
    result: Mapping[str, Any], file: Path, line: int, latencies: Mapping[str, str], rates: Mapping[str, str]
) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for part, stem in latencies.items():
        for statistic, short in STATISTICS.items():
            key = f"{statistic}_{part}_ms"
            if result.get(key) is not None:
                metrics[f"{stem}_{short}"] = number(result[key], file, key, line) * 1e-3
    for key, metric in rates.items():
        if result.get(key) is not None:
            metrics[metric] = number(result[key], file, key, line)
    if "avg_latency" in result:  # of whole batches that start together
        metrics["end_to_end_mean"] = number(result["avg_latency"], file, "avg_latency", line)
        percentiles = result.get("percentiles")
        for percentile, short in (("50", "p50"), ("90", "p90"), ("99", "p99")):
            if isinstance(percentiles, dict) and percentile in percentiles:
                value = number(percentiles[percentile], file, f"percentiles.{percentile}", line)
                metrics[f"end_to_end_{short}"] = value
    return metrics


def _settings(result: Mapping[str, Any]) -> dict[str, str]:
    return {key: str(result[key]) for key in SETTINGS if result.get(key) is not None}


def _label(result: Mapping[str, Any]) -> str:
    parts = (
        [f"{result['request_rate']} requests/s"] if result.get("request_rate") not in (None, "inf") else []
    )
    if result.get("max_concurrency"):
        parts.append(f"concurrency {result['max_concurrency']}")
    return ", ".join(parts) or "all requests at once"
