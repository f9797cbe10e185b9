"""A small model, machine and scenario that training tests vary."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simulator.analysis import run
from simulator.analysis.result import Result
from simulator.specs import Catalog

MODEL = """kind: model
name: toy
family: decoder
source: made up
vocab_size: 32000
hidden_size: 1024
num_hidden_layers: 8
num_attention_heads: 16
intermediate_size: 4096
max_position_embeddings: 2048
position: rope
normalization: rmsnorm
activation: silu
gated_mlp: true
"""


@pytest.fixture(scope="session")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    root: Path = tmp_path_factory.mktemp("zoo")
    (root / "models_zoo").mkdir()
    (root / "models_zoo" / "toy.yaml").write_text(MODEL)
    return Catalog([root], environment={})


@pytest.fixture(scope="session")
def train(catalog: Catalog) -> Callable[..., Result]:
    def answer(
        *,
        nodes: int = 1,
        batch: int = 32,
        sequence: int = 1024,
        model: str = "toy",
        detail: bool = False,
        **strategy: Any,
    ) -> Result:
        scenario = {
            "kind": "training",
            "hardware": {"node": "dgx-a100-80gb", "nodes": nodes},
            "model": model,
            "workload": {"global_batch": batch, "sequence": sequence},
            "strategy": strategy,
        }
        return run(scenario, catalog=catalog, detail=detail)

    return answer
