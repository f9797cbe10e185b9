"""Speed of the search for the largest load."""

import statistics

from simulator.analysis.capacity import largest_rate


def test_largest_rate_over_ten_thousand_requests(benchmark) -> None:
    """Llama-3.1-8B on one H100, with its interval and the error of sampling, on one core."""
    scenario = {
        "kind": "serving", "name": "bench", "model": "llama3.1-8b", "hardware": {"device": "h100-sxm"},
        "workload": {"rate": "10 req/s", "requests": 10_000, "prompt": 512, "output": 64},
        "slo": {"time_to_first_token": "300 ms", "time_per_output_token": "25 ms"},
    }  # fmt: skip
    found = benchmark.pedantic(lambda: largest_rate(scenario), rounds=1)
    assert found.requests == 10_000
    assert found.low < found.value < found.high
    assert statistics.median(benchmark.stats.stats.data) < 10.0
