"""Speed of the closed form: the strategies of GPT-3 175B on 64 GPUs."""

import time

from simulator.analysis import load
from simulator.specs import Catalog
from simulator.training.sweep import sweep

GRID = {
    "tensor_parallel": [1, 2, 4, 8, 16, 32],
    "pipeline_parallel": [1, 2, 4, 8, 16, 32, 64],
    "micro_batch": [1, 2, 4],
    "schedule": ["gpipe", "1f1b", "1f1b-interleaved", "zb-h1"],
    "virtual_stages": [1, 2, 3, 4, 6, 8, 12, 24],
    "sequence_parallel": [False, True],
    "recompute": ["none", "selective", "full"],
    "fused_attention": [False, True],
    "overlap_tensor_parallel": ["none", "backward", "chunked"],
    "zero_stage": [0, 1],
    "overlap_gradient_reduction": [False, True],
    "overlap_parameter_gather": [False, True],
    "moment_precision": ["fp32", "bf16", "fp8"],
}
"""3.5 million points."""


def test_every_strategy_of_gpt3_on_64_gpus(benchmark) -> None:
    """Under a minute on one core, 50,000 points a second and more."""
    setup = load("training/gpt3-175b-64xa100", catalog=Catalog(environment={}))
    started = time.process_time()
    found = benchmark.pedantic(lambda: sweep(setup, GRID), rounds=1)
    seconds = time.process_time() - started
    benchmark.extra_info["points_per_second"] = found.size / seconds
    assert found.size > 3.2e6
    assert seconds < 60.0
