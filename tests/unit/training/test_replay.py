"""A stage's tensors through the allocator."""

import pytest

from simulator.analysis.run import load
from simulator.graph import Numerics, Partition, Shape, build
from simulator.specs import Catalog, TrainingScenario
from simulator.training import make_plan, simulate
from simulator.training.liveness import Liveness, chain, liveness
from simulator.training.replay import OUTSIDE, Pass, Shards, replay, stage_allocation
from simulator.training.step import Step

GIB = 2.0**30
BF16 = Numerics.of("bf16")
ONCE: list[Pass] = [(0, 0, "forward"), (0, 0, "backward")]


@pytest.fixture(scope="module")
def parts() -> list[Liveness]:
    model = Catalog(environment={}).model("llama3-70b").model_copy(update={"num_hidden_layers": 6})
    graph = build(model, Shape(1, 4096), Partition(4, 1, True), BF16)
    blocks = [graph.embedding, *(graph.blocks[kind] for kind in graph.layers), graph.head]
    return [liveness(block, numerics=BF16, groups={"tensor": 4}) for block in blocks]


def test_allocated_is_what_liveness_says(parts: list[Liveness]) -> None:
    whole = chain(parts)
    one = replay([parts], ONCE, [GIB])
    peak = float(whole.saved) + max(float(whole.forward_peak), float(whole.backward_peak))
    assert one.allocated == pytest.approx(GIB + peak, rel=2e-3)
    assert one.reserved > one.allocated
    # another micro-batch in flight
    order: list[Pass] = [(0, 0, "forward"), (0, 1, "forward"), (0, 0, "backward"), (0, 1, "backward")]
    two = replay([parts], order, [GIB])
    assert two.allocated - one.allocated == pytest.approx(float(whole.saved), rel=1e-2)


def test_a_third_step_changes_nothing(parts: list[Liveness]) -> None:
    late = [2e7] * 40
    two, three = (replay([parts], ONCE, [GIB], late, steps=steps) for steps in (2, 3))
    assert two == three
    assert two.allocated >= GIB + sum(late)


def test_gathered_parameters_and_reduced_gradients(parts: list[Liveness]) -> None:
    plain = replay([parts], ONCE, [GIB])
    shards = [Shards(GIB, GIB, 2 * GIB, (GIB / 8, GIB / 8)) for _ in parts]
    cut = replay([parts], ONCE, [GIB], shards=[shards])
    whole = chain(parts)
    # at the head: its parameters and the next block's, gathered; at the end: gradients of all blocks and one being reduced
    assert cut.allocated >= plain.allocated + GIB
    assert cut.allocated <= GIB + float(whole.saved) + 9 * GIB


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tensor_parallel": 2, "sequence_parallel": True, "recompute": "full"},
        {"pipeline_parallel": 4},
        {"pipeline_parallel": 4, "schedule": "gpipe", "recompute": "selective", "recompute_micro_batches": 2},
        {"pipeline_parallel": 2, "virtual_stages": 2, "schedule": "1f1b-interleaved"},
        {"pipeline_parallel": 4, "schedule": "zb-h1"},
    ],
)
def test_stages_take_what_the_engine_says(catalog: Catalog, options: dict[str, object]) -> None:
    content = {
        "kind": "training",
        "hardware": {"node": "dgx-a100-80gb"},
        "model": "toy",
        "workload": {"global_batch": 32, "sequence": 1024},
        "strategy": {"micro_batch": 1, **options},
    }
    setup = load(content, catalog=catalog)
    scenario = setup.scenario
    assert isinstance(scenario, TrainingScenario)
    step = Step(setup, scenario, make_plan(scenario, setup.model, setup.hardware))
    stages = [step.stage(index) for index in range(step.plan.pipeline)]
    found = [stage_allocation(stage) for stage in stages]
    outside = min(sum(stage.resident[name] for name in OUTSIDE) for stage in stages)
    peak = max(use.peak for use in simulate(setup).memory) - outside
    assert max(one.allocated for one in found) == pytest.approx(peak, rel=0.03)
    assert all(one.reserved >= one.allocated for one in found)


def test_states_cut_over_replicas_come_and_go(catalog: Catalog) -> None:
    content = {
        "kind": "training",
        "hardware": {"node": "dgx-a100-80gb"},
        "model": "toy",
        "workload": {"global_batch": 32, "sequence": 1024},
        "strategy": {"zero_stage": 3, "micro_batch": 2, "overlap_gradient_reduction": True},
    }
    setup = load(content, catalog=catalog)
    scenario = setup.scenario
    assert isinstance(scenario, TrainingScenario)
    step = Step(setup, scenario, make_plan(scenario, setup.model, setup.hardware))
    stage = step.stage(0)
    found = stage_allocation(stage)
    resident = sum(size for name, size in stage.resident.items() if name not in OUTSIDE)
    assert resident < found.allocated < resident + 1.2 * max(use.peak for use in simulate(setup).memory)
    assert found.reserved < 1.5 * found.allocated
