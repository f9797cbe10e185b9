"""Answers: intervals, checks, limits, money, energy, doubt, remedies, sensitivity, plain data."""

import json
import math

import pytest

from simulator.analysis import Result, format_value, run
from simulator.analysis.result import read_value
from simulator.specs import Catalog, MemroofError, UnknownNameError

BASE = {
    "kind": "training",
    "hardware": {"node": "aws-p4de.24xlarge", "nodes": 2},
    "model": "megatron-1.7b",
    "workload": {"global_batch": 64, "sequence": 2048, "tokens": "1 B tokens"},
    "strategy": {"tensor_parallel": 2, "precision": "bf16"},
}


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return Catalog(environment={})


@pytest.fixture(scope="module")
def result(catalog: Catalog) -> Result:
    expect = {
        "step_time": {"value": "2 s", "source": "made up", "tolerance": 0.01},
        "model_flops_utilization": {"value": "50 %", "source": "made up"},
    }
    return run(
        {**BASE, "expect": expect, "limit": {"step_time": "60 s", "tokens_per_second": "> 1"}},
        catalog=catalog,
    )


def test_interval_is_symmetric_in_the_logarithm(result: Result) -> None:
    value = result.headline
    assert value.low < value.value < value.high
    assert value.value / value.low == pytest.approx(value.high / value.value)


def test_a_rate_has_the_doubt_of_its_time(result: Result) -> None:
    time, rate = result.values["step_time"], result.values["tokens_per_second"]
    assert rate.high / rate.value == pytest.approx(time.value / time.low)


def test_shares_sum_to_one_largest_first(result: Result) -> None:
    shares = list(result.shares.values())
    assert sum(shares) == pytest.approx(1.0)
    assert shares == sorted(shares, reverse=True)
    assert result.bottleneck == next(iter(result.shares.items()))


def test_expectations_say_by_how_much(result: Result) -> None:
    first, second = result.expectations
    assert first.relative_error == pytest.approx(result.headline.value / 2 - 1)
    assert not first.ok
    assert second.ok  # no tolerance given: reported, not judged


def test_limits_hold_or_are_missed(result: Result, catalog: Catalog) -> None:
    assert result.ok
    missed = run({**BASE, "limit": {"step_time": "1 us"}}, catalog=catalog)
    assert missed.fits
    assert not missed.ok


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            {"limit": {"step_tim": "1 s"}},
            "limit.step_tim: training has no such metric; did you mean 'step_time'",
        ),
        ({"limit": {"step_time": "1 GB"}}, "limit.step_time: '1 GB' is in bytes, not in seconds"),
        ({"expect": {"mfu": {"value": 1, "source": "x"}}}, "expect.mfu: training has no such metric"),
        (
            {"limit": {"model_flops_utilization": "half"}},
            "limit.model_flops_utilization: 'half' is not a fraction",
        ),
    ],
)
def test_wrong_metrics_are_refused(part: dict, message: str, catalog: Catalog) -> None:
    with pytest.raises(MemroofError) as caught:
        run({**BASE, **part}, catalog=catalog)
    assert message in str(caught.value)


def test_money_from_the_dated_rent(result: Result) -> None:
    per_second = result.setup.hardware.machine.price.rent * 2
    assert result.money["dollars_per_second"] == pytest.approx(per_second)
    assert result.money["dollars_per_step"] == pytest.approx(per_second * result.headline.value)
    assert result.money["dollars_per_run"] == pytest.approx(per_second * result.values["run_time"].value)


def test_money_from_purchase_or_not_at_all(catalog: Catalog) -> None:
    owned = run(
        {**BASE, "hardware": {"device": "rtx-4090"}, "strategy": {"zero_stage": 0, "micro_batch": 1}},
        catalog=catalog,
    )
    price = owned.setup.hardware.machine.price.purchase
    assert owned.money["dollars_per_second"] == pytest.approx(price / (4 * 365 * 86400))
    unknown = run({**BASE, "hardware": "h800-node"}, catalog=catalog)
    assert unknown.money == {}


def test_energy_lies_between_idle_and_limit(result: Result) -> None:
    power = result.setup.hardware.device.power
    assert 16 * power.idle < result.energy["watts"] <= 16 * power.limit
    assert result.energy["joules_per_token"] == pytest.approx(
        result.energy["watts"] / result.values["tokens_per_second"].value
    )


def test_doubt_sums_to_one(result: Result) -> None:
    assert sum(result.doubt().values()) == pytest.approx(1.0)
    assert list(result.doubt())[:2] == ["composition", "matmul"]


def test_sensitivity_has_the_right_signs(result: Result) -> None:
    rows = {row.figure: row.effect for row in result.sensitivity()}
    # the board's power limits the clock: a higher peak alone gives nothing
    assert rows["accelerator power limit"] < -0.01
    assert abs(rows.get("accelerator peak FLOP/s", 0.0)) < 0.01
    assert all(effect < 1e-3 for effect in rows.values())
    assert "flash bandwidth" not in rows


def test_plain_data_is_json_and_repeats(result: Result, catalog: Catalog) -> None:
    text = json.dumps(result.to_dict(), allow_nan=False)
    again = run(
        {
            **BASE,
            "expect": dict(result.setup.scenario.model_dump()["expect"]),
            "limit": dict(result.setup.scenario.limit),
        },
        catalog=catalog,
    )
    assert text == json.dumps(again.to_dict(), allow_nan=False)
    data = json.loads(text)
    assert data["metrics"]["step_time"]["value"] == result.headline.value
    assert data["memory"][0]["by_category"]["weights"] > 0


def test_frame_has_a_row_for_each_metric(result: Result) -> None:
    frame = result.to_frame()
    assert list(frame.index) == list(result.values)
    assert (frame["low"] <= frame["value"]).all()


def test_sources_name_model_device_and_constants(result: Result) -> None:
    joined = " ".join(result.sources)
    for word in ("A100", "Narayanan", "Class-wide"):
        assert word in joined


def test_what_runs_nowhere_is_named(catalog: Catalog) -> None:
    with pytest.raises(UnknownNameError, match="did you mean"):
        run("training/gpt3-175b-64xa10", catalog=catalog)


@pytest.mark.parametrize(
    ("value", "dimension", "text"),
    [
        (0.541, "fraction", "54.1 %"),
        (3.0, "count", "3"),
        (1.234, "ratio", "1.23"),
        (13.75, "seconds", "13.8 s"),
        (math.inf, "bytes", "unbounded"),
    ],
)
def test_values_print(value: float, dimension: str, text: str) -> None:
    assert format_value(value, dimension) == text


@pytest.mark.parametrize(
    ("text", "dimension", "value"),
    [
        ("54.1 %", "fraction", 0.541),
        ("0.541", "fraction", 0.541),
        ("1,000", "count", 1000.0),
        ("7.32", "1/s", 7.32),
        ("5 req/s", "1/s", 5.0),
        ("2 ms", "seconds", 0.002),
    ],
)
def test_values_read(text: str, dimension: str, value: float) -> None:
    assert read_value(text, dimension, "here") == pytest.approx(value)


def test_what_was_measured_holds_only_for_the_scenario_as_it_stands() -> None:
    plain = run("training/gpt3-175b-64xa100")
    changed = run("training/gpt3-175b-64xa100", overrides={"strategy.recompute": "full"})
    faster = run(
        "training/gpt3-175b-64xa100", overrides={"device.a100-80gb-sxm.memory.hbm.bandwidth": "4 TB/s"}
    )
    limited = run("training/gpt3-175b-64xa100", overrides={"limit.step_time": "20 s"})
    assert plain.expectations
    assert limited.expectations
    assert not changed.expectations
    assert not faster.expectations


def test_dram_and_flash_move_an_offload_answer() -> None:
    result = run("published/flexgen2023/opt-30b")
    effects = {row.figure: row.effect for row in result.sensitivity()}
    assert effects["host DRAM bandwidth"] > 0.01
    storage = run("offload/opt-30b-t4").sensitivity()[0]
    assert storage.figure == "flash bandwidth"


def test_overrides_belong_to_the_catalog_that_is_given() -> None:
    with pytest.raises(MemroofError, match=r"Catalog\(overrides=...\)"):
        run("training/gpt3-175b-64xa100", catalog=Catalog(), overrides={"hardware.nodes": "16"})
