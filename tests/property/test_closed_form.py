"""The closed form of a training step against the event engine."""

from dataclasses import replace

import numpy as np
import pytest

from simulator.analysis import load
from simulator.specs import Catalog
from simulator.strategy import Setup
from simulator.training import simulate
from simulator.training.sweep import sweep

CHOICES = {
    "tensor_parallel": [1, 2, 4, 8],
    "pipeline_parallel": [1, 2, 4, 8],
    "context_parallel": [1, 1, 2],
    "expert_parallel": [1, 2, 4],
    "micro_batch": [1, 2, 4],
    "schedule": [
        "naive", "gpipe", "1f1b", "1f1b", "1f1b-interleaved", "2bp", "zb-h1", "zb-h2", "zb-v", "dualpipe", "wrap-around",
    ],
    "virtual_stages": [1, 1, 2, 3],
    "recompute": ["none", "selective", "full"],
    "recompute_layers": [None, None, 1],
    "sequence_parallel": [False, True],
    "zero_stage": [0, 1, 2, 3],
    "reshard_after_forward": [True, True, False],
    "prefetch": [1, 1, 0],
    "overlap_gradient_reduction": [False, True],
    "overlap_parameter_gather": [False, False, True],
    "overlap_tensor_parallel": ["none", "backward", "chunked"],
    "overlap_expert_parallel": [False, True],
    "optimize_pipeline_transfer": [False, True],
    "gradient_precision": ["fp32", "bf16"],
    "cuda_graphs": [False, True],
    "fused_attention": [False, True],
    "optimizer": ["adam", "sgd"],
}  # fmt: skip
CASES = [("opt-1.3b", 2, 32), ("llama3.2-3b", 4, 64), ("qwen1.5-moe-a2.7b", 2, 32)]


def legal(setup: Setup, rng: np.random.Generator, count: int) -> list[tuple[dict, float, float]]:
    """Draw legal strategies with their closed-form step time and peak."""
    found = []
    while len(found) < count:
        fields = {name: values[rng.integers(len(values))] for name, values in CHOICES.items()}
        if setup.model.moe is None:
            fields |= {"expert_parallel": 1, "overlap_expert_parallel": False}
        else:
            # gathers of experts and of what is dense go to different groups, with rates of their own
            fields |= {
                "zero_stage": min(fields["zero_stage"], 2),
                "reshard_after_forward": True,
                "prefetch": 1,
            }
        answer = sweep(setup, {name: [value] for name, value in fields.items()})
        if len(answer.point):
            found.append((fields, float(answer.step_time[0]), float(answer.peak_memory[0])))
    return found


@pytest.mark.parametrize(("model", "nodes", "batch"), CASES)
def test_closed_form_equals_the_engine(model: str, nodes: int, batch: int) -> None:
    setup = load(
        {
            "kind": "training", "hardware": {"node": "dgx-h100", "nodes": nodes}, "model": model,
            "workload": {"global_batch": batch, "sequence": 2048},
        },
        catalog=Catalog(environment={}),
    )  # fmt: skip
    for fields, seconds, peak in legal(setup, np.random.default_rng(7), 67):
        strategy = setup.scenario.strategy.model_copy(update=fields)
        run = simulate(replace(setup, scenario=setup.scenario.model_copy(update={"strategy": strategy})))
        assert seconds == pytest.approx(run.metrics["step_time"].value, rel=5e-3), fields
        assert peak == pytest.approx(run.memory[0].peak, rel=0.1), fields
