"""Trainable subsets: published counts of elements, bytes that methods keep, and where the backward pass ends."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from simulator.graph import ModelGraph, Numerics, Partition, Shape, build
from simulator.graph.low_rank import four_bit_bytes
from simulator.graph.trainable import subset
from simulator.specs import Catalog, MemroofError, Model
from simulator.specs.trainable_spec import Trainable

WHOLE, TOKENS = Partition(), Shape(1, 512)
BACKWARD = ("input_gradient", "weight_gradient")
METHODS = (
    {"method": "full"},
    {"method": "lora", "rank": 16},
    {"method": "lora", "rank": 16, "dropout": 0.1, "updated_layers": 8},
    {"method": "qlora", "rank": 16},
    {"method": "adapter", "width": 64},
    {"method": "adapter", "width": 64, "experts": 8, "quantised": True},
    {"method": "bias", "residual_width": 128},
    {"method": "layers", "updated_layers": 4},
    {"method": "low-rank-sparse", "rank": 128},
    {"method": "forward-only"},
    {"method": "reversible"},
    {"method": "adjoint", "evaluations": 3},
)


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return Catalog(environment={})


def trained(
    model: Model, partition: Partition = WHOLE, shape: Shape = TOKENS, **method: object
) -> tuple[ModelGraph, ModelGraph]:
    graph = build(model, shape, partition)
    return graph, subset(graph, TypeAdapter(Trainable).validate_python(method), partition)


def saved(graph: ModelGraph) -> float:
    return sum(float(block.saved_bytes("none")) * count for block, count in graph.all_blocks)


# --- LoRA


@pytest.mark.parametrize(
    ("model", "rank", "elements"),
    [
        # Hu et al. 2021, table 4: 4.7 M and 37.7 M trained, on queries and values of GPT-3
        ("gpt3-175b", 1, 4_718_592),
        ("gpt3-175b", 8, 37_748_736),
        # what PEFT prints for alpaca-lora's configuration of LLaMA-7B
        ("llama-7b", 8, 4_194_304),
    ],
)
def test_lora_on_queries_and_values(catalog: Catalog, model: str, rank: int, elements: int) -> None:
    before, after = trained(catalog.model(model), method="lora", rank=rank, targets=("q_proj", "v_proj"))
    assert after.trainable_parameters == elements
    assert after.parameters == before.parameters + elements


def test_lora_all_parameters_as_peft_prints_them(catalog: Catalog) -> None:
    """Alpaca-lora: trainable params 4194304 of all params 6742609920."""
    _, after = trained(catalog.model("llama-7b"), method="lora", rank=8, targets=("q_proj", "v_proj"))
    assert after.parameters == 6_742_609_920


def test_lora_on_joined_products(catalog: Catalog) -> None:
    """Megatron's adapter of a joined product has one A for queries, keys and values: 80·16·(2·8192 + 10240 + 8192)."""
    _, after = trained(
        catalog.model("llama2-70b"), method="lora", rank=16, targets=("attention.qkv", "attention.output")
    )
    assert after.trainable_parameters == 80 * 16 * (8192 + 8192 + 2 * 1024 + 2 * 8192)


def test_lora_adapters_are_cut(catalog: Catalog) -> None:
    model = catalog.model("llama3.1-8b")
    _, whole = trained(model, method="lora", rank=16)
    _, cut = trained(model, Partition(4, 1, True), method="lora", rank=16)
    assert cut.trainable_parameters == pytest.approx(whole.trainable_parameters / 4)
    kinds = {
        work.kind
        for op in cut.blocks[0].operators
        if "lora" in op.name
        for work in op.forward
        if hasattr(work, "kind")
    }
    assert kinds == {"all-gather", "all-reduce"}


def test_lora_flops(catalog: Catalog) -> None:
    """Frozen products have no weight gradient: the backward pass costs what the forward pass does, plus attention's."""
    before, after = trained(catalog.model("llama3.1-8b"), method="lora", rank=8)
    head = sum(w.flops for w in before.head.works("weight_gradient"))
    linear = (
        sum(w.flops for b, n in before.all_blocks for w in b.works("weight_gradient") for _ in range(n))
        - head
    )
    assert after.flops(BACKWARD) < before.flops(BACKWARD) - 0.95 * linear
    assert after.flops() == pytest.approx(before.flops(), rel=0.01)


def test_lora_stops_at_the_first_adapter(catalog: Catalog) -> None:
    """Below the lowest adapter nothing needs a gradient: not the embedding, not the first norm, not the first product."""
    _, after = trained(catalog.model("llama3.1-8b"), method="lora", rank=8)
    first, second = (after.blocks[after.layers[i]] for i in (0, 1))
    by_name = {op.name: op for op in first.operators}
    assert not after.embedding.trains
    assert by_name["attention.norm"].backward == by_name["attention.norm"].saves == ()
    assert by_name["attention.qkv"].backward == ()
    assert by_name["attention.qkv.q_proj.lora_a"].input_gradient == ()
    assert by_name["attention.qkv.q_proj.lora_a"].weight_gradient
    assert all(op.input_gradient for op in second.operators if op.name == "attention.qkv")
    assert first.saved_bytes("none") < second.saved_bytes("none")


def test_lora_of_experts(catalog: Catalog) -> None:
    model = catalog.model("mixtral-8x7b")
    _, after = trained(model, method="lora", rank=4, targets=("moe",))
    h, i = model.hidden_size, 14336
    assert after.trainable_parameters == 32 * 8 * 4 * ((h + 2 * i) + (i + h))
    assert after.blocks[-1].trainable_expert_parameters == after.blocks[-1].trainable_parameters


def test_lora_dropout_keeps_its_mask(catalog: Catalog) -> None:
    model, tokens = catalog.model("llama-7b"), 512
    _, plain = trained(model, method="lora", rank=8, targets=("q_proj",))
    _, dropped = trained(model, method="lora", rank=8, targets=("q_proj",), dropout=0.05)
    # the result in the place of the input, which nothing else keeps, and a mask where the input needs a gradient
    assert saved(dropped) - saved(plain) == (model.num_hidden_layers - 1) * tokens * model.hidden_size


# --- QLoRA


def test_qlora_constants() -> None:
    """Dettmers et al. 2023, section 3: scales cost 0.5 bit a weight, 0.127 with double quantisation."""
    assert (four_bit_bytes(64, double=False) - 0.5) * 8 == 0.5
    assert (four_bit_bytes(64, double=True) - 0.5) * 8 == pytest.approx(0.127, abs=5e-4)


def test_qlora_65b_fits_48_gb(catalog: Catalog) -> None:
    """Abstract: from more than 780 GB (2 + 2 + 8 B a parameter) to less than 48 GB, all linear layers with rank 64."""
    before, after = trained(catalog.model("llama-65b"), method="qlora", rank=64)
    assert 780e9 < before.parameters * 12 < 790e9
    assert 40e9 < after.weight_bytes + after.trainable_parameters * (2 + 8) < 48e9
    assert trained(catalog.model("llama-7b"), method="qlora", rank=64)[1].trainable_parameters == 159_907_840


def test_qlora_unpacks_before_every_product(catalog: Catalog) -> None:
    _, lora = trained(catalog.model("llama-7b"), method="lora", rank=64)
    _, qlora = trained(catalog.model("llama-7b"), method="qlora", rank=64)
    block, packed = lora.blocks[1], qlora.blocks[1]
    # forward and input gradient of 4 operators
    for part in ("forward", "input_gradient"):
        assert len(packed.works(part)) - len(block.works(part)) == 4
    assert saved(lora) == saved(qlora)
    formed = {op.name: op.formed for op in packed.operators if op.formed}
    assert formed["mlp.up"] == 4096 * 11008 * 2  # gate and up one after the other
    assert len(formed) == 4


# --- adapters, biases


def test_pesc_counts(catalog: Catalog) -> None:
    """Camelidae-8x34B (Wu et al. 2024, repository): 35 B activated, 38 B in all; Yi-34B with 8 adapters of 512, 2 a token."""
    before, after = trained(catalog.model("yi-34b"), method="adapter", width=512, experts=8, quantised=True)
    adapter = 60 * 2 * 7168 * 512
    assert after.trainable_parameters == 8 * adapter + 60 * 8 * 7168
    assert round(after.parameters / 1e9) == 38
    assert round((before.parameters + 2 * adapter) / 1e9) == 35


def test_bottlenecks_of_bert(catalog: Catalog) -> None:
    """Houlsby et al. 2019, section 2.1: 2md + d + m elements an adapter, two a layer."""
    _, after = trained(catalog.model("bert-large"), method="adapter", width=64)
    assert after.trainable_parameters == 24 * 2 * (2 * 64 * 1024 + 1024 + 64)


def test_bitfit_counts(catalog: Catalog) -> None:
    """Zaken et al. 2022, table 1: biases are 0.08 % of BERT-large: 24·11 h and the embedding norm's h."""
    _, after = trained(catalog.model("bert-large"), method="bias")
    assert after.trainable_parameters == (24 * 11 + 1) * 1024
    assert after.trainable_parameters / after.parameters == pytest.approx(0.0008, abs=5e-5)


def test_biases_need_no_activation_of_linear_layers(catalog: Catalog) -> None:
    _, after = trained(catalog.model("gpt3-1.3b"), method="bias")
    for op in after.blocks[0].operators:
        if op.matrices:
            assert op.saves == ()
            assert [work.written for work in op.weight_gradient] == [0.0]


def test_lite_residual_beside_every_sublayer(catalog: Catalog) -> None:
    model, width, pool = catalog.model("llama-7b"), 256, 4
    before, after = trained(model, method="bias", residual_width=width, residual_pool=pool)
    h, tokens = model.hidden_size, 512
    assert after.trainable_parameters == 32 * 2 * (2 * h * width + h + width)
    block = after.blocks[after.layers[1]]
    # pooled input and both sides of the activation, a quarter of the positions each
    kept = 2 * (h + 2 * width) * tokens / pool * 2
    lite = sum(block.tensors[name].size for op in block.operators if ".lite." in op.name for name in op.saves)
    assert lite == kept
    assert saved(after) < saved(before)


def test_a_trained_head(catalog: Catalog) -> None:
    model = catalog.model("bert-large")
    _, frozen = trained(model, method="bias")
    _, head = trained(model, method="bias", head=True)
    assert head.head.trainable_parameters == build(model, Shape(1, 512)).head.parameters
    assert head.trainable_parameters - frozen.trainable_parameters == head.head.parameters


# --- some layers, none, all


def test_sampled_layers_stand_where_order_statistics_expect_them(catalog: Catalog) -> None:
    """Of 3 layers out of 31 the i-th is number 8·i in the mean; below the lowest no backward pass runs."""
    model = catalog.model("llama-7b").model_copy(update={"num_hidden_layers": 31})
    before, after = trained(model, method="layers", updated_layers=3)
    active = [i for i in range(31) if after.blocks[after.layers[i]].trainable_parameters]
    assert active == [7, 15, 23]
    assert not any(after.blocks[after.layers[i]].trains for i in range(7))
    assert all(after.blocks[after.layers[i]].trains for i in range(7, 31))
    assert after.trainable_parameters == 3 * before.blocks[0].parameters


def test_lisa_trains_the_ends_too(catalog: Catalog) -> None:
    before, after = trained(catalog.model("llama-7b"), method="layers", updated_layers=2, ends=True)
    ends = before.embedding.parameters + before.head.parameters
    assert after.trainable_parameters == ends + 2 * before.blocks[0].parameters
    assert all(after.blocks[kind].trains for kind in after.layers)


def test_ist_trains_fewer_adapters(catalog: Catalog) -> None:
    model = catalog.model("llama-7b")
    _, all_layers = trained(model, method="lora", rank=32)
    _, some = trained(model, method="lora", rank=32, updated_layers=8)
    assert some.trainable_parameters == all_layers.trainable_parameters / 4
    assert saved(some) < saved(all_layers)
    assert some.flops() == all_layers.flops()


def test_more_layers_than_there_are(catalog: Catalog) -> None:
    with pytest.raises(MemroofError, match="exceeds llama-7b's 32 layers"):
        trained(catalog.model("llama-7b"), method="layers", updated_layers=33)


def _llama_1b() -> Model:
    """LLaMA 1B of GaLore's and SLTrain's experiments."""
    return Model(
        kind="model", name="llama-1b", family="decoder", source="Zhao et al. 2024 (GaLore), table 5", vocab_size=32000,
        hidden_size=2048, num_hidden_layers=24, num_attention_heads=32, intermediate_size=5461, position="rope",
        max_position_embeddings=1024, normalization="rmsnorm", activation="silu", gated_mlp=True,
    )  # fmt: skip


def test_sltrain_table_2() -> None:
    """LLaMA 1B, rank 512, density 0.03: 4.16 GB of bf16 weights, Adam moments and indices against 8.04 GB in full."""
    before, after = trained(_llama_1b(), method="low-rank-sparse", rank=512, density=0.03)
    moments = 2 * 2.0
    assert before.parameters * (2 + moments) / 1e9 == pytest.approx(8.04, abs=0.01)
    assert (after.weight_bytes + after.trainable_parameters * moments) / 1e9 == pytest.approx(4.16, abs=0.01)
    low_rank = trained(_llama_1b(), method="low-rank-sparse", rank=512, density=1e-9)[1]
    assert low_rank.parameters * (2 + moments) / 1e9 == pytest.approx(3.66, abs=0.01)


def test_sltrain_forms_its_weights_forward_and_backward() -> None:
    before, after = trained(_llama_1b(), method="low-rank-sparse", rank=512, targets=("mlp.down",))
    formed = 24 * 2 * 2048 * 5461 * 512
    assert after.flops() - before.flops() == pytest.approx(formed, rel=1e-2)
    weight = after.flops(("weight_gradient",)) - before.flops(("weight_gradient",))
    assert weight == pytest.approx(2 * formed, rel=1e-2)


def test_forward_only_keeps_nothing(catalog: Catalog) -> None:
    before, after = trained(catalog.model("opt-13b"), method="forward-only")
    assert after.flops() == 2 * before.flops()
    assert after.flops(BACKWARD) == saved(after) == after.trainable_parameters == 0
    # four passes over all weights, read and written
    walked = sum(w.bytes for block, n in after.all_blocks for w in block.step_works() for _ in range(n))
    assert walked == 8 * after.weight_bytes
    _, black_box = trained(catalog.model("opt-13b"), method="forward-only", perturbed="input")
    assert not any(block.step_works() for block, _ in black_box.all_blocks)


def test_reversible_layers_keep_nothing(catalog: Catalog) -> None:
    before, after = trained(catalog.model("llama-7b"), method="reversible")
    block = after.blocks[0]
    assert block.saved_bytes("none") == block.saved_bytes("full") == 0
    assert block.recomputed("none") == block.operators
    assert after.flops(BACKWARD) == before.flops(BACKWARD)


def test_adjoint_needs_no_more_memory_for_more_evaluations(catalog: Catalog) -> None:
    model = catalog.model("llama-7b")
    once, adjoint = trained(model, method="adjoint", evaluations=5)
    _, through = trained(model, method="adjoint", evaluations=5, gradient="through-solver")
    assert adjoint.blocks[0].saved_bytes("none") == 0
    assert through.blocks[0].saved_bytes("none") == pytest.approx(
        5 * once.blocks[0].saved_bytes("none"), rel=1e-3
    )
    assert through.flops() == adjoint.flops()
    assert through.parameters == adjoint.parameters == once.parameters
    assert through.blocks[0].digraph().number_of_nodes() == 5 * len(once.blocks[0].operators)


@pytest.mark.parametrize("method", [{"method": "full"}, {"method": "lora", "rank": 16}])
def test_dpo_reference(catalog: Catalog, method: dict[str, object]) -> None:
    """Another forward pass; another copy of the weights only where the policy changes its own (Rafailov et al. 2023)."""
    model = catalog.model("llama-7b")
    before, policy = trained(model, **method)
    _, pair = trained(model, **method, reference=True)
    assert pair.flops() == pytest.approx(policy.flops() + before.flops())
    assert pair.flops(BACKWARD) == policy.flops(BACKWARD)
    assert saved(pair) == saved(policy)
    copied = before.weight_bytes if method["method"] == "full" else 0
    assert pair.weight_bytes == policy.weight_bytes + copied
    assert not any(op.detached for op in pair.blocks[0].recomputed("full"))


# --- laws


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m["method"])
@pytest.mark.parametrize("name", ["llama3.1-8b", "gpt3-1.3b"])
def test_every_method(catalog: Catalog, method: dict[str, object], name: str) -> None:
    model = catalog.model(name).model_copy(update={"num_hidden_layers": 16})
    before, after = trained(model, Partition(2, 1, True), **method)
    assert len(after.layers) == len(before.layers)
    assert 0 <= after.trainable_parameters <= after.parameters
    assert after.flops() >= before.flops()
    for block in (after.embedding, *after.blocks, after.head):
        names = [op.name for op in block.operators]
        assert len(set(names)) == len(names)
        written = {block.input}
        for op in block.operators:
            assert set(op.inputs) <= written, op.name
            written |= set(op.outputs)
            assert set(op.saves) <= set(block.tensors)
    assert saved(replace(after, blocks=tuple(replace(b, reversible=False) for b in after.blocks))) > 0 or (
        method["method"] == "forward-only"
    )


@given(
    method=st.sampled_from(METHODS),
    batch=st.integers(1, 4),
    tensor=st.sampled_from([1, 2, 4]),
    scattered=st.booleans(),
)
def test_arrays_equal_scalars(method: dict[str, object], batch: int, tensor: int, scattered: bool) -> None:
    model = _llama_1b().model_copy(update={"num_hidden_layers": 8, "intermediate_size": 5504})
    batches, degrees = np.array([batch, 8.0]), np.array([tensor, 2.0])
    _, swept = trained(model, Partition(degrees, 1, scattered), Shape(batches, 256), **method)
    _, single = trained(model, Partition(tensor, 1, scattered), Shape(batch, 256), **method)
    for part in (("forward",), BACKWARD):
        assert np.broadcast_to(swept.flops(part), 2)[0] == pytest.approx(single.flops(part))
    assert np.broadcast_to(swept.trainable_parameters, 2)[0] == pytest.approx(single.trainable_parameters)
    assert np.broadcast_to(swept.weight_bytes, 2)[0] == pytest.approx(single.weight_bytes)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"method": "lora", "rank": 8, "targets": ("q_prj",)}, "did you mean 'q_proj'"),
        ({"method": "lora", "rank": 8, "targets": ("q_proj", "k_prj")}, "did you mean 'k_proj'"),
    ],
)
def test_targets_that_name_nothing(catalog: Catalog, method: dict[str, object], message: str) -> None:
    with pytest.raises(MemroofError, match=message):
        trained(catalog.model("llama-7b"), **method)


def test_what_does_not_go_together(catalog: Catalog) -> None:
    fp8 = build(catalog.model("llama-7b"), Shape(1, 512), Partition(), Numerics("fp8", scaling="tensor"))
    with pytest.raises(MemroofError, match="precision must be bf16"):
        subset(fp8, TypeAdapter(Trainable).validate_python({"method": "qlora", "rank": 8}))
    with pytest.raises(MemroofError, match="has experts already"):
        trained(catalog.model("mixtral-8x7b"), method="adapter", width=8, experts=4)


def test_none_changes_nothing(catalog: Catalog) -> None:
    graph = build(catalog.model("llama-7b"), Shape(1, 512))
    assert subset(graph, None) is graph
    assert trained(catalog.model("llama-7b"), method="full")[1] == graph
