"""Fit and what-if: the largest batch and context by hand, and sweeps with illegal corners."""

import pytest

from simulator.analysis import fit, whatif
from simulator.analysis.fit import UTILIZATION
from simulator.specs import Catalog, MemroofError, UnknownNameError


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return Catalog(environment={})


def test_llama_8b_on_one_h100_by_hand(catalog: Catalog) -> None:
    """8,030,261,248 parameters of 2 bytes; 131,072 bytes of KV a token (32 layers, 8 heads of 128, keys and values)."""
    report = fit("llama3.1-8b", "h100-sxm", catalog=catalog, context=8192)
    assert report.parameters == 8_030_261_248
    assert report.weights == 2 * 8_030_261_248
    assert report.kv_per_token == 131_072
    room = report.capacity - report.weights - report.reserved
    assert report.largest_batch == int(room // (131_072 * 8192))
    assert report.longest_cached == int(room // 131_072)
    assert report.largest_context == min(report.longest_cached, 131_072)
    assert report.fits
    assert report.remedies == ()


def test_capacity_is_what_an_engine_may_use(catalog: Catalog) -> None:
    report = fit("llama3.1-8b", "h100-sxm", catalog=catalog)
    assert report.capacity == pytest.approx(
        UTILIZATION * catalog.processor("h100-sxm").memory["hbm"].capacity
    )


def test_what_does_not_fit_says_by_how_much_and_what_would(catalog: Catalog) -> None:
    report = fit("llama3.1-70b", "h100-sxm", catalog=catalog, context=4096)
    assert not report.fits
    assert report.shortfall == pytest.approx(
        report.weights + report.reserved + 4096 * report.kv_per_token - report.capacity
    )
    assert report.remedies == ("weights in fp8", "2 of these accelerators (71.7 GiB usable each) for 133 GiB")


def test_a_degree_that_fits_is_proposed(catalog: Catalog) -> None:
    report = fit("llama3.1-70b", "dgx-h100", catalog=catalog, tensor_parallel=1)
    assert report.remedies[0] == "tensor_parallel 2 instead of 1"
    assert fit("llama3.1-70b", "dgx-h100", catalog=catalog).fits


def test_windows_make_long_contexts_cheap(catalog: Catalog) -> None:
    short = fit("gemma3-27b", "h100-sxm", catalog=catalog, context=1024)
    long = fit("gemma3-27b", "h100-sxm", catalog=catalog, context=65_536)
    assert long.kv_per_token < 0.3 * short.kv_per_token


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tensor_parallel": 16}, "tensor_parallel 16 exceeds the 8 accelerators"),
        ({"tensor_parallel": 5}, "tensor_parallel 5 does not divide the 32 attention heads"),
    ],
)
def test_illegal_degrees(catalog: Catalog, arguments: dict, message: str) -> None:
    with pytest.raises(MemroofError, match=message):
        fit("llama3.1-8b", "dgx-h100", catalog=catalog, **arguments)


def test_unknown_names(catalog: Catalog) -> None:
    with pytest.raises(UnknownNameError, match=r"did you mean 'llama3.1-8b'"):
        fit("llama-3.1-8b", "h100-sxm", catalog=catalog)
    with pytest.raises(UnknownNameError, match="unknown hardware 'h100-smx'; did you mean 'h100-sxm'"):
        fit("llama3.1-8b", "h100-smx", catalog=catalog)


SCENARIO = "training/gpt3-175b-64xa100"


def test_sweep_rows_in_the_order_given() -> None:
    sweep = whatif(
        SCENARIO,
        {"strategy.recompute": ["selective", "full"], "strategy.sequence_parallel": ["true", "false"]},
    )
    assert [(r["strategy.recompute"], r["strategy.sequence_parallel"]) for r in sweep.rows] == [
        ("selective", "true"), ("selective", "false"), ("full", "true"), ("full", "false"),
    ]  # fmt: skip
    assert sweep.headline == "step_time"
    assert all(row["value"] > 0 for row in sweep.rows)
    frame = sweep.to_frame()
    assert len(frame) == 4
    assert sweep.rows[0]["value"] < sweep.rows[2]["value"]


def test_illegal_combinations_are_rows_that_say_why() -> None:
    sweep = whatif(SCENARIO, {"strategy.tensor_parallel": ["8", "5"]})
    assert sweep.rows[1]["value"] is None
    assert "5 does not divide gpt3-175b's 96 attention heads" in sweep.rows[1]["problem"]


def test_hardware_figures_can_be_varied() -> None:
    sweep = whatif(SCENARIO, {"device.a100-80gb-sxm.memory.hbm.bandwidth": ["2039 GB/s", "4 TB/s"]})
    slow, fast = (row["value"] for row in sweep.rows)
    assert fast < slow


def test_two_processes_give_the_same_rows() -> None:
    vary = {"strategy.recompute": ["selective", "full"]}
    assert whatif(SCENARIO, vary, jobs=2).rows == whatif(SCENARIO, vary).rows


def test_nothing_to_vary_or_nothing_legal() -> None:
    with pytest.raises(MemroofError, match="nothing to vary"):
        whatif(SCENARIO, {})
    with pytest.raises(MemroofError, match="does not divide"):
        whatif(SCENARIO, {"strategy.tensor_parallel": ["5", "7"]})
    with pytest.raises(UnknownNameError):
        whatif("training/none", {"strategy.tensor_parallel": ["5"]})
