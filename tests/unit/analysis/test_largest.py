"""The largest that fits: its neighbour does not."""

import pytest

from simulator.analysis import run
from simulator.analysis.largest import largest
from simulator.specs import Catalog, MemroofError

SCENARIO = "offload/opt-30b-t4"


def test_the_largest_fits_and_the_next_does_not() -> None:
    found = {row.what: row for row in largest(SCENARIO)}
    batch = found["batch"]
    assert int(batch.value) + 1 == int(batch.next)
    for value, fits in ((batch.value, True), (batch.next, False)):
        assert (
            run(SCENARIO, catalog=Catalog(overrides={"workload.batch": value}, environment={})).fits is fits
        )
    assert "short" in batch.reason
    name = found["model"].value.split()[0]
    assert run(SCENARIO, catalog=Catalog(overrides={"model": name}, environment={})).fits


def test_a_scenario_that_does_not_fit_has_no_largest() -> None:
    found = largest(SCENARIO, overrides={"strategy.weights": "gpu"})
    assert {row.value for row in found if row.what == "batch"} == {""}
    model = next(row for row in found if row.what == "model")
    assert float(model.value.split("(")[1].split()[0]) < 15.0


def test_what_breaks_a_rule_is_told_apart_from_what_memory_ends() -> None:
    micro = next(row for row in largest("training/llama3.1-8b-8xh100") if row.what == "micro-batch")
    assert micro.next == "4"
    assert "short" in micro.reason


def test_serving_has_commands_of_its_own() -> None:
    with pytest.raises(MemroofError, match="memroof capacity"):
        largest("serving/llama3.1-70b-8xh100")
