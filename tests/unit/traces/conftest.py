"""A toy model on catalogued machines, and the measured files that stand beside the tests."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from simulator.analysis import load
from simulator.specs import Catalog
from simulator.strategy import Setup

DATA = Path(__file__).parent / "data"
MODEL = """kind: model
name: toy
family: decoder
source: made up
vocab_size: 32000
hidden_size: 1024
num_hidden_layers: 8
num_attention_heads: 16
intermediate_size: 4096
max_position_embeddings: 4096
position: rope
normalization: rmsnorm
activation: silu
gated_mlp: true
"""


@pytest.fixture(scope="session")
def data() -> Path:
    return DATA


@pytest.fixture
def nsight(tmp_path: Path) -> Path:
    """An SQLite export, made from its SQL text."""
    file = tmp_path / "report1.sqlite"
    with closing(sqlite3.connect(file)) as base:
        base.executescript((DATA / "nsight.sql").read_text())
    return file


@pytest.fixture(scope="session")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    root: Path = tmp_path_factory.mktemp("zoo")
    (root / "models_zoo").mkdir()
    (root / "models_zoo" / "toy.yaml").write_text(MODEL)
    return Catalog([root], environment={})


@pytest.fixture(scope="session")
def training(catalog: Catalog) -> Callable[..., Setup]:
    def setup(batch: int = 16, **strategy: Any) -> Setup:
        content = {
            "kind": "training", "hardware": {"node": "dgx-a100-80gb"}, "model": "toy",
            "workload": {"global_batch": batch, "sequence": 1024}, "strategy": strategy,
        }  # fmt: skip
        return load(content, catalog=catalog)

    return setup


@pytest.fixture(scope="session")
def serving(catalog: Catalog) -> Callable[..., Setup]:
    def setup(prompt: int = 512, output: int = 128, requests: int = 40, **strategy: Any) -> Setup:
        content = {
            "kind": "serving", "hardware": {"device": "a100-80gb-sxm"}, "model": "toy",
            "workload": {"rate": "2 req/s", "requests": requests, "prompt": prompt, "output": output}, "strategy": strategy,
        }  # fmt: skip
        return load(content, catalog=catalog)

    return setup
