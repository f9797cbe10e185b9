"""How a replica is cut over its GPUs: what is legal, and where layers and experts go."""

import numpy as np
import pytest
from serving_cases import LLAMA_70B, make_setup, small

from simulator.serving import make_plan
from simulator.serving.layout import Layout, busiest_place, make_layout, stages
from simulator.specs import MemroofError, SpecError

NODE = {"node": "dgx-h100"}
MOE = small(
    name="experts", num_key_value_heads=8,
    moe={"num_experts": 16, "num_experts_per_tok": 2, "moe_intermediate_size": 1024},
)  # fmt: skip


def layout(model=MOE, **strategy):
    setup = make_setup(model, NODE, **strategy)
    return make_layout(setup.scenario.strategy, model, setup.hardware)


def test_a_replica_has_the_gpus_of_all_its_stages_and_groups():
    found = layout(tensor_parallel=2, attention_data_parallel=2, expert_parallel=4, pipeline_parallel=2)
    assert (found.ranks, found.gpus, found.expert_tensor) == (4, 8, 1)
    assert (found.tensor_span.size, found.data_span.size, found.stage_span.size) == (2, 2, 4)
    assert make_plan(make_setup(MOE, NODE, tensor_parallel=2, attention_data_parallel=2)).gpus == 8


def test_layers_are_dealt_out_evenly_and_the_last_stage_is_no_larger():
    assert [len(layers) for layers in stages(80, 4)] == [20, 20, 20, 20]
    assert [len(layers) for layers in stages(61, 8)] == [7, 7, 8, 8, 8, 8, 8, 7]
    assert [len(layers) for layers in stages(5, 2)] == [3, 2]
    assert [i for layers in stages(61, 8) for i in layers] == list(range(61))


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ({"tensor_parallel": 8, "pipeline_parallel": 2}, "needs 16 GPUs"),
        ({"pipeline_parallel": 5}, "exceeds the 4 layers"),
        ({"tensor_parallel": 4, "expert_parallel": 3}, "does not divide the 4 GPUs"),
        (
            {"expert_parallel": 8, "attention_data_parallel": 8, "redundant_experts": 4, "routing_skew": 1.0, "expert_placement": "balanced"},
            "does not divide 20 experts",
        ),
        ({"tensor_parallel": 4, "expert_exchange": "low-latency"}, "sends tokens to whole experts"),
        (
            {"attention_data_parallel": 4, "expert_parallel": 2, "expert_exchange": "normal"},
            "all GPUs of a stage",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(strategy, message):
    with pytest.raises(MemroofError, match=message):
        layout(**strategy)


@pytest.mark.parametrize(
    "option",
    [{"expert_parallel": 2, "tensor_parallel": 2}, {"attention_data_parallel": 2}, {"routing_skew": 1.0}],
)
def test_options_of_experts_need_experts(option):
    with pytest.raises(MemroofError, match="which has no experts"):
        layout(LLAMA_70B, **option)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"dual_batch_overlap": True}, "hides an exchange"),
        ({"expert_placement": "balanced"}, "without 'routing_skew'"),
        ({"redundant_experts": 8}, "need expert_placement 'balanced'"),
        ({"expert_locality": 0.5}, "not 'collective'"),
        ({"expert_nodes": 2}, "belongs to expert_exchange 'normal'"),
        (
            {"attention_data_parallel": 2, "dual_batch_overlap": True, "cuda_graphs": True},
            "'cuda_graphs' has no meaning",
        ),
    ],
)  # fmt: skip
def test_options_that_decide_nothing_are_refused(option, message):
    with pytest.raises((SpecError, ValueError), match=message):
        layout(**option)


def test_locality_leaves_fewer_copies_to_send_than_chance():
    assert Layout(data=4, expert=4).sent_share == 1.0
    # by chance one of four is local: three quarters are sent; a share of 0.7 leaves 0.3
    assert Layout(data=4, expert=4, locality=0.7).sent_share == pytest.approx(0.3 / 0.75)
    assert Layout(data=4, expert=4, locality=0.1).sent_share == 1.0


def test_copies_of_busy_experts_even_the_places_out():
    alone = busiest_place(256, 32, 0, 1.2, 65536)
    helped = busiest_place(256, 32, 32, 1.2, 65536)
    assert alone > 1.5
    assert 1.0 <= helped < 1.15
    assert busiest_place(256, 32, 0, 0.0, 65536) == 1.0
    gains = [busiest_place(64, 8, copies, 1.5, 4096) for copies in (0, 8, 16, 64)]
    assert np.all(np.diff(gains) <= 1e-12)
