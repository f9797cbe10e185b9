"""Experts cut apart from the layers around them, with a capacity, and what is exchanged."""

import numpy as np
import pytest

from simulator.graph import Collective, Matmul, Partition, Shape, build, dropped_share, routed
from simulator.specs import Catalog, MemroofError

MODEL = Catalog().model("mixtral-8x7b")
SHAPE = Shape(1, 4096)
ROW = 4096 * 2
"""Bytes of a token: the hidden size in 16 bits."""


def operator(partition, name):
    return next(op for op in build(MODEL, SHAPE, partition).blocks[0].operators if op.name == name)


def moved(partition, name, part="forward"):
    works = getattr(operator(partition, name), part)
    return {(w.kind, w.axis): w.size for w in works if isinstance(w, Collective)}


def rows(partition):
    (product,) = (w for w in operator(partition, "moe.up").forward if isinstance(w, Matmul))
    return product.m * product.count, product.n


def test_experts_cut_like_their_surroundings():
    # each rank sends the two copies of its quarter of the tokens; four ranks share an expert and gather what came
    partition = Partition(4, 2, True)
    assert moved(partition, "moe.dispatch") == {
        ("all-to-all", "expert"): 1024 * 2 * ROW,
        ("all-gather", "tensor"): 4096 * 2 * ROW,
    }
    assert moved(partition, "moe.combine") == {
        ("all-to-all", "expert"): 1024 * 2 * ROW,
        ("reduce-scatter", "tensor"): 4096 * 2 * ROW,
    }
    assert rows(partition) == pytest.approx((4096 * 2, 2 * 14336 / 4))


def test_whole_experts_among_tensor_parallel_ranks():
    # Megatron-Core's expert_tensor_parallel_size 1: eight experts over eight ranks, nothing to gather
    partition = Partition(4, 8, True, expert_tensor=1)
    assert moved(partition, "moe.dispatch") == {
        ("all-to-all", "expert"): 1024 * 2 * ROW,
        ("all-gather", "expert-tensor"): 1024 * 2 * ROW,
    }
    # eight ranks of 1,024 tokens bring 16,384 copies to eight experts
    assert rows(partition) == pytest.approx((2048, 2 * 14336))
    same = build(MODEL, SHAPE, Partition(4, 8, True))
    apart = build(MODEL, SHAPE, partition)
    layers = MODEL.num_hidden_layers
    assert apart.blocks[0].expert_parameters == 4 * same.blocks[0].expert_parameters
    assert apart.parameters - same.parameters == pytest.approx(3 * layers * same.blocks[0].expert_parameters)


def test_one_group_of_experts_gathers_tokens_before_it_copies_them():
    assert moved(Partition(4, 1, True), "moe.dispatch")["all-gather", "tensor"] == 4096 * ROW
    assert moved(Partition(4, 1), "moe.combine")["all-reduce", "tensor"] == 4096 * ROW
    swept = moved(Partition(4, np.array([1, 2]), True), "moe.dispatch")["all-gather", "tensor"]
    assert swept == pytest.approx([4096 * ROW, 2 * 4096 * ROW])


def test_experts_cut_otherwise_need_tokens_of_their_own():
    with pytest.raises(MemroofError, match="need sequence parallelism"):
        build(MODEL, SHAPE, Partition(4, 8, expert_tensor=1))
    build(MODEL, SHAPE, Partition(1, 4, expert_tensor=2))


def test_a_capacity_pads_and_drops():
    plain, padded = Partition(1, 8), Partition(1, 8, expert_capacity=1.25)
    assert rows(padded)[0] == pytest.approx(1.25 * rows(plain)[0])
    (sent,) = (moved(p, "moe.dispatch")["all-to-all", "expert"] for p in (padded,))
    assert sent == pytest.approx(1.25 * moved(plain, "moe.dispatch")["all-to-all", "expert"])
    assert routed(4096, 8, 2, capacity=1.0).even
    (product,) = (w for w in operator(padded, "moe.up").forward if isinstance(w, Matmul))
    assert product.spread == 0.0


@pytest.mark.parametrize(("tokens", "experts", "top_k"), [(4096, 8, 2), (1024, 64, 6), (512, 16, 1)])
@pytest.mark.parametrize("capacity", [1.0, 1.1, 1.5])
def test_what_is_dropped_agrees_with_drawing(tokens, experts, top_k, capacity):
    random = np.random.default_rng(7)
    loads = random.binomial(tokens, top_k / experts, 200_000)
    mean = tokens * top_k / experts
    drawn = np.maximum(loads - capacity * mean, 0.0).mean() / mean
    assert dropped_share(tokens, experts, top_k, capacity) == pytest.approx(drawn, abs=0.003)


def test_routers_see_a_ranks_own_tokens():
    (router,) = operator(Partition(4, 1, True), "moe.router").forward[:1]
    assert router.m == 1024
    assert operator(Partition(4, 1), "moe.router").forward[0].m == 4096


def test_copies_to_limited_nodes():
    (crossing,) = (
        w
        for w in operator(Partition(1, 8, expert_nodes=2), "moe.dispatch").forward
        if isinstance(w, Collective) and w.kind == "all-to-all"
    )
    assert (crossing.copies, crossing.nodes) == (2, 2)


def test_down_projections_of_latent_attention_see_a_ranks_own_tokens():
    model = Catalog().model("deepseek-v3")
    for scattered, tokens in ((True, 1024), (False, 4096)):
        operators = {
            op.name: op for op in build(model, SHAPE, Partition(4, 1, scattered)).blocks[0].operators
        }
        assert {operators[name].forward[0].m for name in ("attention.q_a", "attention.kv_a")} == {tokens}
        # what the up projections multiply is gathered: 1,536 and 512 elements, and the key that all heads share, 64
        gathered = [
            work.size / (4096 * 2)
            for name in ("attention.q_b", "attention.kv_b", "attention.rotary")
            for work in operators[name].forward
            if isinstance(work, Collective)
        ]
        assert gathered == ([1536, 512, 64] if scattered else [])
