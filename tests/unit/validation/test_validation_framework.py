"""The frame of validation: groups held out, scores and bounds, fits and the files that they write."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from simulator.cost import CostModel
from simulator.graph.work import Matmul
from simulator.specs import Calibration, Catalog, MemroofError
from simulator.specs.base import validate as check
from simulator.specs.source import read_document
from simulator.validation import (
    Bound,
    Constant,
    Fit,
    Part,
    Score,
    fit_device,
    validate,
    write_architectures,
    write_calibration,
)
from simulator.validation.dataset import TableDataSet, held_out, keep, labels, read_table
from simulator.validation.fit import Fitted, _fit, spreads
from simulator.validation.score import score_loaded

CATALOG = Catalog()
DEVICE = "h100-sxm"


def test_whole_groups_are_held_out_always_the_same() -> None:
    groups = np.repeat([f"shape {i}" for i in range(200)], 5).astype(str)
    mask = held_out(groups, 0.2, seed=0)
    assert all(len(set(mask[groups == label])) == 1 for label in set(groups.tolist()))
    assert 0.1 < mask.mean() < 0.3
    assert np.array_equal(mask, held_out(groups, 0.2, seed=0))
    # the order of rows and what else is there change nothing
    assert np.array_equal(mask[::-1], held_out(groups[::-1], 0.2, seed=0))
    assert np.array_equal(mask[:100], held_out(groups[:100], 0.2, seed=0))
    assert not np.array_equal(mask, held_out(groups, 0.2, seed=1))


def test_one_of_a_few_groups_judges_and_a_lone_one_is_fitted() -> None:
    few = np.array(["a", "a", "b", "c"])
    assert len(set(few[held_out(few, 1e-9, seed=0)].tolist())) == 1
    assert not held_out(np.array(["a", "a"]), 0.99, seed=0).any()


def test_left_out_rows_are_counted_by_reason() -> None:
    skipped: Counter[str] = Counter()
    frame = pd.DataFrame({"m": [1, 2, 3], "k": [4, 5, 6]})
    kept = keep(frame, frame["m"] > 1, "too small", skipped)
    kept = keep(kept, kept["k"] > 5, "too thin", skipped)
    assert kept["m"].tolist() == [3]
    assert skipped == {"too small": 1, "too thin": 1}
    assert labels(frame, ["m", "k"]).tolist() == ["1|4", "2|5", "3|6"]


def test_a_table_without_its_column_is_named(tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_text("a,b\n1,2\n")
    dataset = TableDataSet("table.csv", lambda frame, catalog, skipped: [frame["missing"]])  # type: ignore[list-item]
    with pytest.raises(MemroofError, match=r"table\.csv: no column 'missing'; it has a, b, line"):
        dataset.load(file, CATALOG)
    assert read_table(file)["line"].tolist() == [2]
    with pytest.raises(MemroofError, match=r"absent\.csv: cannot be read as a CSV table"):
        read_table(tmp_path / "absent.csv")


def part(factor: float, error: float = 0.1) -> Part:
    """Four rows that are measured at ``factor`` times what is predicted."""
    predicted = np.array([1.0, 2.0, 3.0, 4.0])
    frame = pd.DataFrame({"shape": ["a", "b", "c", "d"], "line": [2, 3, 4, 5]})
    return Part(
        DEVICE, predicted * factor, lambda cost: predicted, frame["shape"].to_numpy(str), frame["line"].to_numpy(), frame,
        None, errors=lambda cost: np.full(4, error),
    )  # fmt: skip


def test_scores_by_hand() -> None:
    from simulator.validation.dataset import Loaded

    # measured at 1.25 times the prediction: 20 % too fast; the interval reaches to exp(1.2816 · 0.1) = 1.137
    score = score_loaded("some.csv", Loaded([part(1.25)], Counter({"odd": 2})), CATALOG)
    assert (score.rows, score.skipped) == (4, {"odd": 2})
    assert score.median_ape == score.mean_ape == pytest.approx(0.2)
    assert score.bias == pytest.approx(-0.2)
    assert score.coverage_80 == 0.0
    assert score_loaded("some.csv", Loaded([part(1.1)]), CATALOG).coverage_80 == 1.0
    worst = score.worst[0]
    assert (worst["line"], worst["device"], worst["inputs"]) == (2, DEVICE, {"shape": "a"})
    keys = {
        "dataset", "rows", "skipped", "mean_ape", "median_ape", "p90_ape", "max_ape", "bias", "coverage_80", "bound", "ok",
    }  # fmt: skip
    assert keys <= set(score.to_dict())


def test_a_bound_names_what_is_missed() -> None:
    def scored(bound: Bound | None) -> Score:
        return Score("x.csv", 10, {}, 0.09, 0.06, 0.2, 0.4, 0.0, 0.70, bound, ())

    assert scored(None).ok and scored(Bound(median=0.07, mean=0.1)).ok
    missed = scored(Bound(median=0.05, mean=0.08, max=0.3, coverage=(0.74, 0.86)))
    assert not missed.ok
    assert missed.faults == (
        "median 6.0% above 5.0%", "mean 9.0% above 8.0%", "max 40.0% above 30.0%", "coverage 70.0% outside 74% to 86%",
    )  # fmt: skip


def test_a_part_needs_an_error() -> None:
    from dataclasses import replace

    cost = CostModel(CATALOG.processor(DEVICE), CATALOG.calibration(CATALOG.processor(DEVICE)))
    with pytest.raises(MemroofError, match="an operator class or its own errors"):
        replace(part(1.0), errors=None).relative_errors(cost)
    by_class = replace(part(1.0), errors=None, operator_class="matmul").relative_errors(cost)
    assert by_class == pytest.approx(np.full(4, cost.calibration.error["matmul"]))


def test_spread_is_that_of_the_central_80_per_cent() -> None:
    residuals = np.random.default_rng(0).normal(0.0, 0.1, 20_000)
    spread, shared = spreads(residuals, np.arange(20_000).astype(str))
    assert spread == pytest.approx(0.1, rel=0.03)
    # two groups, each off by its own 10 %, and nothing else
    spread, shared = spreads(np.repeat([-0.1, 0.1], 50), np.repeat(["a", "b"], 50))
    assert shared > 0.95
    assert spreads(np.array([0.3]), np.array(["a"])) == (0.3, 1.0)


SHAPES = [(m, n, k) for m in (1, 64, 1024, 4096) for n in (1024, 4096, 16384) for k in (1024, 4096)]
FIT = Fit(
    "matmul",
    (Constant("matmul", "memory_efficiency", 0.3, 1.0), Constant("matmul", "peak_efficiency", 0.3, 1.0)),
    ("aiconfigurator/gemm.csv",),
    "shape",
)


def written_rows(folder: Path, efficiency: float, *, system: str = "h100_sxm") -> Path:
    """Measurements that a device of known constants would give."""
    device = {"h100_sxm": "h100-sxm", "h200_sxm": "h200-sxm"}[system]
    processor = CATALOG.processor(device)
    calibration = CATALOG.calibration(processor)
    constants = calibration.matmul.model_copy(
        update={"memory_efficiency": efficiency, "peak_efficiency": 0.5}
    )
    cost = CostModel(processor, calibration.model_copy(update={"matmul": constants}))
    file = folder / "aiconfigurator" / "gemm.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [] if file.exists() else ["src,kernel_source,gemm_dtype,m,n,k,latency_ms"]
    for m, n, k in SHAPES:
        distance = 6.0 * 2 * n * k + 2.0 * m * k + 2.0 * m * n
        time = float(cost.price(Matmul(float(m), float(n), float(k), reuse_distance=distance)).time)
        lines.append(f"{system}/vllm/1.0,x,bfloat16,{m},{n},{k},{time * 1e3!r}")
    with file.open("a") as out:
        out.write("\n".join(lines) + "\n")
    return folder


def test_a_fit_finds_the_constants_that_made_the_rows_and_writes_the_same_bytes(tmp_path: Path) -> None:
    folder = written_rows(tmp_path, 0.6)
    results = fit_device(DEVICE, [FIT], folder, CATALOG, date="2026-01-02")
    found = {name: value for (_, name), value in results[0].values.items()}
    assert found == pytest.approx({"memory_efficiency": 0.6, "peak_efficiency": 0.5}, rel=0.01)
    assert results[0].record.median < 0.005
    assert results[0].record.held_out > 0
    files = [tmp_path / "a" / "x.yaml", tmp_path / "b" / "x.yaml"]
    for file in files:
        again = fit_device(DEVICE, [FIT], folder, CATALOG, date="2026-01-02")
        write_calibration(file, DEVICE, again)
        # a second fit over a file that is there changes no byte
        write_calibration(file, DEVICE, again)
    assert files[0].read_bytes() == files[1].read_bytes()
    calibration = check(read_document(files[0]), Calibration)
    assert calibration.matmul.memory_efficiency == pytest.approx(0.6, rel=0.01)
    assert calibration.fits["matmul"].date == "2026-01-02"


def test_other_classes_of_a_file_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(
        "kind: calibration\nname: x\nsource: hand\nnote: 'by hand'\nelementwise: {memory_efficiency: 0.5}\n"
        "error: {elementwise: 0.3}\n"
    )
    folder = written_rows(tmp_path, 0.7)
    write_calibration(file, DEVICE, fit_device(DEVICE, [FIT], folder, CATALOG))
    calibration = check(read_document(file), Calibration)
    assert calibration.elementwise.memory_efficiency == 0.5
    assert calibration.error["elementwise"] == 0.3
    assert calibration.note == "by hand"
    assert "matmul" in calibration.fits


def test_what_no_row_determines_leaves_the_file(tmp_path: Path) -> None:
    """Rows of bf16 say nothing of the factor on fp8, which a fit of before had written."""
    folder = written_rows(tmp_path, 0.7)
    fit = replace(FIT, constants=(*FIT.constants, Constant("matmul", "narrow_efficiency", 0.3, 1.0)))
    results = fit_device(DEVICE, [fit], folder, CATALOG)
    assert results[0].undetermined == (("matmul", "narrow_efficiency"),)
    file = tmp_path / "x.yaml"
    file.write_text(
        "kind: calibration\nname: x\nsource: fit\nmatmul: {narrow_efficiency: 0.5, tile_edge: 3}\nerror: {matmul: 0.3}\n"
    )
    write_calibration(file, DEVICE, results)
    calibration = check(read_document(file), Calibration)
    assert calibration.matmul.narrow_efficiency is None
    assert calibration.matmul.tile_edge == 3


def test_a_table_of_few_rows_is_fitted_on_whole_beside_others_of_the_device(tmp_path: Path) -> None:
    folder = written_rows(tmp_path, 0.6)
    best = folder / "ml-engineering" / "max_achievable_matmul_tflops.csv"
    best.parent.mkdir()
    best.write_text(
        "accelerator,dtype,measured_tflops,best_m,best_n,best_k\n"
        "NVIDIA H100 SXM,fp8,700,4096,8192,8192\nNVIDIA B200 SXM,fp8,3400,4096,8192,8192\n"
    )
    fit = replace(
        FIT,
        constants=(*FIT.constants, Constant("matmul", "narrow_efficiency", 0.3, 1.25)),
        whole=("ml-engineering/max_achievable_matmul_tflops.csv",),
    )
    found = fit_device(DEVICE, [fit], folder, CATALOG)[0]
    assert ("matmul", "narrow_efficiency") in found.values
    assert found.record.held_out == fit_device(DEVICE, [FIT], folder, CATALOG)[0].record.held_out
    with pytest.raises(MemroofError, match="no rows of b200"):
        fit_device("b200", [fit], folder, CATALOG)


@pytest.mark.parametrize("scan", [0, 7])
def test_a_constant_that_rows_feel_in_part_of_its_range_is_found_by_a_scan(scan: int) -> None:
    """Below 1.1e-12 J nothing depends on the energy of a FLOP; the search starts there, at the class-wide 8e-13 J."""
    powers = np.linspace(1.0, 2.0, 8)

    def predict(cost: CostModel) -> np.ndarray:
        return powers * max(1.1e-12, cost.calibration.training.flop_energy)

    frame = pd.DataFrame({"shape": list("abcdefgh"), "line": range(2, 10)})
    rows = Part(
        DEVICE,
        powers * 1.2e-12,
        predict,
        frame["shape"].to_numpy(str),
        frame["line"].to_numpy(),
        frame,
        "step",
    )
    constant = Constant("training", "flop_energy", 5e-13, 2e-12, scan=scan)
    processor = CATALOG.processor(DEVICE)
    base = CostModel(processor, CATALOG.calibration(processor))
    start = CATALOG.calibration(processor.model_copy(update={"name": "", "architecture": ""}))
    found = _fit(Fit("step", (constant,), ("x.csv",), "shape"), [("x.csv", rows)], base, start, 0, "")
    energy = found.values["training", "flop_energy"]
    assert energy == pytest.approx(1.2e-12, rel=1e-3) if scan else energy == pytest.approx(8e-13)


def test_a_device_without_rows_is_named(tmp_path: Path) -> None:
    folder = written_rows(tmp_path, 0.7)
    with pytest.raises(MemroofError, match="no rows of a40 for matmul"):
        fit_device("a40", [FIT], folder, CATALOG)


def test_an_architecture_inherits_from_the_device_with_most_rows_in_wider_doubt(tmp_path: Path) -> None:
    folder = written_rows(tmp_path, 0.6)
    written_rows(folder, 0.9, system="h200_sxm")
    out = tmp_path / "out"
    fitted: dict[str, Fitted] = {}
    for device in ("h100-sxm", "h200-sxm"):
        fitted[device] = fit_device(device, [FIT], folder, CATALOG)[0]
        write_calibration(out / f"{device}.yaml", device, [fitted[device]])
    (one,) = write_architectures([FIT], folder, CATALOG, out)
    # both have as many rows: the name decides; tried on the other, it is off by up to half where memory binds
    assert (one.architecture, one.device, one.tried_on) == ("hopper", "h200-sxm", ("h100-sxm",))
    assert one.error > max(0.1, 2 * one.own_error)
    hopper = check(read_document(out / "hopper.yaml"), Calibration)
    assert hopper.matmul.memory_efficiency == pytest.approx(0.9, rel=0.01)
    assert hopper.error["matmul"] == pytest.approx(one.error, rel=0.01)
    assert hopper.note == str(one)
    before = (out / "hopper.yaml").read_bytes()
    write_architectures([FIT], folder, CATALOG, out)
    assert (out / "hopper.yaml").read_bytes() == before
    # alone, the device's error grows by half
    (out / "h100-sxm.yaml").unlink()
    (alone,) = write_architectures([FIT], folder, CATALOG, out)
    assert alone.error == pytest.approx(1.5 * alone.own_error)
    with pytest.raises(MemroofError, match="no device's file holds a fit of matmul"):
        write_architectures([FIT], folder, CATALOG, tmp_path)


def test_folders_and_names_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(MemroofError, match="no such folder"):
        list(validate(tmp_path / "absent"))
    with pytest.raises(MemroofError, match="none of "):
        list(validate(tmp_path))
    with pytest.raises(MemroofError, match="gem"):
        list(validate(tmp_path, only="gem-table"))
