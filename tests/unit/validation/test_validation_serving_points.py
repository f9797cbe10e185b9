"""Scenarios of measured serving points: what an engine captures, and how the rows of a throughput table are cut."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pandas as pd
import pytest

from simulator.specs import Catalog
from simulator.specs.serving_scenario import CAPTURED
from simulator.validation.datasets import serving_throughput
from simulator.validation.datasets.serving import captured


def test_batches_above_the_default_sizes_are_captured_too() -> None:
    assert captured(512) is True
    sizes = captured(1000)
    assert isinstance(sizes, list)
    assert sizes[: len(CAPTURED)] == list(CAPTURED)
    assert 1000 <= sizes[-1] < 1000 + 64


@pytest.mark.parametrize(
    ("model", "parallelism", "experts"),
    [("Qwen3-235B-A22B", "TP8", 8), ("Qwen3 235B A22B", "DEP4", 4), ("Llama 3.3 70B", "TP4", 1)],
)
def test_experts_are_dealt_out_whole(model: str, parallelism: str, experts: int) -> None:
    row = SimpleNamespace(
        model=model, gpu="H200", parallelism=parallelism, precision="FP8", isl=1000, osl=1000
    )
    strategy = serving_throughput._tensorrt_content(row)["strategy"]
    assert strategy["expert_parallel"] == experts


def test_a_rate_that_rises_with_the_context_is_another_models() -> None:
    rows = pd.DataFrame(
        {
            "model": "Llama 3.3 70B", "gpu": "B200", "precision": "FP4", "parallelism": "TP1", "isl": 1024,
            "osl": [1024, 8192, 32768], "output_tokens_per_s_total": [6842.0, 3242.0, 14589.0], "line": [2, 3, 4],
        }
    )  # fmt: skip
    skipped: Counter[str] = Counter()
    parts = serving_throughput._tensorrt(rows, Catalog(), skipped)
    assert skipped == {"faster at longer contexts: a row of another model": 1}
    assert [len(part.measured) for part in parts] == [2]
