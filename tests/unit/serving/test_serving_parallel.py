"""Iterations of replicas that are cut by more than tensors: pipelines, experts, attention groups, captured graphs."""

import numpy as np
import pytest
from serving_cases import LLAMA_8B, LLAMA_70B, make_setup, small

from simulator.analysis.run import load
from simulator.graph import Numerics
from simulator.serving import PipelinePricer, StepPricer, make_plan
from simulator.serving.layout import Layout

NODE = {"node": "dgx-h100"}
NONE = np.zeros(0, np.int64)
MOE = small(
    name="experts", hidden_size=2048, num_attention_heads=16, num_key_value_heads=8, num_hidden_layers=8,
    moe={"num_experts": 64, "num_experts_per_tok": 4, "moe_intermediate_size": 1024},
)  # fmt: skip
TOGETHER = {"attention_data_parallel": 8, "expert_parallel": 8}


def pricer(model=MOE, **strategy):
    return make_plan(make_setup(model, NODE, **strategy)).pricer


def step(price, batch=32, context=500):
    return float(price.decode(np.full(batch, context), 1).seconds[0])


def prompt(price, tokens=2048):
    return float(price.mixed(np.array([tokens]), np.array([0]), NONE, 1).seconds[0])


def test_one_stage_and_one_place_are_the_plain_pricer_to_the_bit():
    setup = make_setup(MOE, NODE)
    span = setup.hardware.span(4)
    plain = StepPricer(MOE, Numerics(), 4, span, setup.cost, 0.0)
    same = StepPricer(MOE, Numerics(), 4, span, setup.cost, 0.0, layout=Layout(4, tensor_span=span))
    contexts = np.array([10, 200, 3000])
    assert (plain.decode(contexts, 7).seconds == same.decode(contexts, 7).seconds).all()
    assert plain.weight_bytes == same.weight_bytes


def test_accounts_add_up_to_the_seconds():
    for strategy in (
        {"tensor_parallel": 8, "expert_parallel": 8}, {"pipeline_parallel": 4, "tensor_parallel": 2},
        {**TOGETHER, "expert_exchange": "auto", "dual_batch_overlap": True}, {"cuda_graphs": False},
    ):  # fmt: skip
        price = pricer(**strategy)
        for steps in (
            price.decode(np.full(9, 300), 5),
            price.mixed(np.array([70, 9]), np.array([0, 5]), np.full(7, 300), 9),
        ):
            account = price.account(steps.total(len(steps.seconds)))
            assert sum(account.by_bottleneck.values()) == pytest.approx(steps.seconds.sum())


# --- pipelines ---


def test_a_token_of_a_full_pipeline_takes_the_sum_of_its_stages_and_its_stages_always_work():
    price = pricer(LLAMA_70B, tensor_parallel=2, pipeline_parallel=4)
    assert isinstance(price, PipelinePricer)
    contexts = np.full(64, 1000)
    round_ = float(price.decode(contexts, 1).seconds[0])
    parts = [float(stage.decode(contexts[::4], 1).seconds[0]) for stage in price.stages]
    # the busiest stage works all the time, for four micro-batches
    assert round_ == pytest.approx(max(4 * max(parts), sum(parts)), rel=0.01)
    assert price.account(price.decode(contexts, 1).total(1)).by_bottleneck.get("bubble", 0.0) < 0.01 * round_


def test_a_single_sequence_leaves_a_pipeline_idle():
    price = pricer(LLAMA_70B, tensor_parallel=2, pipeline_parallel=4)
    alone = price.decode(np.array([1000]), 1)
    account = price.account(alone.total(1))
    assert account.by_bottleneck["bubble"] == pytest.approx(0.75 * alone.seconds[0], rel=0.05)
    whole = pricer(LLAMA_70B, tensor_parallel=2)
    assert float(alone.seconds[0]) == pytest.approx(step(whole, 1, 1000), rel=0.03)


def test_stages_hold_a_part_of_weights_and_cache_each():
    whole = make_plan(make_setup(LLAMA_70B, NODE, tensor_parallel=2))
    cut = make_plan(make_setup(LLAMA_70B, NODE, tensor_parallel=2, pipeline_parallel=4))
    assert sum(s.weight_bytes for s in cut.pricer.stages) == pytest.approx(whole.pricer.weight_bytes)
    assert cut.cache.tokens > 4 * whole.cache.tokens
    assert cut.policy.max_tokens == 4 * whole.policy.max_tokens


def test_prompts_go_through_a_pipeline_beside_one_another():
    price = pricer(LLAMA_70B, tensor_parallel=2, pipeline_parallel=4)
    one = prompt(price, 1000)
    four = float(price.mixed(np.full(4, 1000), np.zeros(4, int), NONE, 4).seconds[0])
    assert four == pytest.approx(one, rel=0.1)


# --- experts ---


def test_experts_over_places_keep_the_weights_and_read_fewer_rows_of_each():
    cut, spread = pricer(tensor_parallel=8), pricer(tensor_parallel=8, expert_parallel=8)
    assert spread.weight_bytes == pytest.approx(cut.weight_bytes)
    assert prompt(spread, 8192) < prompt(cut, 8192)


def test_attention_groups_hold_attention_whole_and_share_the_experts():
    alone, together = pricer(), pricer(**TOGETHER)
    graph = alone.graph()
    experts = (
        sum(float(b.expert_parameters) * n for b, n in zip(graph.blocks, graph.counts, strict=True)) * 2.0
    )
    assert together.weight_bytes == pytest.approx(alone.weight_bytes - experts * 7 / 8)
    # eight times the tokens of one group meet in the experts: no faster than one GPU of eight with a batch of its own
    assert step(together) > step(pricer(tensor_parallel=8, expert_parallel=8))


def test_exchange_takes_link_time_that_locality_and_overlap_save():
    plain = pricer(**TOGETHER, expert_exchange="normal")
    local = pricer(**TOGETHER, expert_exchange="normal", expert_locality=0.6)
    assert prompt(local, 8192) < prompt(plain, 8192)
    beside = pricer(**TOGETHER, expert_exchange="normal", dual_batch_overlap=True)
    account = beside.account(beside.mixed(np.array([8192]), np.array([0]), NONE, 1).total(1))
    exposed = account.by_bottleneck.get("expert-parallel link", 0.0)
    whole = plain.account(plain.mixed(np.array([8192]), np.array([0]), NONE, 1).total(1))
    assert exposed < 0.5 * whole.by_bottleneck["expert-parallel link"]


def test_auto_takes_low_latency_kernels_for_decodes_and_normal_ones_for_prompts():
    auto, low, normal = (
        pricer(**TOGETHER, expert_exchange=kind) for kind in ("auto", "low-latency", "normal")
    )
    assert step(auto) == step(low) != step(normal)
    assert prompt(auto) == prompt(normal) != prompt(low)


def test_skewed_routing_keeps_the_busiest_rank_busy_and_balance_helps():
    even = prompt(pricer(**TOGETHER), 4096)
    skewed = prompt(pricer(**TOGETHER, routing_skew=1.2), 4096)
    balanced = {"routing_skew": 1.2, "expert_placement": "balanced"}
    placed = prompt(pricer(**TOGETHER, **balanced), 4096)
    copied = prompt(pricer(**TOGETHER, **balanced, redundant_experts=16), 4096)
    assert even <= copied <= placed
    assert copied < skewed
    assert pricer(**TOGETHER, **balanced, redundant_experts=16).weight_bytes > pricer(**TOGETHER).weight_bytes


# --- captured graphs ---


def test_an_iteration_is_as_long_as_that_of_the_next_captured_count():
    exact, padded = pricer(LLAMA_8B), pricer(LLAMA_8B, cuda_graphs=[8, 16])
    assert step(padded, 8) == step(exact, 8)
    assert step(padded, 5) >= step(exact, 5)


def test_what_is_not_captured_takes_what_the_host_needs_to_issue_it():
    eager, captured = pricer(LLAMA_8B, cuda_graphs=False), pricer(LLAMA_8B, cuda_graphs=True)
    # 32 layers of about nine operators at 55 us: more than the step itself
    assert 0.012 < step(eager, 1) < 0.03
    assert step(captured, 1) < 0.6 * step(eager, 1)
    assert prompt(eager, 8192) == prompt(captured, 8192)
    account = eager.account(eager.decode(np.array([10]), 1).total(1))
    assert account.by_bottleneck["host"] > 0.0


# --- published ---


def test_deepseek_v3_decodes_at_the_rate_of_its_published_profile():
    # deepseek-ai/profile-data: 128 GPUs, 128 requests each of 4,096 tokens, two micro-batches: 2,324 tokens/s and GPU (InferSim)
    setup = load(
        {
            "kind": "serving", "hardware": {"cluster": "deepseek-v3-2048-h800", "nodes": 16}, "model": "deepseek-v3",
            "workload": {"arrival": "offline", "requests": 128 * 128, "prompt": 4096, "output": 200},
            "strategy": {
                "attention_data_parallel": 128, "expert_parallel": 128, "expert_exchange": "low-latency", "precision": "fp8",
                "dual_batch_overlap": True, "max_batch": 128,
            },
        }
    )  # fmt: skip
    plan = make_plan(setup)
    rate = 128 / float(plan.pricer.decode(np.full(128, 4096), 1).seconds[0])
    assert rate == pytest.approx(2324, rel=0.15)
