"""Published figures of graph-network training with features in host memory: the shipped scenarios, one an end of each range."""

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
}  # fmt: skip
"""Scenario below ``scenarios/published`` and its metric, by system and figure."""


def claim(row: Any) -> Claim:
    """Read a published ratio; a speedup in per cent is what training is faster by."""
    found = SCENARIOS.get((str(row.system), str(row.metric)))
    if found is None:
        raise MemroofError("a constant that the model takes as given, not a result")
    scenario, metric = found
    share = float(row.value) / 100.0 if row.unit == "%" else float(row.value)
    measured = 1.0 + share if metric == "speedup" and row.unit == "%" else share
    return Claim(measured, (_content(scenario),), figure(metric))


def _content(name: str) -> Content:
    tree = read_document(shipped_root() / "scenarios" / "published" / f"{name}.yaml").data
    return {key: value for key, value in tree.items() if key not in ("expect", "description", "source")}
