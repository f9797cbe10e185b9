"""The graph's laws: arrays equal scalars, cuts add up, windows cap, experts are counted once."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.graph import (
    Attention,
    Block,
    Collective,
    Elementwise,
    Matmul,
    Numerics,
    Operator,
    Partition,
    Shape,
    Tensor,
    active_experts,
    build,
)
from simulator.specs import MixtureOfExperts, Model


def make(**changes: object) -> Model:
    fields: dict[str, object] = {
        "kind": "model", "name": "toy", "family": "decoder", "source": "made up", "vocab_size": 1000, "hidden_size": 64,
        "num_hidden_layers": 4, "num_attention_heads": 8, "intermediate_size": 256, "max_position_embeddings": 512,
        "position": "rope", "normalization": "rmsnorm", "activation": "silu", "gated_mlp": True,
    }  # fmt: skip
    return Model.model_validate({**fields, **changes})


MOE = MixtureOfExperts(num_experts=8, num_experts_per_tok=2, moe_intermediate_size=32, num_shared_experts=1)


def test_parameters_by_hand() -> None:
    """Embedding and head 2·V·h; a layer 4h² + 3·h·f + 2h; final norm h."""
    graph = build(make(), Shape(1, 1))
    assert graph.parameters == 2 * 1000 * 64 + 4 * (4 * 64**2 + 3 * 64 * 256 + 2 * 64) + 64


def test_grouped_queries_cut_keys_and_values() -> None:
    whole = build(make(), Shape(1, 1)).parameters
    grouped = build(make(num_key_value_heads=2), Shape(1, 1)).parameters
    assert whole - grouped == 4 * 2 * 64 * (64 - 16)


def test_experts_by_hand() -> None:
    """Router h·E, E experts of 3·h·f, one shared expert of 3·h·f."""
    dense = build(make(intermediate_size=1), Shape(1, 1)).parameters - 4 * 3 * 64
    moe = build(make(moe=MOE), Shape(1, 1)).parameters
    assert moe - dense == 4 * (64 * 8 + (8 + 1) * 3 * 64 * 32)


@given(tp=st.sampled_from([1, 2, 4, 8]), moe=st.booleans(), fused=st.booleans(), sp=st.booleans())
@settings(derandomize=True, deadline=None, max_examples=40)
def test_cut_products_add_up_to_the_whole(tp: int, moe: bool, fused: bool, sp: bool) -> None:
    """FLOPs of all tensor-parallel ranks are those of one, but for what is replicated (the router)."""
    model = make(moe=MOE if moe else None)

    def flops(degree: int) -> float:
        graph = build(model, Shape(2, 64), Partition(degree, 1, sp and degree > 1), fused_attention=fused)
        return sum(
            work.flops * count
            for block, count in graph.all_blocks
            for op in block.operators
            for part in (op.forward, op.input_gradient, op.weight_gradient)
            for work in part
            if isinstance(work, (Matmul, Attention)) and op.name != "moe.router"
        )

    assert flops(tp) * tp == pytest.approx(flops(1), rel=1e-12)


@given(
    batches=st.lists(st.integers(1, 64), min_size=1, max_size=4),
    sequence=st.integers(1, 300),
    context=st.integers(0, 300),
)
@settings(derandomize=True, deadline=None, max_examples=40)
def test_arrays_equal_scalars(batches: list[int], sequence: int, context: int) -> None:
    model = make(moe=MOE, sliding_window=100, sliding_window_pattern=2)
    together = build(model, Shape(np.array(batches), sequence, context, "prefill"))
    for index, batch in enumerate(batches):
        alone = build(model, Shape(batch, sequence, context, "prefill"))
        assert together.flops()[index] == pytest.approx(alone.flops(), rel=1e-12)
    degrees = np.array([1, 2, 4])
    cut = build(model, Shape(1, sequence), Partition(degrees))
    for index, degree in enumerate(degrees):
        assert cut.weight_bytes[index] == pytest.approx(
            build(model, Shape(1, 1), Partition(int(degree))).weight_bytes
        )


@given(queries=st.integers(1, 60), cached=st.integers(0, 60), window=st.integers(1, 80))
@settings(derandomize=True, deadline=None, max_examples=200)
def test_causal_pairs_are_counted_one_by_one(queries: int, cached: int, window: int) -> None:
    work = Attention(1, 1, 1, queries, queries + cached, 1, 1, 2, window=window)
    assert work.pairs == sum(min(cached + i, window) for i in range(1, queries + 1))


@given(experts=st.integers(2, 64), tokens=st.integers(1, 200), data=st.data())
@settings(derandomize=True, deadline=None, max_examples=100)
def test_active_experts_stay_between_their_bounds(experts: int, tokens: int, data: st.DataObject) -> None:
    top_k = data.draw(st.integers(1, experts))
    active = float(active_experts(experts, top_k, tokens))
    assert top_k * (1 - 1e-9) <= active <= min(experts, top_k * tokens) * (1 + 1e-9)


def test_one_token_reaches_exactly_its_experts() -> None:
    assert active_experts(256, 8, 1) == pytest.approx(8)


def test_windows_cap_the_cache() -> None:
    graph = build(make(sliding_window=100, sliding_window_pattern=4), Shape(1, 1, 1000, "decode"))
    width = 2 * 64 * 2  # keys and values, bf16
    assert graph.kv_bytes(1000) == width * (3 * 100 + 1000)


def test_replicated_kv_heads_beyond_their_count() -> None:
    """Tensor parallelism above the KV heads keeps one head on each rank."""
    graph = build(make(num_key_value_heads=2), Shape(1, 1, 10, "decode"), Partition(8))
    assert graph.blocks[0].kv_width == 2 * 8


def test_sequence_parallelism_moves_the_same_bytes_on_a_ring() -> None:
    """All-gather and reduce-scatter replace the all-reduce (Korthikanti et al. 2022, section 4.2.2)."""

    def forward(sp: bool) -> dict[str, float]:
        block = build(make(), Shape(2, 64), Partition(4, 1, sp)).blocks[0]
        sizes: dict[str, float] = {}
        for work in block.works():
            if isinstance(work, Collective):
                sizes[work.kind] = sizes.get(work.kind, 0.0) + work.size
        return sizes

    plain, sequence = forward(False), forward(True)
    assert plain == {"all-reduce": 2 * 2 * 64 * 64 * 2}
    assert sequence == {"all-gather": plain["all-reduce"], "reduce-scatter": plain["all-reduce"]}


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_fused_attention_keeps_no_scores(recompute: str) -> None:
    fused = build(make(), Shape(2, 512)).blocks[0].saved_bytes(recompute)  # type: ignore[arg-type]
    apart = build(make(), Shape(2, 512), fused_attention=False).blocks[0].saved_bytes(recompute)  # type: ignore[arg-type]
    assert fused <= apart
    if recompute == "none":
        assert apart - fused == pytest.approx(2 * 8 * 512 * 512 * 2 - 2 * 512 * 8 * 4)


def test_block_is_a_dag_in_execution_order() -> None:
    import networkx

    block = build(make(moe=MOE), Shape(2, 64)).blocks[0]
    graph = block.digraph()
    assert networkx.is_directed_acyclic_graph(graph)
    assert networkx.has_path(graph, "attention.qkv", "mlp.residual")


def test_every_tensor_that_is_read_is_written_before() -> None:
    for model in (
        make(),
        make(moe=MOE),
        make(parallel_block=True),
        make(norm_placement="sandwich", qk_norm="head"),
    ):
        block = build(model, Shape(2, 64)).blocks[0]
        known = {"input"}
        for operator in block.operators:
            assert set(operator.inputs) <= known, operator.name
            known |= set(operator.outputs)


def test_encoder_decoder_decode_leaves_the_encoder_idle() -> None:
    model = make(
        family="encoder-decoder",
        num_encoder_layers=3,
        position="relative",
        gated_mlp=False,
        activation="relu",
    )
    prefill = build(model, Shape(2, 64, target=8))
    decode = build(model, Shape(2, 1, 64, "decode"))
    assert prefill.parameters == decode.parameters
    encoder = next(block for block in decode.blocks if block.name.startswith("encoder"))
    assert not encoder.works()
    assert decode.flops() < prefill.flops() / 8


def test_storage_formats() -> None:
    assert Numerics.of("bf16").weight_bytes == 2
    assert Numerics.of("fp8").weight_bytes == 1
    assert Numerics.of("fp16", "int4", "fp8") == Numerics("fp16", 2.0, 0.5, 1.0)
    assert Numerics.of("fp32").activation_bytes == 4


def test_separate_loss_kernels_by_hand() -> None:
    # Megatron-LM's vocab_parallel_cross_entropy: 38 bytes a logit forward with the conversion, 14 backward; the product writes
    # 2 bytes instead of 4
    model = make(gated_mlp=False)
    heads = {fused: build(model, Shape(2, 128), fused_loss=fused).head for fused in (True, False)}
    elements = 2 * 128 * model.vocab_size

    def moved(fused: bool, part: str) -> float:
        operators = (op for op in heads[fused].operators if op.name.startswith("loss"))
        works = (work for op in operators for work in getattr(op, part))
        return sum(work.bytes for work in works if isinstance(work, Elementwise))

    assert [moved(True, "forward"), moved(True, "input_gradient")] == [12 * elements, 8 * elements]
    assert [moved(False, "forward"), moved(False, "input_gradient")] == [38 * elements, 14 * elements]
    product = next(op for op in heads[False].operators if op.name == "logits").forward[-1]
    assert product.out_bytes == 2.0


def test_gradients_added_by_their_own_kernels() -> None:
    # fused: the product reads and writes the fp32 sum; else it writes 16 bits, and a kernel reads 2 + 4 and writes 4 bytes
    model = make(gated_mlp=False)
    found = {}
    for fused in (True, False):
        block = build(model, Shape(1, 128), numerics=Numerics(fused_accumulation=fused)).blocks[0]
        found[fused] = next(op for op in block.operators if op.name == "mlp.up").weight_gradient
    hidden = model.hidden_size
    assert [work.out_bytes for work in found[True] if isinstance(work, Matmul)] == [8.0]
    assert [work.out_bytes for work in found[False] if isinstance(work, Matmul)] == [2.0]
    added = [work for work in found[False] if isinstance(work, Elementwise) and work.written]
    assert added[0].bytes == 10 * hidden * model.intermediate_size


def test_most_bytes_alive_while_a_block_runs_by_hand() -> None:
    """x (8) -> a (4), b (2); c (16) from a; out (1) from b and c: the most is a, b and c, and x is alive with a and b."""
    sizes = {"x": 8.0, "a": 4.0, "b": 2.0, "c": 16.0, "out": 1.0}
    steps = [("first", ("x",), ("a", "b")), ("second", ("a",), ("c",)), ("third", ("b", "c"), ("out",))]
    block = Block(
        "by hand",
        tuple(Operator(name, (), inputs=inputs, outputs=outputs) for name, inputs, outputs in steps),
        {name: Tensor(name, size) for name, size in sizes.items()},
        input="x",
    )
    assert block.live_bytes() == 4.0 + 2.0 + 16.0
    assert replace(block, operators=block.operators[:1]).live_bytes() == 6.0
    assert replace(block, operators=block.operators[:1]).live_bytes(entering=True) == 14.0
