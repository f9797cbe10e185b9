"""Published figures of offloaded training as scenarios, and why some are none."""

from types import SimpleNamespace
from typing import Any

import pytest

from simulator.specs import Catalog, MemroofError
from simulator.validation.datasets.offload_claims import SYSTEMS
from simulator.validation.datasets.runs import Case, metrics_of
from simulator.validation.datasets.tiered_step_claims import claim

CATALOG = Catalog(environment={})


def row(system: str, **columns: Any) -> SimpleNamespace:
    return SimpleNamespace(
        **{"system": system, "model": "GPT 13B", "hardware": "RTX 4090 24 GB", "workload": "", "strategy": "", "unit": "",
           "metric": "throughput", "value": 1.0, **columns}
    )  # fmt: skip


def judged(found: Any) -> float:
    cases = [Case.of(content, CATALOG) for content in found.contents]
    value: float = found.value(metrics_of(cases, cases[0].setup.cost))[0]
    return value


def test_every_system_has_a_reader() -> None:
    mine = [name for name, module in SYSTEMS.items() if module == "tiered_step_claims"]
    assert len(mine) == 7


def test_drives_gpus_and_batch_are_read_from_the_row() -> None:
    hardware = "2x RTX 4090 24 GB, 12x D7-P5510 3.84 TB; 6 SSDs used"
    found = claim(
        row("Ratel", hardware=hardware, workload="global batch 48", metric="global throughput", value=183.5)
    )
    (content,) = found.contents
    assert found.measured == pytest.approx(183.5e12)
    assert content["hardware"]["changes"]["components"] == {"nvme": {"count": 6}, "gpu": {"count": 2}}
    assert content["workload"]["global_batch"] == 48
    assert content["strategy"]["micro_batch"] == 12  # the largest of at most 16 that divides 24


def test_one_drive_is_as_slow_as_published() -> None:
    """Ratel's artifact, Fig. 10(b): 37.5 TFLOP/s with one SSD at batch 32."""
    hardware = "RTX 4090 24 GB, 12x D7-P5510 3.84 TB; 1 SSDs used"
    found = claim(row("Ratel", hardware=hardware, workload="batch 32", value=37.5))
    assert judged(found) == pytest.approx(found.measured, rel=0.05)


def test_175b_trains_on_one_gpu() -> None:
    found = claim(
        row("Fuyou", model="GPT-3 175B", metric="trainable on one RTX 4090", unit="bool", workload="fine-tuning")
    )  # fmt: skip
    assert judged(found) == 1.0


def test_allocation_that_knows_cxl_beats_interleaving() -> None:
    """Liaw & Chen 2025, abstract: up to 21 % over naive interleaving."""
    found = claim(row("CXL-aware allocator", metric="improvement over naive interleave max", value=21))
    assert 10 < judged(found) < 30


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (row("ZeRO-Infinity", hardware="512x V100", metric="max model"), "several nodes"),
        (row("ZeRO-Infinity", hardware="V100", metric="model-state bytes per parameter"), "no metric"),
        (row("SSDTrain", metric="projected SSD lifetime (min)"), "no metric"),
        (row("Ratel", model="13B", metric="throughput ratio max"), "not named"),
    ],
)
def test_rows_that_are_no_scenario_say_why(one: SimpleNamespace, words: str) -> None:
    with pytest.raises(MemroofError, match=words):
        claim(one)
