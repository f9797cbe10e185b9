"""Iteration times against the same graph priced operator by operator."""

from dataclasses import replace

import numpy as np
import pytest
from serving_cases import LLAMA_8B, LLAMA_70B, make_setup, small

from simulator.graph import Attention, Collective, Matmul, Numerics, Partition, Shape, build
from simulator.serving import StepPricer, make_plan
from simulator.serving.accounts import FLOPS, TRAFFIC
from simulator.serving.quantisation import paired_tile
from simulator.serving.step_time import _narrowed
from simulator.specs import OPERATOR_CLASSES, MemroofError

HOST = 1e-3
MLA = small(
    name="latent", intermediate_size=2048,
    mla={"kv_lora_rank": 256, "q_lora_rank": 384, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64},
)  # fmt: skip
MOE = small(name="experts", moe={"num_experts": 16, "num_experts_per_tok": 2, "moe_intermediate_size": 1024})
WINDOWED = small(name="windows", sliding_window=64, sliding_window_pattern=2)


def pricer(model=LLAMA_8B, tensor=1):
    setup = make_setup(model, {"node": "dgx-h100"})
    span = setup.hardware.span(tensor)
    return StepPricer(model, Numerics(), tensor, span, setup.cost, HOST), setup.cost, span


def priced(model, shape, tensor, cost, span):
    """Seconds and FLOPs of a pass, without loss; the head adds the gather and softmax of logits."""
    graph = build(model, shape, Partition(tensor), Numerics())
    seconds = flops = 0.0
    for block, count in graph.all_blocks:
        for operator in block.operators:
            for work in operator.forward if operator.name != "loss" else ():
                if isinstance(work, Collective) and (work.axis != "tensor" or tensor == 1):
                    continue
                seconds += count * cost.price(work, span).time
                flops += count * work.flops
    logits = shape.batch * model.vocab_size * 4.0
    if tensor > 1:
        seconds += cost.price(Collective("all-gather", "tensor", logits), span).time
    return seconds + 3.0 * logits / cost_bandwidth(cost, 3.0 * logits), flops


def cost_bandwidth(cost, size):
    from simulator.graph import Elementwise

    return size / cost.price(Elementwise(size, 0.0)).time


@pytest.mark.parametrize(("model", "tensor"), [(LLAMA_8B, 1), (LLAMA_70B, 8), (MOE, 1), (MLA, 1), (MLA, 2)])
def test_a_decode_step_is_the_sum_of_the_decode_graph(model, tensor):
    prices, cost, span = pricer(model, tensor)
    seconds, flops = priced(model, Shape(6, 1, 100, "decode"), tensor, cost, span)
    steps = prices.decode(np.full(6, 100), 1)
    assert steps.seconds[0] == pytest.approx(seconds + HOST, rel=1e-9)
    assert steps.total(1)[FLOPS] == pytest.approx(flops, rel=1e-9)


@pytest.mark.parametrize(
    ("model", "tensor"), [(LLAMA_8B, 1), (LLAMA_70B, 8), (MOE, 1), (MLA, 1), (WINDOWED, 1)]
)
def test_a_prefill_is_the_sum_of_the_prefill_graph(model, tensor):
    prices, cost, span = pricer(model, tensor)
    seconds, flops = priced(model, Shape(1, 300, 0, "prefill"), tensor, cost, span)
    steps = prices.mixed(np.array([300]), np.array([0]), np.zeros(0, int), 1)
    assert steps.seconds[0] == pytest.approx(seconds + HOST, rel=1e-9)
    assert steps.total(1)[FLOPS] == pytest.approx(flops, rel=1e-9)
    assert steps.seconds[0] > flops / cost.device.compute.matrix["bf16"]


@pytest.mark.parametrize("model", [LLAMA_8B, MLA, WINDOWED])
def test_a_run_of_steps_is_the_steps_one_by_one(model):
    prices, _, _ = pricer(model)
    contexts = np.array([10, 50, 700])
    together = prices.decode(contexts, 40)
    alone = [prices.decode(contexts + i, 1) for i in range(40)]
    assert together.seconds == pytest.approx([step.seconds[0] for step in alone], rel=1e-12)
    assert together.total(40) == pytest.approx(sum(step.total(1) for step in alone), rel=1e-9)
    assert together.total(7) == pytest.approx(sum(step.total(1) for step in alone[:7]), rel=1e-9)


def test_pieces_of_several_prompts_are_one_kernel_with_the_same_flops():
    prices, _, _ = pricer()
    nobody = np.zeros(0, int)
    new, cached = np.array([100, 300, 17]), np.array([0, 200, 1000])
    together = prices.mixed(new, cached, nobody, 3).total(1)[FLOPS]
    head = prices.mixed(new[:1], cached[:1], nobody, 1).total(1) - prices.mixed(
        new[:1], cached[:1], nobody, 0
    ).total(1)
    alone = sum(prices.mixed(new[i : i + 1], cached[i : i + 1], nobody, 0).total(1)[FLOPS] for i in range(3))
    assert together == pytest.approx(alone + 3 * head[FLOPS], rel=1e-9)


def test_a_mixed_iteration_shares_the_weights():
    prices, _, _ = pricer()
    nobody = np.zeros(0, int)
    new, cached, contexts = np.array([256]), np.array([0]), np.full(16, 500)
    mixed = prices.mixed(new, cached, contexts, 17).seconds[0]
    apart = prices.mixed(new, cached, nobody, 1).seconds[0] + prices.decode(contexts, 1).seconds[0]
    assert (
        max(prices.decode(contexts, 1).seconds[0], prices.mixed(new, cached, nobody, 1).seconds[0])
        < mixed
        < apart
    )


@pytest.mark.parametrize("model", [LLAMA_8B, MLA, WINDOWED])
def test_decodes_beside_a_prompt_cost_what_they_cost_alone(model):
    prices, _, _ = pricer(model)
    none, contexts = np.zeros(0, int), np.array([10, 50, 700])
    # a prompt piece of no query-key pairs to speak of: one token
    beside = prices.mixed(np.array([1]), np.array([0]), contexts, 3).total(1)
    piece = prices.mixed(np.array([1]), np.array([0]), none, 0).total(1)
    alone = prices.decode(contexts, 1).total(1)
    assert beside[FLOPS] == pytest.approx(piece[FLOPS] + alone[FLOPS], rel=1e-9)
    attention = OPERATOR_CLASSES.index("decode-attention") * 4
    assert beside[attention : attention + 4] == pytest.approx(alone[attention : attention + 4], rel=1e-9)


def test_no_decode_step_beats_its_weights_and_cache():
    prices, cost, _ = pricer()
    graph = prices.graph()
    contexts = np.full(32, 2000)
    read = graph.weight_bytes - graph.embedding.parameters * 2.0 + 32 * graph.kv_bytes(2001)
    steps = prices.decode(contexts, 1)
    assert steps.seconds[0] > read / cost.device.memory["hbm"].bandwidth
    assert steps.total(1)[TRAFFIC] > read


def test_accounts_name_what_binds():
    prices, _, _ = pricer(LLAMA_70B, 8)
    steps = prices.decode(np.full(4, 100), 2)
    account = prices.account(steps.total(2))
    assert account.seconds == pytest.approx(steps.seconds.sum(), rel=1e-12)
    assert sum(account.by_bottleneck.values()) == pytest.approx(account.seconds, rel=1e-12)
    assert account.by_bottleneck["host"] == pytest.approx(2 * HOST)
    assert {"matmul", "decode-attention", "collective", "host"} <= set(account.by_class)


def test_a_group_over_nodes_is_bound_by_the_network():
    setup = make_setup(LLAMA_70B, {"node": "dgx-h100", "nodes": 2})
    prices = StepPricer(LLAMA_70B, Numerics(), 16, setup.hardware.span(16), setup.cost, HOST)
    account = prices.account(prices.mixed(np.array([4096]), np.array([0]), np.zeros(0, int), 1).total(1))
    assert account.by_bottleneck["network"] > 0.0
    assert "tensor-parallel link" not in account.by_bottleneck


def test_workspace_is_what_is_alive_at_once():
    prices, _, _ = pricer()
    # gate and up projection of 2 x 14336 and their product, beside the residual stream
    mlp = 1000 * (4096 + 3 * 14336) * 2.0
    assert prices.workspace_bytes(1000, 1) == mlp
    # many sequences: logits in fp32, their statistics and what they are made from
    assert prices.workspace_bytes(8, 256) >= 256 * 128256 * 4.0


def test_one_attention_kind_for_each_window():
    prices, _, _ = pricer(WINDOWED)
    assert sorted(prices._decode_attention.values()) == [2, 2]
    assert all(isinstance(work, Attention) and work.decode for work in prices._decode_attention)


def test_inputs_of_narrow_products_are_read_as_narrowed():
    product = Matmul(64, 4096, 1024, 2, "fp8", 2.0, 1.0, 2.0)
    assert _narrowed(product) == replace(product, left_bytes=1.0)
    wide = replace(product, format="bf16")
    assert _narrowed(wide) == wide


def test_scales_of_four_bit_weights_are_stored():
    plan = make_plan(make_setup(weight_precision="int4"))
    layers = 8.03e9 - 2 * 128256 * 4096
    assert plan.resident["weights"] == pytest.approx(
        layers * (0.5 + 2.5 / 128) + 2 * 128256 * 4096 * 2.0, rel=2e-3
    )


def test_four_bit_products_of_blackwell_take_tiles_of_two_units():
    # vLLM's NVFP4 kernel: n = 8,192 fills one wave of 74 tiles of two units, n = 10,240 begins a second; measured on B200
    # (aiconfigurator/gemm.csv, m = 2 and 7, k = 65,536): 69.0 and 116.7 us
    prices = make_plan(make_setup(hardware={"device": "b200"}, precision="fp4")).pricer
    times = []
    for columns in (8192, 10240):
        product = Matmul(4, columns, 65536, 1, "fp4", 2.0, 0.5625, 2.0)
        quantise, run = prices._kernels(product, "mlp.up")
        assert (float(run.tile[0]), float(run.tile[1]), run.split_k) == (256.0, 64.0, False)
        assert (quantise.read, quantise.written) == (2.0 * 4 * 65536, 0.5625 * 4 * 65536)
        times.append(float(prices.cost.price(run).time))
    assert times == pytest.approx([69.0e-6, 116.7e-6], rel=0.2)
    assert paired_tile(np.array([256, 257]))[1].tolist() == [64.0, 128.0]


def test_gates_and_excluded_modules_stay_in_16_bits():
    prices = make_plan(make_setup(precision="fp8")).pricer
    kept = make_plan(make_setup(precision="fp8", unquantized=["attention.qkv", "attention.output"])).pricer
    # 4096 x 6144 and 4096 x 4096 in each of 32 layers take a byte more an element
    assert kept.weight_bytes - prices.weight_bytes == 32 * 4096 * (6144 + 4096)
    product = Matmul(1, 6144, 4096, 1, "fp8", 2.0, 1.0, 2.0)
    (wide,) = kept._kernels(product, "attention.qkv")
    assert (wide.format, wide.left_bytes, wide.right_bytes) == ("bf16", 2.0, 2.0)
    (gate,) = prices._kernels(product, "moe.router")
    assert gate.format == "bf16"


def test_modules_that_a_model_lacks_are_refused():
    with pytest.raises(
        MemroofError, match=r"llama-8b has no 'attention\.q_a'; its attention has .*attention\.qkv"
    ):
        make_plan(make_setup(precision="fp8", unquantized=["attention.q_a"]))


def test_shared_experts_of_few_tokens_run_beside_the_routed_ones():
    moe = {
        "num_experts": 64,
        "num_experts_per_tok": 6,
        "moe_intermediate_size": 1024,
        "num_shared_experts": 2,
    }
    without = {**moe, "num_shared_experts": 0}
    both, routed = (make_plan(make_setup(small(name="shared", moe=each))).pricer for each in (moe, without))

    def more(tokens):
        one, other = (each.decode(np.full(tokens, 100), 1).seconds[0] for each in (both, routed))
        return one - other

    # three kernels a layer, of some microseconds each, are hidden but for their traffic; beyond 256 tokens none is
    assert 0.0 <= more(8) < 0.5 * more(300)
