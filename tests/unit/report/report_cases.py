"""A small run and a small answer, for the tests of reports."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from simulator.analysis import Result, run
from simulator.engine import Program, Timeline, execute

SCENARIO = {
    "kind": "training",
    "description": "a test",
    "hardware": {"device": "a100-80gb-sxm", "count": "4"},
    "workload": {"global_batch": "16", "sequence": "512", "tokens": "1 B tokens"},
    "strategy": {"tensor_parallel": "2", "pipeline_parallel": "2"},
    "expect": {"step_time": {"value": "1 s", "source": "a paper | with a bar"}},
    "limit": {"step_time": "1 us"},
}
MODEL = """\
kind: model
name: tiny
family: decoder
source: made up
vocab_size: 1024
hidden_size: 256
num_hidden_layers: 4
num_attention_heads: 8
intermediate_size: 1024
max_position_embeddings: 2048
position: rope
normalization: rmsnorm
activation: silu
"""


@lru_cache
def answer(folder: str, count: int = 4) -> Result:
    """The answer of the scenario, with the model in a folder."""
    path = Path(folder) / "tiny.yaml"
    path.write_text(MODEL)
    hardware = {"device": "a100-80gb-sxm", "count": str(count)}
    return run({**SCENARIO, "model": str(path), "hardware": hardware, "name": "tiny"})


SERVING = {
    "kind": "serving",
    "hardware": {"device": "a100-80gb-sxm"},
    "workload": {
        "rate": "50 req/s",
        "requests": "60",
        "prompt": {"uniform": ["32", "64"]},
        "output": {"mean": "16"},
    },
}
OFFLOAD = {
    "kind": "offload",
    "hardware": {"node": "gcp-n1-t4"},
    "workload": {"prompt": "64", "output": "8", "batch": "4"},
    "strategy": {"weights": {"dram": "0.5", "nvme": "0.5"}, "kv": "dram"},
}


def other(folder: str, scenario: dict[str, Any], **changes: Any) -> Result:
    """The answer of another scenario on the same model."""
    path = Path(folder) / "tiny.yaml"
    path.write_text(MODEL)
    return run({**scenario, "model": str(path), "name": "tiny", **changes})


def copies() -> Timeline:
    """Weights that are copied over one link, two at once, while a device computes."""
    program = Program("copies")
    gpu, link, memory = (
        program.stream("gpu0.compute"),
        program.link("pcie", 1e9),
        program.memory("gpu0.hbm", 4e9),
    )
    program.allocate(memory, 1e9, "cache", name="cache")
    first = program.transfer([link], 1e9, name="first", tag="copy")
    second = program.transfer([link], 0.5e9, name="second", tag="copy")
    done = program.barrier(after=[first, second])
    task = program.compute(gpu, 0.25, after=[done], name="layer", tag="matmul")
    program.allocate(memory, 2e9, "weights", at=first, until=[task], name="weights")
    return execute(program)
