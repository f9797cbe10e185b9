"""What is measured is read by validate and calibrate: times made from known constants give them back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_backend import DEVICE, GPU, TINY, FakeBackend, facts, priced

from simulator.cli import main
from simulator.cost import CostModel
from simulator.measure import GRIDS, MEASUREMENTS, plan, run_campaign, write_record
from simulator.specs import Calibration, Catalog
from simulator.validation import fit_device, known_fits, validate
from simulator.validation.dataset import dram_bandwidth
from simulator.validation.datasets.measured import DATASETS
from simulator.validation.fit import Fitted, apply, devices_with_rows

TRUTH: Mapping[tuple[str, str], float] = {
    ("matmul", "peak_efficiency"): 0.77,
    ("matmul", "memory_efficiency"): 0.66,
    ("attention", "peak_efficiency"): 0.55,
    ("elementwise", "memory_efficiency"): 0.7,
    ("transfer", "efficiency"): 0.6,
    ("transfer", "half_bytes"): 5e5,
}
GRID = replace(
    GRIDS["cuda"],
    rows=(1, 16, 128, 512, 2048, 8192),
    weights=GRIDS["cuda"].weights[:14],
    decode=GRIDS["cuda"].decode[::2],
)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    root = tmp_path_factory.mktemp("catalog")
    file = root / "hardware_specs/devices/toy-gpu.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(DEVICE)
    return Catalog([root], environment={})


def truth(catalog: Catalog) -> Calibration:
    return apply(catalog.calibration(catalog.processor("toy-gpu")), TRUTH)


@pytest.fixture(scope="module")
def folder(catalog: Catalog, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of rows whose times follow from the constants above."""
    cost = CostModel(catalog.processor("toy-gpu"), truth(catalog))
    backend = FakeBackend(priced(cost, catalog))
    cases = [case for case in plan(GRID, GPU, catalog) if case.format == "bf16" or case.group == "copy"]
    done = run_campaign(cases, backend, 80e9, 1e6, clock=backend.clock)
    path = tmp_path_factory.mktemp("measured")
    write_record(path, done, facts(), "memroof measure", "2026-01-02")
    return path


@pytest.fixture(scope="module")
def fitted(catalog: Catalog, folder: Path) -> dict[str, Fitted]:
    classes = ("matmul", "attention", "elementwise", "transfer")
    fits = [fit for fit in known_fits() if fit.operator_class in classes]
    return {fit.operator_class: fit for fit in fit_device("toy-gpu", fits, folder, catalog)}


def test_all_rows_are_predicted_or_counted(catalog: Catalog, folder: Path) -> None:
    from simulator.measure import read_rows

    scores = list(validate(folder, catalog=catalog, only="memroof-measure"))
    assert [score.dataset for score in scores] == [dataset.name for dataset in DATASETS]
    covered = sum(score.rows + sum(score.skipped.values()) for score in scores)
    assert covered == len(read_rows(folder / MEASUREMENTS))
    reasons = {reason for score in scores for reason in score.skipped}
    assert "pageable memory: the driver copies it twice" in reasons
    assert "training-step: not one kernel; compare it with a scenario" in reasons


def test_only_devices_of_the_catalog_are_fitted(catalog: Catalog, folder: Path) -> None:
    assert devices_with_rows(known_fits(), folder, catalog) == ("toy-gpu",)
    shipped = Catalog(environment={})
    assert devices_with_rows(known_fits(), folder, shipped) == ()
    score = next(iter(validate(folder, catalog=shipped, only="#matmul")))
    assert score.rows == 0
    assert set(score.skipped) == {"device is not in the catalog"}


@pytest.mark.parametrize(("section", "name"), TRUTH)
def test_the_fit_gives_the_constants_back(fitted: dict[str, Fitted], section: str, name: str) -> None:
    found = fitted[section].values[section, name]
    assert found == pytest.approx(TRUTH[section, name], rel=0.05)


def test_groups_that_were_held_out_are_predicted(fitted: dict[str, Fitted]) -> None:
    for name, fit in fitted.items():
        assert fit.record.held_out > 0
        assert fit.record.median < 0.03, name


def test_collectives_are_predicted_by_the_constants_they_were_made_with(
    catalog: Catalog, folder: Path
) -> None:
    dataset = next(d for d in DATASETS if d.name.endswith("#collective"))
    loaded = dataset.load(folder / MEASUREMENTS, catalog)
    assert sum(len(part.measured) for part in loaded.parts) == 2 * 3 * len(
        GRID.messages
    )  # all-to-all was refused
    cost = CostModel(catalog.processor("toy-gpu"), truth(catalog))
    for part in loaded.parts:
        np.testing.assert_allclose(part.predict(cost), part.measured, rtol=0.011)


def test_a_format_without_a_peak_is_skipped_with_the_reason(catalog: Catalog, tmp_path: Path) -> None:
    backend = FakeBackend(lambda case: 1e-3)
    cases = plan(TINY, replace(GPU, formats=("int8",)), catalog, only=["gemm"])
    write_record(tmp_path, run_campaign(cases, backend, 16e9, 60.0, clock=backend.clock), facts(), "", "")
    loaded = DATASETS[0].load(tmp_path / MEASUREMENTS, catalog)
    assert not loaded.parts
    assert loaded.skipped == {"toy-gpu has no int8 matrix units; it has bf16, fp8": len(cases)}


def test_rows_that_scatter_without_reason_are_no_calibration(
    catalog: Catalog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(7)
    backend = FakeBackend(lambda case: float(10.0 ** rng.uniform(-6, 1)))
    cases = plan(GRID, replace(GPU, formats=("bf16",)), catalog, only=["gemm", "copy"])
    done = run_campaign(cases, backend, 80e9, 1e6, clock=backend.clock)
    write_record(tmp_path, done, facts(), "", "")
    arguments = [
        "calibrate",
        "--measurements",
        str(tmp_path),
        "-o",
        str(tmp_path),
        "--path",
        str(catalog.roots[0]),
    ]
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    told = capsys.readouterr()
    assert "left out toy-gpu matmul: held-out rows scatter by" in told.err
    assert told.err.endswith("the rows scatter too much for constants\n")
    assert not (tmp_path / "toy-gpu.yaml").exists()


def test_a_cpu_streams_from_the_dram_that_a_node_gives_it() -> None:
    catalog = Catalog(environment={})
    # 8 channels of DDR4-3200
    assert dram_bandwidth(catalog, catalog.processor("xeon-8380")) == pytest.approx(204.8e9)
    assert dram_bandwidth(catalog, catalog.processor("h100-sxm")) is None
