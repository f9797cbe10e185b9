"""Published figures that shipped scenarios stand for: graph networks, InfLLM and FlightLLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simulator.specs import MemroofError, shipped_root
from simulator.specs.source import read_document
from simulator.validation.datasets.claim import Claim, figure
from simulator.validation.datasets.runs import Content

SCENARIOS: Mapping[tuple[str, str], tuple[str, str]] = {
    ("PyTorch-Direct (VLDB)", "speedup over conventional transfer, low"): ("large-gcn2021/2gpu-ogbn-papers100m", "speedup"),
    ("PyTorch-Direct (VLDB)", "speedup over conventional transfer, high"): ("large-gcn2021/2gpu-ogbn-products", "speedup"),
    ("Data Tiering", "CPU-GPU traffic reduction low"): ("data-tiering2021/papers100m-tenth", "traffic_reduction"),
    ("Data Tiering", "CPU-GPU traffic reduction high"): ("data-tiering2021/papers100m-fill", "traffic_reduction"),
    ("Data Tiering", "training speedup low"): ("data-tiering2021/papers100m-tenth", "speedup"),
    ("Data Tiering", "training speedup high"): ("data-tiering2021/papers100m-fill", "speedup"),
    ("InfLLM", "GPU memory"): ("infllm2024", "gpu_memory"),
    ("InfLLM", 'time (column "Time" of the table)'): ("infllm2024", "end_to_end_mean"),
    ("FlightLLM", "decode speed"): ("flightllm2024", "decode_throughput"),
}  # fmt: skip
"""Scenario below ``scenarios/published`` (or its folder) and its metric, by system and figure. Of a range, each end is one's."""
LEFT_OUT: Mapping[tuple[str, str], str] = {
    ("InfLLM", "longest context kept"): "what a model understands of a context is not modelled",
    ("FlightLLM", "throughput ratio"): "the GPU's software is not stated",
    ("FlightLLM", "HBM bandwidth utilisation before"): "what held the bandwidth back before is not stated",
}
GIVEN = "a constant that the model takes as given, or a figure of power, cost or code size"
SCALE = {"GB": 1e9, "%": 1e-2}


def claim(row: Any) -> Claim:
    """Read a published figure; a speedup in per cent is what training is faster by.

    The length of InfLLM's prompts and the bits of FlightLLM's weights are chosen by one row each: those two are no test.
    """
    key = (str(row.system), str(row.metric))
    if key not in SCENARIOS:
        raise MemroofError(LEFT_OUT.get(key, GIVEN))
    scenario, metric = SCENARIOS[key]
    if scenario == "infllm2024":
        scenario += "/infllm" if row.strategy == "InfLLM" else "/full-attention"
    elif scenario == "flightllm2024":
        scenario += "/vhk158" if "VHK158" in str(row.hardware) else "/u280"
    measured = float(row.value) * SCALE.get(str(row.unit), 1.0)
    if metric == "speedup" and row.unit == "%":
        measured += 1.0
    return Claim(measured, (_content(scenario),), figure(metric))


def _content(name: str) -> Content:
    tree = read_document(shipped_root() / "scenarios" / "published" / f"{name}.yaml").data
    return {key: value for key, value in tree.items() if key not in ("expect", "description", "source")}
