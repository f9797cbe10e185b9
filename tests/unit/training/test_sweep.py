"""Sweeps and searches: legality as for single scenarios, figures as for single steps, the best first."""

from dataclasses import replace

import numpy as np
import pytest

import simulator
from simulator.analysis import load
from simulator.analysis.search import default_grid
from simulator.report.search import search_document, search_lines
from simulator.specs import Catalog, MemroofError
from simulator.specs.trainable_spec import Codec, Compression, LowRankAdaptation
from simulator.strategy import Setup
from simulator.training import simulate
from simulator.training.groups import Groups
from simulator.training.legal import faults
from simulator.training.sweep import sweep

GRID = {
    "tensor_parallel": [1, 2, 4, 16],
    "pipeline_parallel": [1, 2, 4],
    "schedule": ["1f1b", "1f1b-interleaved", "zb-h1"],
    "virtual_stages": [1, 3],
    "micro_batch": [1, 2],
    "sequence_parallel": [False, True],
    "zero_stage": [0, 1, 3],
    "overlap_parameter_gather": [False, True],
    "recompute_layers": [None, 2],
    "recompute": ["none", "full"],
}
SCENARIO = {
    "kind": "training", "hardware": {"node": "dgx-h100"}, "model": "opt-125m",
    "workload": {"global_batch": 32, "sequence": 1024},
}  # fmt: skip


@pytest.fixture(scope="module")
def setup() -> Setup:
    return load(SCENARIO, catalog=Catalog(environment={}))


def changed(setup: Setup, fields: dict) -> Setup:
    strategy = setup.scenario.strategy.model_copy(update=fields)
    return replace(setup, scenario=setup.scenario.model_copy(update={"strategy": strategy}))


def test_the_same_points_are_legal_as_one_by_one(setup: Setup) -> None:
    found = sweep(setup, GRID)
    legal = set(found.point.tolist())
    assert found.size == len(legal) + sum(found.illegal.values())
    sizes = [len(values) for values in GRID.values()]
    for point in np.random.default_rng(3).integers(0, found.size, 400).tolist():
        index = np.unravel_index(point, sizes)
        fields = {name: values[at] for (name, values), at in zip(GRID.items(), index, strict=True)}
        scenario = changed(setup, fields).scenario
        broken = faults(scenario, setup.model, setup.hardware, Groups.of(scenario.strategy, setup.hardware))
        assert (point in legal) == (not broken), (fields, broken)


def test_rows_are_what_single_steps_are(setup: Setup) -> None:
    found = sweep(setup, GRID)
    for row in np.random.default_rng(5).integers(0, len(found.point), 12).tolist():
        run = simulate(changed(setup, found.strategy(row)))
        assert found.step_time[row] == pytest.approx(run.metrics["step_time"].value, rel=5e-3)
        assert found.ranks[row] == run.devices
    flops = run.metrics["model_flops_per_second_per_gpu"].value * run.metrics["step_time"].value * run.devices
    expected = run.metrics["model_flops_utilization"].value
    peak = run.metrics["model_flops_per_second_per_gpu"].value / expected
    assert found.mfu(flops, peak)[row] == pytest.approx(expected, rel=5e-3)


def test_columns_name_every_field(setup: Setup) -> None:
    found = sweep(
        setup, {"tensor_parallel": [1, 2], "data_parallel": [None, 2], "recompute": ["none", "full"]}
    )
    columns = found.columns()
    assert columns["tensor_parallel"].tolist() == [1, 1, 1, 1, 2, 2, 2, 2]
    assert columns["data_parallel"].tolist() == [None, None, 2, 2] * 2
    assert columns["gpus"].tolist() == [8, 8, 2, 2, 8, 8, 4, 4]
    assert columns["fits"].all()


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"tensor_paralel": [1]}, "tensor_parallel"),
        ({"tensor_parallel": []}, "give the values"),
        ({"recompute_micro_batches": [1]}, "whatif"),
        ({"recompute": ["optimal"]}, "leave out optimal"),
    ],
)
def test_what_cannot_be_swept_is_refused(setup: Setup, grid: dict, message: str) -> None:
    with pytest.raises(MemroofError, match=message):
        sweep(setup, grid)


def test_nothing_legal_is_counted(setup: Setup) -> None:
    found = sweep(setup, {"tensor_parallel": [5], "recompute": ["none", "full"]})
    assert (len(found.point), sum(found.illegal.values())) == (0, 2)


def test_search_runs_the_best_in_the_engine() -> None:
    vary = {
        "tensor_parallel": ["1", "2"],
        "micro_batch": ["1", "4"],
        "zero_stage": ["0", "1"],
        "virtual_stages": ["1", "2"],
    }
    found = simulator.search(SCENARIO, top=3, vary=vary)
    times = [one.step_time for one in found.candidates]
    assert times == sorted(times) and found.fits
    assert all(one.closed_form == pytest.approx(one.step_time, rel=5e-3) for one in found.candidates)
    lines = search_lines(found)
    assert f"{found.points:,} combinations" in lines[0] and len(lines) > 5
    assert search_document(found)["candidates"][0]["fits"] is True


def test_the_cheapest_may_leave_gpus_idle() -> None:
    vary = {"tensor_parallel": ["1"], "pipeline_parallel": ["1"], "micro_batch": ["2"], "zero_stage": ["0"]}
    found = simulator.search(SCENARIO, objective="cost", vary=vary, top=2)
    fastest = simulator.search(SCENARIO, vary=vary, top=1)
    assert found.candidates[0].gpu_seconds <= fastest.candidates[0].gpu_seconds


def test_where_nothing_fits_the_closest_come_first() -> None:
    scenario = {**SCENARIO, "model": "gpt3-175b"}
    vary = {
        "tensor_parallel": ["4", "8"],
        "pipeline_parallel": ["1"],
        "micro_batch": ["1"],
        "zero_stage": ["0"],
    }
    found = simulator.search(scenario, vary=vary, top=1)
    assert not found.fits
    assert "none fits" in search_lines(found)[0]
    assert found.candidates[0].strategy["tensor_parallel"] == 8


def test_search_is_for_training_and_needs_something_legal() -> None:
    with pytest.raises(MemroofError, match="serving scenario"):
        simulator.search("serving/llama3.1-70b-8xh100")
    with pytest.raises(MemroofError, match="none of"):
        simulator.search(SCENARIO, vary={"tensor_parallel": ["5"]})


def test_experts_and_long_sequences_widen_the_grid() -> None:
    catalog = Catalog(environment={})
    setup = load(
        {**SCENARIO, "model": "qwen1.5-moe-a2.7b", "workload": {"global_batch": 8, "sequence": 32768}},
        catalog=catalog,
    )
    grid = default_grid(setup.scenario, setup.model, setup.hardware)
    assert grid["expert_parallel"] == (1, 2, 4, 8)
    assert grid["context_parallel"] == (1, 2, 4, 8)


OTHERS = {
    "attention_kernel": "flash-1", "fused_attention": False, "fused_loss": False, "wide_loss": False, "fused_accumulation": False,
    "joined_projections": False, "cuda_graphs": True, "transformer_engine": True, "precision": "fp16",
    "parameter_precision": "fp32", "gradient_precision": "bf16", "moment_precision": "bf16", "master_weights": False,
    "optimizer": "adam-8bit", "recompute": "full", "recompute_operators": ("mlp.activation",), "zero_stage": 3,
    "overlap_gradient_reduction": True, "overlap_tensor_parallel": "none", "optimize_pipeline_transfer": False,
    "trainable": LowRankAdaptation(method="lora", rank=8),
    "compression": Compression(gradients=Codec(ratio=4.0, encode=1e12, decode=1e12)),
}  # fmt: skip


@pytest.mark.parametrize("field", OTHERS)
def test_a_field_that_is_varied_is_priced(field: str) -> None:
    """Two values of one field in one sweep, each equal to the engine's answer: none is taken from the other's prices."""
    setup = load(
        {
            "kind": "training", "hardware": {"node": "dgx-h100", "nodes": 2}, "model": "llama3.2-1b",
            "workload": {"global_batch": 16, "sequence": 2048}, "strategy": {"tensor_parallel": 2, "pipeline_parallel": 2},
        },
        catalog=Catalog(environment={}),
    )  # fmt: skip
    values = [getattr(setup.scenario.strategy, field), OTHERS[field]]
    answer = sweep(setup, {field: values})
    assert len(answer.point) == 2
    for value, seconds, peak in zip(values, answer.step_time, answer.peak_memory, strict=True):
        strategy = setup.scenario.strategy.model_copy(update={field: value})
        run = simulate(replace(setup, scenario=setup.scenario.model_copy(update={"strategy": strategy})))
        assert seconds == pytest.approx(run.metrics["step_time"].value, rel=5e-3)
        assert peak == pytest.approx(run.memory[0].peak, rel=0.1)
