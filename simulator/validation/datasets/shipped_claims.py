"""Published figures that shipped scenarios stand for: graph networks, InfLLM and FlightLLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simulator.specs import MemroofError, shipped_root
from simulator.specs.source import read_document
from simulator.validation.datasets.claim import Claim, figure
from simulator.validation.datasets.runs import Content

SCENARIOS: Mapping[tuple[str, str], tuple[str, str]] = {
    ("PyTorch-Direct (VLDB)", "speedup over conventional transfer, low"): ("large-gcn2021/papers100m-2gpu", "speedup"),
    ("PyTorch-Direct (VLDB)", "speedup over conventional transfer, high"): ("large-gcn2021/papers100m-2gpu", "speedup"),
    ("Data Tiering", "CPU-GPU traffic reduction low"): ("data-tiering2021/papers100m", "traffic_reduction"),
    ("Data Tiering", "CPU-GPU traffic reduction high"): ("data-tiering2021/papers100m", "traffic_reduction"),
    ("Data Tiering", "training speedup low"): ("data-tiering2021/papers100m", "speedup"),
    ("Data Tiering", "training speedup high"): ("data-tiering2021/papers100m", "speedup"),
    ("InfLLM", "GPU memory"): ("infllm2024", "gpu_memory"),
    ("InfLLM", 'time (column "Time" of the table)'): ("infllm2024", "end_to_end_mean"),
    ("FlightLLM", "decode speed"): ("flightllm2024", "decode_throughput"),
}  # fmt: skip
"""Scenario below ``scenarios/published`` (or its folder) and its metric, by system and figure.

Both ends of a published range are judged against one scenario: what gave which end is not stated."""
LEFT_OUT: Mapping[tuple[str, str], str] = {
    ("InfLLM", "longest context kept"): "what a model understands of a context is not modelled",
    ("FlightLLM", "throughput ratio"): "the GPU's software is not stated",
    ("FlightLLM", "HBM bandwidth utilisation before"): "what held the bandwidth back before is not stated",
}
CHOSEN = {("infllm2024/full-attention", "end_to_end_mean"), ("flightllm2024/u280", "decode_throughput")}
"""Figures that an input of their scenario was chosen by: no test of it."""
GIVEN = "a constant that the model takes as given, or a figure of power, cost or code size"
SCALE = {"GB": 1e9, "%": 1e-2}


def claim(row: Any) -> Claim:
    """Read a published figure; a speedup in per cent is what training is faster by.

    The length of InfLLM's prompts and the bits of FlightLLM's weights are chosen by one row each, which is left out.
    """
    key = (str(row.system), str(row.metric))
    if key not in SCENARIOS:
        raise MemroofError(LEFT_OUT.get(key, GIVEN))
    scenario, metric = SCENARIOS[key]
    if scenario == "infllm2024":
        scenario += "/infllm" if row.strategy == "InfLLM" else "/full-attention"
    elif scenario == "flightllm2024":
        scenario += "/vhk158" if "VHK158" in str(row.hardware) else "/u280"
    if (scenario, metric) in CHOSEN:
        raise MemroofError("an input of its scenario was chosen by this row")
    measured = float(row.value) * SCALE.get(str(row.unit), 1.0)
    if metric == "speedup" and row.unit == "%":
        measured += 1.0
    return Claim(measured, (_content(scenario),), figure(metric))


def _content(name: str) -> Content:
    tree = read_document(shipped_root() / "scenarios" / "published" / f"{name}.yaml").data
    return {key: value for key, value in tree.items() if key not in ("expect", "description", "source")}
