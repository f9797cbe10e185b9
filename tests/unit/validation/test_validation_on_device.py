"""Rows of published on-device figures: each names a scenario that is shipped, or why it is left out."""

from types import SimpleNamespace

import pytest

from simulator.specs import MemroofError
from simulator.validation.datasets.on_device_claims import claim


def row(**given):
    empty = dict.fromkeys(
        ("kind", "model", "hardware", "workload", "strategy", "baseline_strategy", "metric", "unit"), ""
    )
    return SimpleNamespace(**{**empty, **given})


def test_a_row_of_each_system():
    flash = claim(
        row(
            system="LLM in a flash",
            strategy="naive",
            metric="flash I/O time per token",
            unit="ms",
            value=2196.0,
        )
    )
    assert flash.measured == pytest.approx(2.196)
    assert flash.contents[0]["strategy"]["dense"] == {"resident": "0"}
    assert "expect" not in flash.contents[0]
    power = claim(
        row(
            system="PowerInfer-2", model="TurboSparse-Mixtral-47B", hardware="OnePlus 12; 7 GB limit", metric="decode speed",
            unit="token/s", value=2.13,
        )
    )  # fmt: skip
    assert power.contents[0]["strategy"]["memory"] == "7 GB"
    cad = claim(
        row(
            system="LLMCad",
            model="LLaMA-13B 4-bit",
            metric="inference time per token",
            unit="ms",
            value=10118.0,
        )
    )
    assert cad.contents[0]["model"] == "llama-13b"


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (
            {"system": "LLM in a flash", "model": "-", "metric": "flash read throughput (exceeds)"},
            "measurement of the device",
        ),
        ({"system": "PowerInfer-2", "metric": "mean neuron-cache miss rate"}, "given to the scenario"),
        ({"system": "LLMCad", "metric": "speedup max"}, "several models or devices"),
    ],
)
def test_rows_that_are_left_out_say_why(given, reason):
    with pytest.raises(MemroofError, match=reason):
        claim(row(**given, unit="x", value=1.0))
