"""Published systems: how far the scenarios that reproduce them are off, with class-wide or fitted constants, none per row."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from simulator.analysis import answer, load, run
from simulator.analysis.result import Result
from simulator.analysis.run import cost_model
from simulator.specs import Catalog

KORTHIKANTI = ["22b", "175b", "530b", "1t"]


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return Catalog(environment={})


@pytest.mark.parametrize("size", KORTHIKANTI)
def test_table_5_of_korthikanti_within_12_per_cent(catalog: Catalog, size: str) -> None:
    """Step times of table 5 (A100-80GB, 22B to 1T), each within 12 %; sequence parallelism with selective recomputation is the faster."""
    full, selective = (
        run(f"published/korthikanti2022/{size}-{mode}", catalog=catalog) for mode in ("full", "selective")
    )
    for result in (full, selective):
        check = result.expectations[0]
        assert check.key == "step_time"
        assert abs(check.relative_error) <= 0.12, f"{result.name}: {check.relative_error:+.1%}"
        assert result.fits
    assert selective.headline.value < full.headline.value
    measured = full.expectations[0].expected / selective.expectations[0].expected
    assert full.headline.value / selective.headline.value == pytest.approx(measured, rel=0.06)


@pytest.mark.parametrize("size", KORTHIKANTI)
@pytest.mark.parametrize("mode", ["full", "selective"])
def test_table_5_with_the_constants_of_the_class_alone(catalog: Catalog, size: str, mode: str) -> None:
    """No device's and no architecture's file: what a GPU without measurements inherits."""
    setup = load(f"published/korthikanti2022/{size}-{mode}", catalog=catalog)
    unnamed = setup.hardware.device.model_copy(update={"name": "", "architecture": ""})
    constants = catalog.calibration(unnamed)
    assert constants.name == "gpu"
    result = answer(replace(setup, cost=cost_model(setup.hardware, constants, training=True)))
    check = result.expectations[0]
    assert abs(check.relative_error) <= 0.12
    assert result.headline.low < check.expected < result.headline.high


def test_every_shipped_scenario_answers(shipped: Catalog, answer_of: Callable[[str], Result]) -> None:
    """What is shipped runs, fits, and holds its own limits."""
    for name in shipped.names("scenario"):
        result = answer_of(name)
        assert result.headline.value > 0, name
        assert result.fits, name
        assert result.assumptions, name
        assert result.sources, name
