"""The command line's verbs in Python."""

from __future__ import annotations

import subprocess
import sys

import pytest
from user_catalog import UserCatalog

import simulator


def test_the_verbs_are_there() -> None:
    assert {"load", "run", "fit", "whatif", "render_report", "Catalog", "Result", "MemroofError"} <= set(
        simulator.__all__
    )
    for name in simulator.__all__:
        assert getattr(simulator, name)
        assert name in dir(simulator)
    with pytest.raises(AttributeError, match="no attribute 'runn'"):
        _ = simulator.runn


def test_a_scenario_is_answered_in_python(user: UserCatalog) -> None:
    catalog = simulator.Catalog([user.root])
    result = simulator.run("tiny-training", catalog=catalog)
    assert isinstance(result, simulator.Result)
    assert result.fits
    frame = result.to_frame()
    assert frame.loc["step_time", "low"] < frame.loc["step_time", "value"] < frame.loc["step_time", "high"]
    assert simulator.render_report(result, "markdown").startswith("# tiny-training")
    assert simulator.fit("tiny", "toy-gpu", catalog=catalog).fits
    assert simulator.load("tiny-training", catalog=catalog).model.name == "tiny"
    sweep = simulator.whatif("tiny-training", {"strategy.micro_batch": ["1", "2"]}, paths=[user.root])
    assert list(sweep.to_frame()["fits"]) == [True, True]


def test_tiers_upgrades_and_the_largest_in_python() -> None:
    result = simulator.run("offload/opt-30b-t4")
    assert {"memory", "category", "time", "bytes"} == set(simulator.tiers(result).to_frame().columns)
    assert simulator.upgrades("offload/opt-30b-t4")[1].gain > 0.0
    assert {row.what for row in simulator.largest("training/llama3.1-8b-8xh100")} == {
        "micro-batch",
        "sequence",
        "model",
    }


def test_importing_the_package_loads_nothing() -> None:
    code = "import sys, simulator; assert not {'numpy', 'pydantic', 'yaml', 'click'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
