"""Published figures of FlexGen and of ZeRO-Inference, row by row."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from simulator.specs import MemroofError
from simulator.validation.datasets.claim import Claim, figure, ratio
from simulator.validation.datasets.offload import BUCKET, CPU, FLEXGEN, GROUPED, GROUPED_CACHE, MODELS
from simulator.validation.datasets.runs import Content

NO_OUTCOME = "part of a breakdown, or a setting: no outcome of a run"
UNSTATED = "batch is not stated"
UNKNOWN = "FlexGen's policy of this row is not known"

HALF: Mapping[str, Any] = {
    "weights": {"dram": 0.5, "nvme": 0.5},
    "kv": "nvme",
    "hidden": "dram",
    "pageable": ["weights"],
}
IN_DRAM: Mapping[str, Any] = {"weights": "dram", "kv": "dram", "hidden": "dram", "pageable": ["kv"]}
PASSES: Mapping[str, Any] = {**GROUPED_CACHE, "expansion": "passes"}

POLICIES: Mapping[tuple[str, int, str], tuple[int, int, Mapping[str, Any]]] = {
    ("OPT-6.7B", 512, "FlexGen"): (2, 1, {}),
    ("OPT-6.7B", 512, "FlexGen 4-bit weights+KV"): (72, 1, {**GROUPED, **PASSES}),
    ("OPT-30B", 512, "FlexGen"): (48, 3, {**IN_DRAM, "weights": {"dram": 0.918}, **FLEXGEN, **CPU}),
    ("OPT-30B", 512, "FlexGen 4-bit weights+KV"): (64, 8, {**IN_DRAM, **FLEXGEN, **PASSES}),
    ("OPT-30B", 256, "FlexGen percent 10/90 0/100 0/100, gpu batch 160 x2, CPU attention"): (
        160, 2, {**IN_DRAM, **FLEXGEN, **CPU},
    ),
    ("OPT-30B", 256, "FlexGen compressed cache, gpu batch 128 x8"): (128, 8, {**IN_DRAM, **FLEXGEN, **PASSES}),
    ("OPT-175B", 512, "FlexGen"): (32, 8, {**HALF, **FLEXGEN, **CPU}),
    ("OPT-175B", 256, "FlexGen percent 0/50 0/0 0/100, gpu batch 64 x8, CPU attention"): (64, 8, {**HALF, **FLEXGEN, **CPU}),
    ("OPT-175B", 256, "FlexGen compressed, percent 0/100 0/100 0/100, gpu batch 96 x3"): (
        96, 3, {**IN_DRAM, **FLEXGEN, **GROUPED, **PASSES, "pageable": ["weights", "kv"]},
    ),
    ("OPT-175B", 1024, "FlexGen"): (12, 12, {**HALF, **FLEXGEN, **CPU}),
    ("OPT-175B", 1024, "FlexGen 4-bit"): (
        12, 4, {**IN_DRAM, **FLEXGEN, **GROUPED, **PASSES, "pageable": ["weights", "kv"]},
    ),
    ("OPT-30B", 512, "no overlap"): (48, 3, {**IN_DRAM, "weights": {"dram": 0.918}, "split_layers": True, "prefetch": 0, **CPU}),
    ("OPT-175B", 512, "no overlap"): (32, 8, {**HALF, "split_layers": True, "prefetch": 0, **CPU}),
    ("OPT-30B", 512, "no CPU compute"): (48, 3, {**IN_DRAM, "weights": {"dram": 0.918}, **FLEXGEN}),
    ("OPT-175B", 512, "no CPU compute"): (32, 8, {**HALF, **FLEXGEN}),
    ("OPT-175B", 512, "DeepSpeed policy"): (2, 1, {"weights": "nvme", **FLEXGEN}),
    ("OPT-30B", 512, "DeepSpeed ZeRO-Inference"): (4, 1, {"weights": "dram", **BUCKET}),
    ("OPT-175B", 512, "DeepSpeed ZeRO-Inference"): (1, 1, {"weights": "nvme", **BUCKET}),
    ("OPT-30B", 512, "Hugging Face Accelerate"): (8, 1, {"weights": "dram", "prefetch": 0, "pageable": ["weights"]}),
    ("OPT-175B", 512, "Hugging Face Accelerate"): (2, 1, {"weights": "nvme", "prefetch": 0}),
}  # fmt: skip
"""By model, prompt and strategy of a row: GPU batch, GPU batches, and the policy of FlexGen's released benchmark suite."""
SSD = re.compile(r"SSD ([\d.]+) GB/s")
NAMEPLATE = 2.65 / 1.6
"""Of the instance's SSD over what the paper reads from it in its comparison of drives (table 24)."""
STAGES = re.compile(r"(\d+)x T4 pipeline")
PIPELINE_BATCH = 40
"""Sequences of a GPU batch of each of four stages (bench_175b_4x1.sh)."""
METRICS: Mapping[str, str] = {
    "generation throughput": "generation_throughput",
    "prefill total": "prefill_time",
    "decode total": "decode_time",
}
PREFETCHED_BATCH = 24
"""Sequences of the comparison with and without prefetch; at prompt 4 and output 10 the ratio hangs on it little."""


def claim(row: Any) -> Claim:
    """Return a row of either system as scenarios.

    Raises
    ------
    MemroofError
        With the reason where a row is no outcome, or its policy or batch is not known.
    """
    return _zero(row) if row.system == "ZeRO-Inference" else _flexgen(row)


def _flexgen(row: Any) -> Claim:
    metric = METRICS.get(row.metric)
    if metric is None:
        raise MemroofError(NO_OUTCOME)
    prompt = int(re.findall(r"prompt (\d+)", row.workload)[0])
    found = POLICIES.get((row.model, prompt, row.strategy))
    if found is None:
        raise MemroofError(UNKNOWN)
    batch, batches, strategy = found
    hardware: dict[str, Any] = {"node": "gcp-n1-t4"}
    drive, stages = SSD.search(row.workload), STAGES.search(row.workload)
    if drive:
        hardware["changes"] = {
            "components": {"nvme": {"bandwidth": f"{float(drive[1]) * NAMEPLATE:.4g} GB/s"}}
        }
    if stages:
        hardware["nodes"] = int(stages[1])
        batch, batches = PIPELINE_BATCH, 1
        strategy = {
            **IN_DRAM,
            **FLEXGEN,
            **CPU,
            "pageable": ["weights", "kv"],
            "pipeline_parallel": int(stages[1]),
        }
    return Claim(
        float(row.value),
        (_content(row.model, hardware, prompt, 32, batch, batches, strategy),),
        figure(metric),
    )


def _zero(row: Any) -> Claim:
    if row.metric != "throughput ratio":
        raise MemroofError(UNSTATED)
    both = [
        _content(
            row.model,
            {"node": "dgx-2-1gpu"},
            4,
            10,
            PREFETCHED_BATCH,
            1,
            {"weights": "nvme", **ahead},
        )
        for ahead in (BUCKET, {"prefetch": 0})
    ]
    return Claim(float(row.value), tuple(both), ratio("generation_throughput"))


def _content(
    model: str,
    hardware: Mapping[str, Any],
    prompt: int,
    output: int,
    batch: int,
    batches: int,
    strategy: Mapping[str, Any],
) -> Content:
    return {
        "kind": "offload", "hardware": dict(hardware), "model": MODELS[model],
        "workload": {"prompt": prompt, "output": output, "batch": batch, "batches": batches},
        "strategy": {"precision": "fp16", "fused_attention": False, **strategy},
    }  # fmt: skip
