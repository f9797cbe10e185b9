"""Streams of compressed weights: bytes and multiply-adds of a token by hand, and what decides its time."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.analysis import run
from simulator.specs import Catalog, MemroofError, SpecError

CATALOG = Catalog()
LAYERS = 32 * (4 * 4096**2 + 3 * 4096 * 11008) + 4096 * 32000  # products of Llama 2 7B, with the logits


def metrics(device: str = "alveo-u280", output: int = 2, **strategy: Any) -> Any:
    scenario = {
        "kind": "offload", "hardware": {"device": device}, "model": "llama2-7b",
        "workload": {"prompt": 128, "output": output}, "strategy": {"method": "stream-decode", **strategy},
    }  # fmt: skip
    return run(scenario, catalog=CATALOG).outcome.metrics


def test_a_token_by_hand() -> None:
    found = metrics(weight_bits=4.0, memory_efficiency=1.0)
    cache = 2 * 32 * 4096 * 129  # keys and values of 128 positions and the new one in 8 bits
    assert found["token_bytes"].value == pytest.approx(LAYERS / 2 + cache, rel=1e-3)
    assert found["time_per_output_token"].value == pytest.approx(found["token_bytes"].value / 460e9, rel=0.01)


def test_sparse_weights_bring_their_indices() -> None:
    dense = metrics(weight_bits=4.0)["token_bytes"].value
    sparse = metrics(weight_bits=4.0, density=0.5, index_bits=3.0)["token_bytes"].value
    cache = 2 * 32 * 4096 * 129
    assert (sparse - cache) / (dense - cache) == pytest.approx(0.5 * 7 / 4, rel=1e-3)


def test_few_units_bind_instead() -> None:
    # 2:8 of 2-bit weights, on a thousandth of the units: a quarter of the multiply-adds at 4.06 billion a second
    found = metrics(weight_bits=2.0, density=0.25, array_efficiency=1e-3)
    assert found["time_per_output_token"].value == pytest.approx(
        LAYERS * 0.25 / (8.12e12 / 2 * 1e-3), rel=0.05
    )


def test_activations_off_the_chip_wait_for_a_round_trip_each() -> None:
    # products of queries, keys and values in one, their sum, gate and up in one, down; attention; and the logits
    near, far = metrics(), metrics(activations="off-chip", memory_latency="10 us")
    waited = far["time_per_output_token"].value - near["time_per_output_token"].value
    assert waited == pytest.approx((32 * 5 + 1) * 10e-6, rel=0.03)
    assert far["memory_utilisation"].value < near["memory_utilisation"].value


@settings(max_examples=10, deadline=None)
@given(bits=st.sampled_from([2.0, 4.0, 8.0]), efficiency=st.sampled_from([0.3, 0.6, 1.0]))
def test_no_token_beats_the_memory_or_the_units(bits: float, efficiency: float) -> None:
    found = metrics(weight_bits=bits, memory_efficiency=efficiency)
    time, size = found["time_per_output_token"].value, found["token_bytes"].value
    assert time >= size / (460e9 * efficiency) * (1 - 1e-9)
    assert time >= LAYERS / (8.12e12 / 2) * (1 - 1e-9)
    assert found["memory_utilisation"].value <= efficiency * (1 + 1e-9)


def test_bits_chosen_on_one_board_hold_on_the_other() -> None:
    chosen = run("published/flightllm2024/u280", catalog=CATALOG)
    assert chosen.fits and not chosen.expectations
    assert chosen.outcome.metrics["decode_throughput"].value == pytest.approx(55, rel=0.02)
    judged = run("published/flightllm2024/vhk158", catalog=CATALOG)
    assert judged.fits and [check.ok for check in judged.expectations] == [True]


def test_weights_that_exceed_the_memory() -> None:
    result = run("published/flightllm2024/u280", catalog=Catalog(overrides={"strategy.weight_bits": "16"}))
    assert not result.fits and result.outcome.memory[0].free < -4e9


def test_what_is_refused() -> None:
    with pytest.raises(SpecError, match="'index_bits' has no meaning"):
        metrics(index_bits=3.0)
    with pytest.raises(SpecError, match="'memory_latency' belongs to"):
        metrics(memory_latency="1 us")
    with pytest.raises(MemroofError, match="has no fp8"):
        metrics(precision="fp8")
