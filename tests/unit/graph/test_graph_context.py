"""Context parallelism: equal shares of causal work, and the bytes that each exchange moves."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.graph import Attention, Collective, Elementwise, Partition, Shape, build
from simulator.graph.context import exchanged
from simulator.specs import Catalog, MemroofError

MODEL = Catalog().model("llama3.1-8b")
LATENT = Catalog().model("deepseek-v3")
SHAPE = Shape(1, 131072)
EXCHANGES = ("all-gather", "ring", "all-to-all")


def core(partition, model=MODEL, shape=SHAPE):
    graph = build(model, shape, partition)
    return next(op for op in graph.blocks[0].operators if op.name == "attention.core")


def kernels(works, kind):
    return [work for work in works if isinstance(work, kind)]


@given(st.integers(1, 16), st.integers(1, 64), st.booleans())
def test_an_early_and_a_late_slice_have_a_fair_share_of_the_pairs(ranks, half, windowed):
    sequence = 2 * ranks * half
    window = half if windowed else np.inf
    whole = Attention(1, 1, 1, sequence, sequence, 64, 64, 128, window=window)
    seen = np.minimum(np.arange(sequence) + 1, window)
    slices = seen.reshape(2 * ranks, half).sum(axis=1)
    share = exchanged(whole, ranks, "all-gather")[0][1]
    assert share.queries == 2 * half
    # with a window only the first rank has less than the others
    expected = slices + slices[::-1]
    assert share.pairs == pytest.approx(expected[:ranks].mean())
    if not windowed:
        assert share.pairs == pytest.approx(expected[0])


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("model", [MODEL, LATENT], ids=lambda model: model.name)
def test_every_exchange_cuts_the_same_work(exchange, model):
    whole, cut = core(Partition(2), model), core(Partition(2, context=4, context_exchange=exchange), model)
    for part in ("forward", "input_gradient"):
        flops = [sum(work.flops for work in kernels(getattr(op, part), Attention)) for op in (whole, cut)]
        assert flops[1] == pytest.approx(flops[0] / 4)


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_activations_logits_and_saved_tensors_shrink_by_the_ranks(exchange):
    whole = build(MODEL, SHAPE, Partition(2))
    cut = build(MODEL, SHAPE, Partition(2, context=8, context_exchange=exchange))
    assert cut.parameters == whole.parameters
    for a, b in ((whole.blocks[0], cut.blocks[0]), (whole.embedding, cut.embedding), (whole.head, cut.head)):
        assert b.saved_bytes() == pytest.approx(a.saved_bytes() / 8)
        for recompute in ("selective", "full"):
            assert b.saved_bytes(recompute) == pytest.approx(a.saved_bytes(recompute) / 8)


def test_keys_and_values_are_gathered_again_and_their_gradients_scattered():
    # 8 KV heads of 128 over two tensor-parallel ranks: 2 x 512 elements of 2 bytes a position (Llama 3, section 3.3.2)
    operator = core(Partition(2, context=4))
    size = 131072 * 2 * 512 * 2
    forward, backward = (kernels(works, Collective) for works in (operator.forward, operator.input_gradient))
    assert [(c.kind, c.size) for c in forward] == [("all-gather", size)]
    assert [(c.kind, c.size) for c in backward] == [("all-gather", size), ("reduce-scatter", size)]
    assert all(c.axis == "context" and not c.hidden_by for c in (*forward, *backward))


def test_a_ring_passes_its_part_and_in_the_backward_pass_the_gradients_too():
    operator = core(Partition(2, context=4, context_exchange="ring"))
    local = 131072 // 4 * 2 * 512 * 2
    forward, backward = (kernels(works, Collective) for works in (operator.forward, operator.input_gradient))
    assert [(c.kind, c.size, c.hidden_by) for c in forward] == [("ring", local, "forward")]
    assert [(c.kind, c.size, c.hidden_by) for c in backward] == [
        ("ring", 2 * local, "input-gradient"),
        ("send", local, ""),
    ]
    # three partial outputs are added to the first
    (sums,) = kernels(operator.forward, Elementwise)
    assert sums.kernels == 3
    assert sums.flops == 3 * 131072 / 4 * 16 * 128


def test_heads_for_positions():
    # DeepSpeed-Ulysses, section 3.2: queries, keys and values in, outputs back; the same in the backward pass
    operator = core(Partition(1, context=8, context_exchange="all-to-all"))
    positions = 131072 // 8 * 2
    sizes = [positions * heads * 128 for heads in (32, 8, 8, 32)]
    forward, backward = (kernels(works, Collective) for works in (operator.forward, operator.input_gradient))
    assert {c.kind for c in (*forward, *backward)} == {"all-to-all"}
    assert sorted(c.size for c in forward) == sorted(c.size for c in backward) == sorted(sizes)
    (kernel,) = kernels(operator.forward, Attention)
    assert (kernel.heads, kernel.kv_heads, kernel.queries, kernel.kv_width) == (4, 1, 131072, 2 * 128)


def test_few_kv_heads_are_repeated():
    operator = core(Partition(1, context=16, context_exchange="all-to-all"))
    (kernel,) = kernels(operator.forward, Attention)
    assert (kernel.heads, kernel.kv_heads) == (2, 1)
    assert sorted(c.size for c in kernels(operator.forward, Collective))[0] == 131072 / 16 * 16 * 128 * 2


def test_degrees_may_be_arrays():
    degrees = np.array([1, 2, 8])
    for exchange in EXCHANGES:
        swept = build(MODEL, SHAPE, Partition(1, context=degrees, context_exchange=exchange))
        flops = swept.flops(("forward", "input_gradient", "weight_gradient"))
        alone = [
            build(MODEL, SHAPE, Partition(1, context=int(c), context_exchange=exchange))
            .blocks[0]
            .saved_bytes()
            for c in degrees
        ]
        assert swept.blocks[0].saved_bytes() == pytest.approx(alone)
        assert flops * degrees == pytest.approx(np.full(3, flops[0]), rel=0.02)


def test_what_has_no_kernel_is_refused():
    with pytest.raises(MemroofError, match="needs fused attention"):
        build(MODEL, SHAPE, Partition(1, context=2), fused_attention=False)
    for model, shape in (
        (MODEL, Shape(1, 64, phase="prefill")),
        (Catalog().model("t5-11b"), Shape(1, 64, target=64)),
    ):
        with pytest.raises(MemroofError, match="one stack of layers in training"):
            build(model, shape, Partition(1, context=2))
