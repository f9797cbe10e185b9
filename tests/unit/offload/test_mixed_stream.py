"""Weights streamed in every iteration: the bounds of MoE-Lens, the program against them, and what DRAM leaves to whom."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.analysis.run import load
from simulator.offload import remedies, simulate
from simulator.offload.mixed_stream.bounds import (
    effective_cache,
    exchanged_bytes,
    host_bandwidth,
    parallelism,
    stream_time,
    token_rate,
)
from simulator.specs import Catalog, MemroofError

CATALOG = Catalog(environment={})


def scenario(model="mixtral-8x7b", hardware="server-a40-8380", prompt=98, output=32, **strategy):
    workload = {"prompt": prompt, "output": output}
    if "sequences" in strategy:
        workload["sequences"] = strategy.pop("sequences")
    given_ = {"method": "mixed-stream", "kv_capacity": "70 GB", "copy_rate": "19.5 GB/s", **strategy}
    return load(
        {"kind": "offload", "hardware": hardware, "model": model, "workload": workload, "strategy": given_},
        catalog=CATALOG,
    )


def metrics(**keys):
    return {name: metric.value for name, metric in simulate(scenario(**keys)).metrics.items()}


# --- bounds ----------------------------------------------------------------------------------------------------------


def test_the_formulas_of_section_5_by_hand():
    # MTBench: prompts of 98, outputs of 32; Mixtral 8x7B: 94 GB of weights, 262,144 B of fp32 cache a token
    assert stream_time(94e9, 19.5e9) == pytest.approx(4.82, abs=0.005)
    assert parallelism(98, 32) == pytest.approx(2 * 130 / (228 * 32))
    assert token_rate(98, 32, 70e9 / 262144, 94e9 / 19.5e9, 1e9) == pytest.approx(1974, rel=0.001)
    assert token_rate(98, 32, 140e9 / 262144, 94e9 / 19.5e9, 1e9) == pytest.approx(3948, rel=0.001)
    assert effective_cache(70e9, 98, 32) == pytest.approx(70e9 * 130 / 114)
    assert host_bandwidth(210e9, 5.0, 19.5e9) == pytest.approx(61.5e9)
    # 200 MB at 18,500 tokens, says the paper; d = 4096 in 16 bits with 4 query heads a KV head
    assert exchanged_bytes(18_500, 4096, 4) == pytest.approx(227e6, rel=0.005)


def test_bounds_broadcast():
    rates = token_rate(98, np.array([32, 256]), 1e6, 4.8, 1e9)
    assert rates.shape == (2,)
    assert rates[0] > rates[1]


@given(prompt=st.integers(1, 10_000), output=st.integers(1, 10_000))
def test_an_iteration_processes_what_requests_bring_over_their_lives(prompt, output):
    # p + g tokens go through the model, the cache holds p + g/2 of them for g iterations
    assert parallelism(prompt, output) * output * (prompt + output / 2) == pytest.approx(prompt + output)


# --- program ---------------------------------------------------------------------------------------------------------


def test_no_iteration_is_shorter_than_its_weight_stream_or_its_gpu_work():
    found = metrics()
    assert found["iteration_time"] >= found["weight_bytes"] / 19.5e9
    assert found["gpu_utilization"] <= 1.0
    assert found["token_throughput"] <= found["bound_token_throughput"] * (1 + 1e-9)
    assert found["token_throughput"] == pytest.approx(found["bound_token_throughput"], rel=0.1)


def test_requests_fill_the_cache_at_their_mean_length():
    found = metrics(kv_precision="fp32")
    assert found["decoding_sequences"] == pytest.approx(70e9 / 262144 / 114)
    assert found["kv_cache_bytes"] == pytest.approx(70e9)
    assert found["token_throughput"] == pytest.approx(found["generation_throughput"] * (1 + 98 / 32))


def test_attention_on_cpus_stretches_the_weight_stream():
    # MoE-Lens, section 8.2: from 5 to 6 s with 210 GB of cache
    small, large = (metrics(kv_capacity=size, output=128) for size in ("7 GB", "210 GB"))
    assert small["weight_stream_time"] == pytest.approx(94e9 / 19.5e9, rel=0.03)
    assert large["weight_stream_time"] == pytest.approx(6.0, rel=0.1)


def test_two_groups_hide_attention_that_one_waits_for():
    # alone, it comes after the first half and before the second half of each layer
    two, one = metrics(kv_capacity="210 GB"), metrics(kv_capacity="210 GB", groups=1)
    assert two["iteration_time"] < one["iteration_time"]


def test_more_cache_is_never_slower():
    rates = [metrics(kv_capacity=f"{size} GB")["generation_throughput"] for size in (35, 70, 140)]
    assert rates == sorted(rates)


def test_memory_holds_two_layers_beside_all_weights_in_dram():
    outcome = simulate(scenario())
    used = {use.tier: use for use in outcome.memory}
    layer = 46.7e9 * 2 / 32
    assert used["hbm"].by_category["buffers"] == pytest.approx(2 * layer, rel=0.1)
    assert used["dram"].peak == pytest.approx(93.4e9 + 70e9, rel=0.01)
    assert outcome.fits


def test_too_large_a_cache_is_remedied():
    setup = scenario(kv_capacity="600 GB")
    outcome = simulate(setup)
    assert not outcome.fits
    assert any("strategy.kv_capacity" in remedy.overrides for remedy in remedies(setup))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"kv_capacity": "1 MB"}, "one request of 130 tokens does not fit in 0.001 GB"),
        ({"model": "deepseek-v3"}, "latent cache on CPUs is not modelled"),
        ({"hardware": "server-4x4090"}, "one accelerator"),
        ({"model": "bert-large"}, "generates with decoders"),
    ],
)
def test_what_cannot_run_is_refused(keys, message):
    with pytest.raises(MemroofError, match=message):
        simulate(scenario(**keys))
