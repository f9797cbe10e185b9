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
from simulator.validation.datasets.serving_defaults import engine, wide_modules


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


def point(**fields: object) -> dict[str, object]:
    return {
        "backend": "sglang", "backend_version": "0.5.9", "system": "b200_sxm", "precision": "fp8", "isl": 1024, "osl": 1024,
        "model_path": "deepseek-ai/DeepSeek-R1", "tp_size": 8, "attention_dp_size": 1, "moe_ep_size": 1, "concurrency": 16,
        "measured_on": "2026-03-25", "source_dump": "source_file=2026-04-06.csv", "tpot_ms": 13.2,
    } | fields  # fmt: skip


def test_engines_batch_as_they_do_by_default() -> None:
    assert engine(SimpleNamespace(**point()), 16) == {
        "iteration": "prefill-first",
        "max_batched_tokens": 8192,
    }
    assert engine(SimpleNamespace(**point(backend="vllm")), 16) == {"max_batched_tokens": 8192}
    row = point(backend="trtllm", isl=8192)
    assert engine(SimpleNamespace(**row), 16)["max_batched_tokens"] == 8208
    assert engine(SimpleNamespace(**row | {"isl": 1024}), 16)["max_batched_tokens"] == 8192
    own = engine(SimpleNamespace(**row | {"isl": 1024, "source_dump": "gap-analysis"}), 16)
    assert own["max_batched_tokens"] == 1040
    assert own["reserved_tokens"] == 2048


def test_checkpoints_keep_modules_wide() -> None:
    assert wide_modules("gpt-oss-120b", "nvfp4") == {"unquantized": ["attention.qkv", "attention.output"]}
    assert "attention.output" not in wide_modules("deepseek-v3", "fp4")["unquantized"]
    assert wide_modules("deepseek-v3", "fp8") == wide_modules("llama3.1-70b", "nvfp4") == {}
