"""Changes of a training strategy that need less memory, the mildest first."""

from __future__ import annotations

from collections.abc import Iterator

from simulator.specs import TrainingScenario
from simulator.strategy import Remedy, Setup


def remedies(setup: Setup) -> Iterator[Remedy]:
    """Propose changes that need less memory; whether each is legal and fits is for the caller to try."""
    scenario = setup.scenario
    if not isinstance(scenario, TrainingScenario):
        return
    strategy = scenario.strategy
    if setup.hardware.size > strategy.tensor_parallel * strategy.pipeline_parallel:
        yield from _cut(strategy.zero_stage)
    if not strategy.fused_attention:
        yield Remedy("fused attention", {"strategy.fused_attention": "true"})
    if strategy.tensor_parallel > 1 and not strategy.sequence_parallel:
        yield Remedy("sequence parallelism", {"strategy.sequence_parallel": "true"})
    if strategy.recompute == "none":
        yield Remedy("selective recomputation", {"strategy.recompute": "selective"})
    if strategy.micro_batch > 1:
        half = str(strategy.micro_batch // 2)
        yield Remedy(f"micro_batch {half}", {"strategy.micro_batch": half})
    if strategy.recompute != "full":
        yield Remedy("full recomputation", {"strategy.recompute": "full"})
        yield Remedy(
            "full recomputation and micro_batch 1",
            {"strategy.recompute": "full", "strategy.micro_batch": "1"},
        )
    yield from _wider(
        setup, strategy.tensor_parallel, strategy.pipeline_parallel, scenario.workload.global_batch
    )


def _cut(stage: int) -> Iterator[Remedy]:
    """States cut over replicas, stage by stage."""
    texts = {
        1: "ZeRO-1: optimizer states cut over data-parallel ranks",
        2: "ZeRO-2: gradients cut over data-parallel ranks too",
        3: "ZeRO-3 (FSDP): parameters cut over data-parallel ranks too",
    }
    for further, text in texts.items():
        if further > stage:
            yield Remedy(text, {"strategy.zero_stage": str(further)})


def _wider(setup: Setup, tensor: int, pipeline: int, batch: int) -> Iterator[Remedy]:
    """Cut the model further, on the GPUs that are there or on more nodes."""
    hardware = setup.hardware
    full = {"strategy.recompute": "full", "strategy.micro_batch": "1"}
    plain = {"strategy.schedule": "1f1b", "strategy.virtual_stages": "1"}
    for tp in (tensor, 2 * tensor, 4 * tensor, 8 * tensor):
        if tp > hardware.ranks_per_node:
            break
        for factor in (1, 2, 4, 8, 16):
            pp = pipeline * factor
            if (tp, pp) == (tensor, pipeline):
                continue
            nodes = max(hardware.nodes, -(-tp * pp // hardware.ranks_per_node))
            replicas = nodes * hardware.ranks_per_node // (tp * pp)
            while batch % replicas:
                replicas -= 1
            degrees = {"tensor_parallel": tp, "pipeline_parallel": pp, "data_parallel": replicas}
            change = {**{f"strategy.{name}": str(value) for name, value in degrees.items()}, **full, **plain}
            text = f"tensor_parallel {tp}, pipeline_parallel {pp}, full recomputation, micro_batch 1"
            if nodes > hardware.nodes:
                change["hardware.nodes"] = str(nodes)
                text += f" on {nodes} nodes"
            yield Remedy(text, change)
