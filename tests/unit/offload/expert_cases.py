"""A small mixture of experts on the toy machine: an expert is 1 MiB, PCIe 10 GB/s, so that a fetch takes 105 us."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from offload_toy import catalog

from simulator.analysis.run import load
from simulator.specs import Catalog
from simulator.strategy import Setup

EXPERT = 2 * 256 * 1024 * 2.0
"""Two matrices of 256 x 1024 in 16 bits [B]."""
MODEL = """
kind: model
name: toy-experts
family: decoder
source: made up
vocab_size: 1000
hidden_size: 256
num_hidden_layers: 5
num_attention_heads: 4
intermediate_size: 1024
max_position_embeddings: 512
position: rope
normalization: layernorm
activation: relu
moe: {num_experts: 8, num_experts_per_tok: 2, moe_intermediate_size: 1024, first_dense_layers: 1}
"""


def experts(
    folder: Path, *, hardware: Any = "toy-node", workload: dict[str, Any] | None = None, **strategy: Any
) -> Setup:
    """Return a scenario of the small model with some keys of its strategy and workload."""
    return load(content(hardware=hardware, workload=workload, **strategy), catalog=with_model(folder))


def content(
    *,
    hardware: Any = "toy-node",
    workload: dict[str, Any] | None = None,
    model: str = "toy-experts",
    **strategy: Any,
) -> dict[str, Any]:
    """Return it as a file would hold it."""
    return {
        "kind": "offload", "hardware": hardware, "model": model,
        "workload": {"prompt": 16, "output": 9, "requests": 2, **(workload or {})},
        "strategy": {"method": "expert-cache", "precision": "fp16", **strategy},
    }  # fmt: skip


def with_model(folder: Path) -> Catalog:
    """Return a catalog that has the toy machine and this model."""
    file = folder / "models_zoo" / "toy-experts.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(MODEL.lstrip())
    toys = catalog()
    return Catalog([folder, toys.roots[0]], {}, environment={})
