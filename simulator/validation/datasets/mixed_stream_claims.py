"""Published figures of MoE-Lens, as scenarios."""

from __future__ import annotations

from typing import Any

from simulator.specs import MemroofError
from simulator.validation.datasets.claim import Claim, figure
from simulator.validation.datasets.runs import Content

BASELINE = "a ratio to MoE-Lightning, whose schedule is not modelled"
NOT_MODELLED = "of a single CPU kernel, or of another system"
ACCURACY = "accuracy of the paper's own model against its own runs"


def claim(row: Any) -> Claim:
    """Return a row as scenarios; raises :class:`MemroofError` with the reason where it is none."""
    if row.baseline_strategy == "MoE-Lightning":
        raise MemroofError(BASELINE)
    if row.strategy == "MoE-Lens" and row.metric == "GPU utilisation":
        return Claim(float(row.value) / 100.0, (content("70 GB", 32),), figure("gpu_utilization"))
    if row.strategy == "MoE-Lens" and row.metric.startswith("model weight streaming time"):
        return Claim(float(row.value), (content("210 GB", 128),), figure("weight_stream_time"))
    raise MemroofError(ACCURACY if "accuracy" in row.metric else NOT_MODELLED)


def content(cache: str, output: int) -> Content:
    """Mixtral 8x7B with MTBench's prompts on one socket and an A40; the source leaves the format of the cache open."""
    return {
        "kind": "offload", "hardware": {"node": "server-a40-8380"}, "model": "mixtral-8x7b",
        "workload": {"prompt": 98, "output": output},
        "strategy": {"method": "mixed-stream", "kv_capacity": cache, "copy_rate": "19.5 GB/s"},
    }  # fmt: skip
