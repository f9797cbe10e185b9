"""Published figures of ProMoE, MoNDE and eMoE as scenarios: which rows are judged, by what, and why others are not."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from simulator.analysis import load, run
from simulator.specs import Catalog, MemroofError
from simulator.validation.datasets.moe_offload_claims import claim


@pytest.fixture(scope="module")
def catalog():
    return Catalog(environment={})


def row(system, **keys):
    given = {
        "model": "",
        "workload": "",
        "strategy": "",
        "baseline_strategy": "",
        "metric": "",
        "unit": "x",
        "value": 1.0,
    }
    return SimpleNamespace(system=system, **{**given, **keys})


@pytest.mark.parametrize(("system", "keys", "count", "measured"), [
    ("ProMoE", {"workload": "transformers, decode, batch 1", "baseline_strategy": "LRU expert cache", "metric": "speedup mean", "value": 1.31}, 5, 1.31),
    ("ProMoE", {"workload": "prefill, batch 1, ShareGPT", "baseline_strategy": "framework-built-in offloading", "metric": "speedup max", "value": 3.21}, 10, 3.21),
    ("ProMoE", {"workload": "decode, 50% experts cached", "metric": "TPOT", "unit": "ms", "value": 67.9}, 1, 0.0679),
    ("ProMoE", {"model": "Qwen2-MoE", "workload": "decode", "strategy": "LRU", "metric": "expert loading share of critical path", "unit": "%", "value": 50.89}, 1, 0.5089),
    ("MoNDE", {"model": "mean of both", "workload": "decoder, 512 tokens, bf16", "metric": "throughput ratio mean", "value": 1.5}, 2, 1.5),
    ("MoNDE", {"model": "NLLB-MoE", "metric": "expert weights", "unit": "GB", "value": 103.1}, 1, 103.1e9),
    ("eMoE", {"model": "Mixtral-8x7B", "metric": "slowdown of naive dynamic loading", "value": 5.0}, 1, 5.0),
])  # fmt: skip
def test_a_row_is_scenarios_that_load(catalog, system, keys, count, measured):
    found = claim(row(system, **keys))
    assert found.measured == pytest.approx(measured)
    assert len(found.contents) == count
    for content in found.contents:
        load(content, catalog=catalog)


@pytest.mark.parametrize(("system", "keys", "message"), [
    ("ProMoE", {"workload": "decode, batch 1, ShareGPT", "baseline_strategy": "framework-built-in offloading", "metric": "speedup mean"}, "decodes on the CPU"),
    ("ProMoE", {"strategy": "ProMoE high cache", "metric": "expert loading share of critical path"}, "not stated"),
    ("MoNDE", {"model": "max case", "metric": "throughput ratio max"}, "not stated"),
    ("eMoE", {"model": "OpenMoE", "metric": "slowdown of naive dynamic loading"}, "configurations not stated"),
    ("MoNDE", {"value": float("nan")}, "no number"),
])  # fmt: skip
def test_a_row_that_is_not_judged_says_why(system, keys, message):
    with pytest.raises(MemroofError, match=message):
        claim(row(system, **keys))


def test_the_figure_of_a_row_is_a_metric(catalog):
    found = claim(row("MoNDE", model="Switch-Large-128", metric="non-expert weights", unit="GB", value=1.1))
    value, error = found.value([run(content, catalog=catalog).outcome.metrics for content in found.contents])
    assert value == pytest.approx(found.measured, rel=0.03)
    assert error == 0.0
