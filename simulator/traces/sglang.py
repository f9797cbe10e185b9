"""SGLang ``bench_serving`` results: one JSON object a line, one for each run."""

from __future__ import annotations

from pathlib import Path

from simulator.traces.trace import Trace
from simulator.traces.vllm import results

LATENCIES = {"ttft": "time_to_first_token", "tpot": "time_per_output_token", "e2e_latency": "end_to_end"}
RATES = {
    "request_throughput": "request_throughput", "output_throughput": "output_throughput",
    "total_throughput": "total_throughput",
}  # fmt: skip


def matches(head: str) -> bool:
    """Whether a key that only SGLang writes is there."""
    return head.lstrip()[:1] == "{" and any(
        key in head for key in ('"mean_e2e_latency_ms"', '"total_output_tokens_retokenized"')
    )


def read(file: Path) -> Trace:
    """Read all runs of a file."""
    return Trace(str(file), "sglang", benchmarks=results(file, LATENCIES, RATES))
