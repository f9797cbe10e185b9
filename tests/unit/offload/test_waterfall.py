"""Attention on a spatial accelerator, against figures of FuseMax's artifact and laws of mappings."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.analysis import run
from simulator.offload.waterfall.attention import attention
from simulator.offload.waterfall.linear import product_traffic
from simulator.offload.waterfall.units import Layer, Units, largest_divisor
from simulator.specs import Catalog, MemroofError, SpecError
from simulator.specs.waterfall_scenario import Dataflow, Mapping

CATALOG = Catalog()
BERT = {"heads": 12, "head_dim": 64, "hidden": 768, "feed_forward": 3072}
FUSEMAX = Units(256, 256, 256, 0.94e9, 6.0, True, 16 * 2**20, 400 * 2**30, 2.0)
FLAT = Units(256, 256, 256, 0.94e9, 1.0, False, 32 * 2**20, 400 * 2**30, 2.0)


def content(device: str, sequence: Any, **strategy: Any) -> dict[str, Any]:
    return {
        "kind": "offload", "hardware": {"device": device}, "strategy": {"method": "waterfall", **strategy},
        "workload": {"batch": 64, "sequence": sequence, "layers": {"bert": BERT}},
    }  # fmt: skip


def layer(sequence: int, width: int = 64, heads: int = 12) -> Layer:
    return Layer("layer", 64, sequence, heads, width, heads * width, 0, False)


# FPSG-UIUC/micro24-fusemax-artifact, BERT: attention's latency [s] and memory traffic [B]
ARTIFACT = [
    ("flat-cloud", 1024, {"dataflow": "unfused"}, 0.02182357659574468, 6845104128.0),
    ("flat-cloud", 4096, {"dataflow": "row-fused", "hold_queries": False}, 0.2141772255319149, 21128367461.209305),
    ("flat-cloud", 262144, {"dataflow": "row-fused", "tile_rows": 1024}, 1013.88, 435458144206848.0),
    ("fusemax-cloud", 1024, {"interleaved": False}, 0.005987131914893616, 402653184.0),
    ("fusemax-cloud", 262144, {}, 118.2793728, 463856467968.0),
]  # fmt: skip


@pytest.mark.parametrize(("device", "sequence", "strategy", "time", "traffic"), ARTIFACT)
def test_points_of_the_artifact(
    device: str, sequence: int, strategy: dict[str, Any], time: float, traffic: float
) -> None:
    metrics = run(content(device, sequence, **strategy), catalog=CATALOG).outcome.metrics
    assert metrics["attention_time"].value == pytest.approx(time, rel=1e-6)
    assert metrics["attention_traffic"].value == pytest.approx(traffic, rel=1e-6)


def test_the_cascade_on_flats_units_needs_half_its_buffer() -> None:
    # artifact, +Cascade, BERT at 16K: 32 tiles of 256 queries fit 16 MiB, so that keys and values are read twice
    scenario = content("flat-cloud", 16384)
    scenario["hardware"]["changes"] = {"cache": {"buffer": {"capacity": "16 MiB"}}}
    metrics = run(scenario, catalog=CATALOG).outcome.metrics
    assert metrics["attention_time"].value == pytest.approx(3.8752691744680856, rel=1e-6)
    assert metrics["attention_traffic"].value == pytest.approx(9663676416.0, rel=1e-9)


def test_a_tile_by_hand() -> None:
    # one map of 256 x 256 on one array pass: QK and SLNV 64 cycles each, maximum 1, exponential 6 + 1, sum 1 on the array;
    # the vector unit is done with RD, RNV and AV (1 + 64 + 64) after QK and LM (65)
    one = Layer("one", 1, 256, 1, 64, 64, 0, False)
    cycles = max(64 + 1, 1 + 64 + 64) + 1 + max(7 + 1, 7 + 1) + max(64, 64)
    found = attention(one, FUSEMAX, Mapping())
    stages = found.phases[0].stages
    spent = [sum(w.time for w in stage if w.unit == unit) for stage in stages for unit in ("array", "vector")]
    total = sum(max(pair) for pair in zip(spent[::2], spent[1::2], strict=True))
    assert total * 0.94e9 == pytest.approx(cycles)
    assert found.traffic == 4 * 256 * 64 * 2


def test_linear_layers_re_read_weights_that_do_not_fit() -> None:
    # artifact, XLM at 1K in 32 MiB: both weights of the feed-forward network are 32 MiB; tiles of 4,096 and 1,024 rows
    tokens, hidden, inner = 64 * 1024, 2048, 8192
    four = 4 * product_traffic(tokens, hidden, hidden, FLAT)
    network = product_traffic(tokens, hidden, inner, FLAT) + product_traffic(tokens, inner, hidden, FLAT)
    assert four + network == 7549747200.0


def test_the_published_scenarios_hold() -> None:
    for name in ("fusemax", "architecture", "cascade", "over-unfused"):
        result = run(f"published/fusemax2024/{name}", catalog=CATALOG)
        assert result.expectations and all(check.ok for check in result.expectations)


@given(
    tiles=st.integers(1, 64),
    width=st.sampled_from([16, 64, 128, 256]),
    dataflow=st.sampled_from(["unfused", "row-fused", "one-pass"]),
)
def test_traffic_is_never_below_the_operands_and_time_never_below_either_unit(
    tiles: int, width: int, dataflow: Any
) -> None:
    case = layer(256 * tiles, width)
    found = attention(case, FUSEMAX, Mapping(dataflow=dataflow))
    assert found.traffic >= 4 * case.maps * case.sequence * width * 2
    scenario = content("fusemax-cloud", case.sequence, dataflow=dataflow)
    scenario["workload"]["layers"] = {"layer": {"heads": 12, "head_dim": width}}
    metrics = run(scenario, catalog=CATALOG).outcome.metrics
    floor = max(found.busy("array"), found.busy("vector"), found.traffic / FUSEMAX.bandwidth)
    assert metrics["attention_time"].value >= floor * (1 - 1e-9)


@given(tiles=st.integers(1, 200), more=st.integers(1, 4))
def test_a_larger_buffer_never_moves_more(tiles: int, more: int) -> None:
    case = layer(256 * tiles)
    larger = Units(256, 256, 256, 0.94e9, 6.0, True, FUSEMAX.buffer * more, FUSEMAX.bandwidth, 2.0)
    for mapping in (Mapping(), Mapping(dataflow="unfused")):
        assert attention(case, larger, mapping).traffic <= attention(case, FUSEMAX, mapping).traffic
    assert product_traffic(1 << 16, 2048, 8192, larger) <= product_traffic(1 << 16, 2048, 8192, FUSEMAX)


def test_interleaving_never_slows_and_passes_order_the_traffic() -> None:
    times = [
        run(content("fusemax-cloud", 16384, interleaved=on), catalog=CATALOG).outcome.total_time for on in (True, False)
    ]  # fmt: skip
    assert times[0] < times[1]
    flows: tuple[Dataflow, ...] = ("one-pass", "row-fused", "unfused")
    moved = [attention(layer(16384), FUSEMAX, Mapping(dataflow=each)).traffic for each in flows]
    assert moved == sorted(moved)


def test_divisors() -> None:
    assert [largest_divisor(12, limit) for limit in (0.5, 1, 5, 7.9, 12, 99)] == [1, 1, 4, 6, 12, 12]
    assert largest_divisor(1024, 251) == 128  # FuseMax's tile for BERT at 256K


@pytest.mark.parametrize(
    ("device", "strategy", "message"),
    [
        ("flat-cloud", {"softmax": "array"}, "only multiplies and adds"),
        ("flat-cloud", {"interleaved": False}, "decides nothing where softmax is on the vector unit"),
        ("h100-sxm", {}, "has no 'array'"),
        ("fusemax-cloud", {"tile_rows": 1000}, "does not divide"),
    ],
)
def test_what_does_not_suit_is_refused(device: str, strategy: dict[str, Any], message: str) -> None:
    with pytest.raises(MemroofError, match=message):
        run(content(device, 4096, **strategy), catalog=CATALOG)


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ({"dataflow": "unfused", "softmax": "array"}, "'softmax' decides nothing"),
        ({"softmax": "vector", "interleaved": True}, "'interleaved' decides nothing"),
        ({"staging_tiles": 3}, "'staging_tiles' decides nothing"),
        ({"dataflow": "two-pass"}, "expected one of unfused, row-fused, one-pass"),
    ],
)
def test_options_without_effect_are_errors(strategy: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        run(content("fusemax-cloud", 4096, **strategy), catalog=CATALOG)


def test_a_model_or_layers() -> None:
    scenario = content("fusemax-cloud", 4096)
    with pytest.raises(SpecError, match=r"'model' or 'workload\.layers'"):
        run({**scenario, "model": "bert-large"}, catalog=CATALOG)
    del scenario["workload"]["layers"]
    named = run({**scenario, "model": "bert-large"}, catalog=CATALOG)
    assert named.outcome.tables["layers"]["layer"] == ["bert-large"]


def test_a_tile_that_the_buffer_cannot_hold_is_said_by_how_much() -> None:
    result = run(content("fusemax-cloud", 1 << 20, tile_rows=1 << 18), catalog=CATALOG)
    use = result.outcome.memory[0]
    held = 2 * 256 * 64 * 2 + (1 << 18) * (2 * 64 + 2) * 2
    assert not result.fits and use.peak == held and math.isclose(use.free, 16 * 2**20 - held)
