"""Optimizers: bytes of states and work of an update, against their papers."""

import numpy as np
import pytest

from simulator.cost import adam_bytes
from simulator.graph import Block, Elementwise, Matmul, Operator, Partition, Shape, build
from simulator.graph.graph import Matrix
from simulator.specs import Catalog, Model, TrainingScenario, TrainingStrategy
from simulator.training.optimizer_rules import Widths
from simulator.training.optimizers import (
    OPTIMIZERS,
    Shards,
    optimizer_faults,
    state_bytes,
    update_gathers,
    update_works,
)
from simulator.training.states import Elements, model_states
from simulator.training.weights import Weights, block_weights, stage_weights

SHAPE = Shape(1, 8)
WHOLE = Partition()


def llama(hidden: int, intermediate: int, layers: int, heads: int) -> Model:
    return Model(
        kind="model", name="llama", family="decoder", source="Zhao et al. 2024, table 5", vocab_size=32000,
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=intermediate,
        max_position_embeddings=1024, position="rope", normalization="rmsnorm", activation="silu", gated_mlp=True,
    )  # fmt: skip


def all_weights(model: Model, partition: Partition = WHOLE, **more: object) -> tuple[Weights, ...]:
    graph = build(model, SHAPE, partition)
    return stage_weights(graph, range(len(graph.layers)), model, embedding=True, head=True, **more)


def strategy(**fields: object) -> TrainingStrategy:
    return TrainingStrategy(**fields)


def scenario(**fields: object) -> TrainingScenario:
    return TrainingScenario(
        kind="training",
        hardware={"node": "x"},
        model="m",
        workload={"global_batch": 1, "sequence": 8},
        strategy=fields,
    )


def stream(works: tuple) -> Elementwise:
    assert isinstance(works[0], Elementwise)
    return works[0]


# --- weights


@pytest.mark.parametrize(
    "name",
    [
        "llama3-70b",
        "deepseek-v3",
        "falcon-40b",
        "bert-large",
        "t5-11b",
        "opt-350m",
        "gemma3-1b",
        "gpt-oss-20b",
    ],
)
@pytest.mark.parametrize("partition", [Partition(), Partition(8), Partition(2, 4)])
def test_weights_are_all_parameters(name, partition):
    model = Catalog().model(name)
    if model.moe is None and partition.expert != 1:
        return
    graph = build(model, Shape(1, 128, target=128), partition)
    weights = stage_weights(graph, range(len(graph.layers)), model, embedding=True, head=True)
    assert sum(float(w.elements) for w in weights) == pytest.approx(float(graph.parameters), rel=1e-12)
    experts = sum(float(block.expert_parameters) * count for block, count in graph.all_blocks)
    assert sum(float(w.elements) for w in weights if w.expert) == pytest.approx(experts, rel=1e-12)


def test_projections_that_share_a_product_are_matrices_of_their_own():
    model = Catalog().model("llama3-70b")
    found = {
        w.name: (w.rows, w.columns)
        for w in block_weights(build(model, SHAPE, Partition(16)).blocks[0], model)
    }
    # 64 query heads over 16 ranks; 8 key and value heads: one on each rank
    assert found["attention.qkv.q_proj"] == (4 * 128, 8192)
    assert found["attention.qkv.k_proj"] == found["attention.qkv.v_proj"] == (128, 8192)
    assert found["mlp.up.up_proj"] == found["mlp.up.gate_proj"] == (28672 / 16, 8192)
    assert found["attention.norm.vector"] == (8192, 1)


def test_stages_hold_their_layers():
    model = llama(512, 1376, 8, 8)
    graph = build(model, SHAPE)
    inner = stage_weights(graph, (2, 3, 4), model, embedding=False, head=False)
    assert {w.role for w in inner} == {"matrix", "vector"}
    assert sum(w.elements for w in inner) == 3 * graph.blocks[0].parameters


def test_weights_take_arrays():
    model = llama(512, 1376, 8, 8)
    degrees = np.array([1, 2, 4, 8])
    weights = all_weights(model, Partition(degrees))
    for index, degree in enumerate(degrees):
        single = all_weights(model, Partition(int(degree)))
        for one, other in zip(weights, single, strict=True):
            assert np.broadcast_to(one.elements, 4)[index] == pytest.approx(float(other.elements))
            assert np.broadcast_to(one.rows, 4)[index] == pytest.approx(float(other.rows))


def operator(**more: object) -> Block:
    matrix = Matrix("up_proj", 8, 16)
    product = Operator(
        "mlp.up", (Matmul(4, 16, 8),), parameters=16 * 8 + 16, matrices=(matrix,), biases=16, **more
    )
    return Block("layer", (product,), {})


def test_what_less_is_trained_of_than_a_bias_is_the_bias():
    plain = llama(512, 1376, 8, 8)
    matrix, bias = block_weights(operator(trainable=16), plain)
    assert (matrix.trained, bias.trained) == (0.0, 1.0)
    matrix, bias = block_weights(operator(trainable=64 + 16), plain)
    assert (matrix.updated, bias.updated) == (64.0, 16.0)
    assert all(w.trained == 0.0 for w in block_weights(operator(trainable=0), plain))


def test_weights_in_a_format_of_their_own():
    parts = block_weights(operator(stored=72.0, trainable=0), llama(512, 1376, 8, 8))
    assert sum(w.stored for w in parts) == 72.0
    states = model_states(strategy(), Elements.of(parts))
    assert (states.weights, states.gradients, states.optimizer) == (72.0, 0.0, 0.0)
    assert model_states(strategy(zero_stage=3), Elements.of(parts), Shards(4)).weights == 18.0


def test_a_frozen_reference_has_bytes_and_no_parameters():
    reference = Block(
        "layer", (Operator("reference.up", (), stored=256.0, detached=True), Operator("add", ())), {}
    )
    (weights,) = block_weights(reference, llama(512, 1376, 8, 8))
    assert (weights.elements, weights.stored) == (0, 256.0)
    assert model_states(strategy(optimizer="muon"), Elements.of((weights,))).total == 256.0


# --- states


@pytest.mark.parametrize(
    ("name", "each"), [("adam", 8.0), ("sgd", 4.0), ("muon", 4.0), ("adam-8bit", 2.0 * (1.0 + 4.0 / 2048))]
)
def test_states_of_a_matrix(name, each):
    weights = (Weights("w", 1024, 512, 3),)
    assert state_bytes(strategy(optimizer=name, master_weights=False), weights) == pytest.approx(
        1024 * 512 * 3 * each
    )
    with_master = state_bytes(strategy(optimizer=name), weights, Shards(4))
    assert with_master == pytest.approx(1024 * 512 * 3 * (each + 4.0) / 4)


def test_states_in_16_bits():
    # DeepSeek-V3 technical report, section 3.3.3: moments in bf16, master weights and gradients in fp32
    weights = (Weights("w", 1024, 512),)
    assert state_bytes(strategy(moment_precision="bf16"), weights) == 1024 * 512 * (2 + 2 + 4)


def test_adafactor_keeps_a_row_and_a_column():
    # Shazeer & Stern 2018, section 3: n + m values in the place of n m
    bare = strategy(optimizer="adafactor", master_weights=False)
    assert state_bytes(bare, (Weights("w", 65536, 1024, 2),)) == 2 * (65536 + 1024) * 4.0
    assert state_bytes(bare, (Weights("b", 1024, role="vector"),)) == 4096.0
    assert state_bytes(bare, (Weights("w", 65536, 1024),), Shards(8)) == (65536 / 8 + 1024) * 4.0


def test_8_bit_moments_leave_word_tables_and_short_tensors_in_32_bits():
    bare = strategy(optimizer="adam-8bit", master_weights=False)
    assert state_bytes(bare, (Weights("e", 32000, 64, role="embedding"),)) == 32000 * 64 * 8.0
    assert state_bytes(bare, (Weights("n", 4095, role="vector"),)) == 4095 * 8.0
    assert state_bytes(bare, (Weights("n", 4096, role="vector"),)) == 4096 * 2.0 * (1.0 + 4.0 / 2048)


BF16 = {"master_weights": False, "moment_precision": "bf16", "gradient_precision": "bf16"}


def test_adam_of_llama_1b():
    # Han et al. 2024 (SLTrain, arXiv:2406.02214), table 2: 8.04 GB of parameters and states in bf16
    weights = all_weights(llama(2048, 5461, 24, 32))
    size = 2.0 * sum(w.elements for w in weights) + state_bytes(strategy(**BF16), weights)
    assert size / 1e9 == pytest.approx(8.04, abs=0.01)


def test_galore_keeps_a_projection_and_two_small_moments():
    # Zhao et al. 2024, table 1: m r + 2 n r for a matrix of m <= n
    galore = strategy(optimizer="galore", optimizer_rank=128, **BF16)
    assert state_bytes(galore, (Weights("w", 512, 1376),)) == 2.0 * (512 * 128 + 2 * 1376 * 128)
    assert state_bytes(galore, (Weights("w", 1376, 512),)) == 2.0 * (512 * 128 + 2 * 1376 * 128)
    # no rank is larger than the matrix
    assert state_bytes(galore, (Weights("w", 64, 1376),)) == 2.0 * (64 * 64 + 2 * 1376 * 64)


def test_galore_of_llama_7b():
    # Zhao et al. 2024, abstract: optimizer states down by up to 65.5 % (7B, rank 1024: a quarter of 4096)
    weights = all_weights(Catalog().model("llama-7b"))
    full = state_bytes(strategy(**BF16), weights)
    assert 1.0 - state_bytes(strategy(optimizer="galore", **BF16), weights) / full == pytest.approx(
        0.655, abs=0.01
    )


@pytest.mark.parametrize(
    ("precision", "recipe", "each"),
    [("fp8", "tensor", 1.0), ("fp8", "mxfp8", 1.0 + 1 / 32), ("fp4", "tensor", 0.5 + 1 / 256)],
)
def test_narrow_parameters_are_matrices_alone(precision, recipe, each):
    widths = Widths.of(strategy(precision=precision, parameter_precision=precision, fp8_recipe=recipe))
    assert widths.stored(Weights("w", 64, 64)) == 2 * each
    assert widths.stored(Weights("n", 64, role="vector")) == 2.0
    assert widths.written(Weights("w", 64, 64)) == (4.0, 0.0)
    assert widths.written(Weights("n", 64, role="vector")) == (4.0, 2.0)


def test_wide_parameters_are_their_own_master():
    assert Widths.of(strategy(parameter_precision="fp32")).written(Weights("w", 8, 8)) == (4.0, 0.0)
    assert Widths.of(strategy()).written(Weights("w", 8, 8)) == (4.0, 2.0)
    assert Widths.of(strategy(master_weights=False)).written(Weights("w", 8, 8)) == (2.0, 0.0)
    assert Widths.of(strategy(precision="fp32")).weight == 4.0


# --- work


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize(("name", "moments"), [("adam", 4.0), ("sgd", 2.0)])
def test_element_wise_updates_stream_all_states(precision, name, moments):
    elements = 1024 * 1024.0
    works = update_works(strategy(optimizer=name, precision=precision), (Weights("w", 1024, 1024),))
    wide = precision == "fp32"
    read, written = adam_bytes(
        elements, gradient_bytes=4.0, weight_bytes=4.0 if wide else 2.0, state_bytes=moments, master_bytes=0.0 if wide else 4.0,
    )  # fmt: skip
    passes = elements * (12.0 if precision == "fp16" else 8.0)
    assert len(works) == 1
    assert stream(works).read == pytest.approx(read + passes, rel=1e-14)
    assert stream(works).written == pytest.approx(written + passes, rel=1e-14)


def test_a_shard_updates_its_share():
    weights = (Weights("w", 512, 512, 8), Weights("e", 512, 512, 4, expert=True))
    whole = stream(update_works(strategy(), weights[:1])).read
    experts = stream(update_works(strategy(), weights[1:])).read
    cut = stream(update_works(strategy(), weights, Shards(16, 2))).read
    assert cut == pytest.approx(whole / 16 + experts / 2)


def test_updates_layer_by_layer_make_no_passes_over_gradients():
    weights = (Weights("w", 512, 512),)
    kept = stream(update_works(strategy(), weights))
    fleeting = stream(update_works(strategy(optimizer_update="layer"), weights))
    assert kept.read - fleeting.read == kept.written - fleeting.written == 512 * 512 * 8.0


def test_8_bit_updates_stream_less():
    weights = (Weights("w", 4096, 4096),)
    saved = (
        stream(update_works(strategy(), weights)).bytes
        - stream(update_works(strategy(optimizer="adam-8bit"), weights)).bytes
    )
    assert saved == pytest.approx(4096**2 * 2 * 2 * (3.0 - 4.0 / 2048))


@pytest.mark.parametrize(("width", "batch", "overhead"), [(768, 524288, 0.007), (16384, 16e6, 0.005)])
def test_newton_schulz_overhead(width, batch, overhead):
    """Jordan et al. 2024, section Runtime analysis: T m / B of a step's FLOPs, 0.7 % for NanoGPT, 0.5 % for Llama 405B."""
    works = update_works(strategy(optimizer="muon"), (Weights("w", width, width),))
    products = sum(w.flops for w in works if isinstance(w, Matmul))
    assert products == 5 * 6 * width**3
    assert products / (6.0 * width**2 * batch) == pytest.approx(overhead, abs=0.0005)


def test_newton_schulz_works_on_the_shorter_side():
    wide = update_works(strategy(optimizer="muon"), (Weights("w", 256, 1024),))
    tall = update_works(strategy(optimizer="muon"), (Weights("w", 1024, 256),))
    assert wide == tall
    # X Xᵀ, A², B X (Jordan et al. 2024)
    assert sum(w.flops for w in wide[1:]) == 5 * (4 * 1024 * 256**2 + 2 * 256**3)


def test_muon_leaves_tables_and_vectors_to_adam():
    others = (
        Weights("e", 32000, 64, role="embedding"),
        Weights("h", 32000, 64, role="head"),
        Weights("n", 64, role="vector"),
    )
    assert update_works(strategy(optimizer="muon"), others) == update_works(strategy(), others)
    assert update_gathers(strategy(optimizer="muon"), others, Shards(8)).dense == 0.0


def test_muon_gathers_what_shards_share():
    muon = strategy(optimizer="muon")
    single = (Weights("w", 1024, 1024),)
    # one matrix over all ranks: every one gathers all of it (Liu et al. 2025: at most 2 B an element)
    assert update_gathers(muon, single, Shards(8)).dense == pytest.approx(2.0 * 1024**2)
    # many matrices on few ranks: some at the ends of shards
    many = (Weights("w", 1024, 1024, 1000),)
    gathered = update_gathers(muon, many, Shards(8))
    assert 0.0 < gathered.dense < 0.01 * 2.0 * 1000 * 1024**2
    assert gathered.tensor == gathered.expert == 0.0
    assert update_gathers(muon, many).dense == 0.0
    assert update_gathers(strategy(), many, Shards(8)).dense == 0.0


def test_muon_orthogonalises_whole_matrices_of_tensor_parallel_ranks():
    model = llama(512, 1376, 8, 8)
    muon = strategy(optimizer="muon")
    whole = build(model, SHAPE)
    cut = all_weights(model, Partition(4), whole=whole)
    uncut = all_weights(model)
    products = [sum(w.flops for w in update_works(muon, weights)[1:]) for weights in (cut, uncut)]
    assert products[0] == pytest.approx(products[1])
    matrices = sum(w.elements for w in uncut if w.role == "matrix")
    assert update_gathers(muon, cut).tensor == pytest.approx(2.0 * matrices)
    assert update_gathers(muon, uncut).tensor == 0.0


def test_galore_projects_there_and_back():
    galore = strategy(optimizer="galore", gradient_precision="bf16", optimizer_rank=64)
    works = update_works(galore, (Weights("w", 512, 2048, 3),))
    assert [(w.m, w.n, w.k, w.count) for w in works[1:]] == [(64, 2048, 512, 3), (512, 2048, 64, 3)]
    assert {w.format for w in works[1:]} == {"bf16"}
    wide = update_works(strategy(optimizer="galore"), (Weights("w", 512, 2048, 3),))
    assert {(w.format, w.left_bytes) for w in wide[1:]} == {("fp32", 4.0)}
    assert update_works(galore, (Weights("n", 64, role="vector"),))[1:] == ()


def test_galore_decomposition_is_spread_over_its_interval():
    galore = strategy(optimizer="galore", optimizer_rank=1, optimizer_update="layer")
    flops = stream(update_works(galore, (Weights("w", 512, 512),))).flops
    assert flops == pytest.approx(26 * 512**3 / 200 + 2 * 512**2 + 18 * 512)


def test_adafactor_reads_gradients_three_times():
    work = stream(
        update_works(strategy(optimizer="adafactor", optimizer_update="layer"), (Weights("w", 512, 512),))
    )
    assert work.read == 512 * 512 * (3 * 4.0 + 2 * 4.0)
    assert work.written == 512 * 512 * (4.0 + 2.0)
    vector = stream(
        update_works(
            strategy(optimizer="adafactor", optimizer_update="layer"), (Weights("b", 512, role="vector"),)
        )
    )
    assert vector.read == 512 * (3 * 4.0 + 2 * 4.0 + 4.0)


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_takes_arrays(name):
    rows = np.array([256, 512, 1024])
    shards = Shards(np.array([1, 2, 4])) if name != "galore" else Shards()
    together = (Weights("w", rows, 512, 2), Weights("b", rows, role="vector"))
    for index in range(3):
        alone = (Weights("w", int(rows[index]), 512, 2), Weights("b", int(rows[index]), role="vector"))
        single = Shards(int(2**index)) if name != "galore" else Shards()
        option = strategy(optimizer=name)
        assert np.broadcast_to(state_bytes(option, together, shards), 3)[index] == pytest.approx(
            state_bytes(option, alone, single)
        )
        for many, one in zip(
            update_works(option, together, shards), update_works(option, alone, single), strict=True
        ):
            assert np.broadcast_to(many.bytes, 3)[index] == pytest.approx(one.bytes)
            assert np.broadcast_to(many.flops, 3)[index] == pytest.approx(one.flops)


# --- rules


@pytest.mark.parametrize(
    ("fields", "micro_batches", "word"),
    [
        ({"optimizer_rank": 4}, 1, "strategy.optimizer_rank"),
        ({"optimizer": "adam-8bit", "moment_precision": "bf16"}, 1, "strategy.moment_precision"),
        ({"optimizer": "galore", "zero_stage": 1}, 1, "zero_stage 1 cuts"),
        ({"optimizer_update": "layer"}, 2, "2 micro-batches"),
        ({"optimizer_update": "layer", "precision": "fp16"}, 1, "loss scale"),
        ({"precision": "fp32", "parameter_precision": "bf16"}, 1, "narrower"),
        ({"parameter_precision": "fp8"}, 1, "fp8 needs precision fp8"),
        ({"precision": "fp16", "parameter_precision": "bf16"}, 1, "differ in range"),
        (
            {"precision": "fp8", "parameter_precision": "fp8", "master_weights": False},
            1,
            "strategy.master_weights",
        ),
    ],
)
def test_rules(fields, micro_batches, word):
    (fault,) = optimizer_faults(scenario(**fields), micro_batches)
    assert word in fault


@pytest.mark.parametrize(
    "fields",
    [
        {}, {"optimizer": "galore", "optimizer_rank": 8}, {"optimizer_update": "layer"},
        {"precision": "fp8", "parameter_precision": "fp8"}, {"precision": "fp32"}, {"parameter_precision": "fp32"},
    ],
)  # fmt: skip
def test_legal(fields):
    assert optimizer_faults(scenario(**fields)) == []
