"""Model states under sharding, against ZeRO's figure 1 and published checkpoints."""

import numpy as np
import pytest

from simulator.graph import Shape, build
from simulator.specs import Catalog, TrainingStrategy
from simulator.training.optimizers import Shards
from simulator.training.states import Elements, checkpoint_bytes, graph_parameters, model_states, sharded
from simulator.training.weights import Weights, stage_weights

MIXED = {"precision": "fp16", "gradient_precision": "fp16"}


def strategy(**fields: object) -> TrainingStrategy:
    return TrainingStrategy(**fields)


@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120.0), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_zero_figure_1(stage, gigabytes):
    # Rajbhandari et al. 2020, figure 1: 7.5B parameters on 64 ranks, K = 12
    states = model_states(strategy(zero_stage=stage, **MIXED), Elements(7.5e9), Shards(64))
    assert states.total / 1e9 == pytest.approx(gigabytes, abs=0.05)


@pytest.mark.parametrize(("ranks", "column"), [(1, 120.0), (4, 52.5), (16, 35.6), (256, 30.4), (1024, 30.1)])
def test_zero_table_1(ranks, column):
    # Rajbhandari et al. 2020, table 1: P_os of 7.5B parameters by data-parallel degree
    states = model_states(strategy(zero_stage=1, **MIXED), Elements(7.5e9), Shards(ranks))
    assert states.total / 1e9 == pytest.approx(column, abs=0.1)


def test_megatron_keeps_18_bytes():
    states = model_states(strategy(), Elements(1e9))
    assert (states.weights, states.gradients, states.optimizer) == (2e9, 4e9, 12e9)


def test_fp32_parameters_are_their_own_master():
    states = model_states(strategy(parameter_precision="fp32", zero_stage=3), Elements(1e9), Shards(8))
    assert states.total == (4 + 4 + 8) * 1e9 / 8


def test_16_bits_alone():
    pure = strategy(master_weights=False, gradient_precision="bf16", moment_precision="bf16")
    assert model_states(pure, Elements(1e9)).total == 8e9


def test_experts_are_cut_over_fewer_replicas():
    states = model_states(strategy(zero_stage=1), Elements(1e9, 8e9), Shards(64, 8))
    assert states.optimizer == pytest.approx((1e9 / 64 + 8e9 / 8) * 12)
    assert states.weights == 9e9 * 2


def test_frozen_parameters_have_weights_alone():
    states = model_states(strategy(), Elements(7e9, trained_dense=2e7))
    assert (states.weights, states.gradients, states.optimizer) == (14e9, 8e7, pytest.approx(24e7))


def test_layer_updates_keep_the_gradients_of_one_layer():
    states = model_states(strategy(optimizer_update="layer"), Elements(7e9, largest_layer=2e8))
    assert states.gradients == 8e8


def test_uneven_shards_hold_all_between_them():
    shares = np.array([0.5, 0.25, 0.125, 0.125])
    states = model_states(strategy(zero_stage=2), Elements(1e9), Shards(1.0 / shares))
    np.testing.assert_allclose(states.optimizer, shares * 12e9)
    assert np.sum(states.gradients) == pytest.approx(4e9)


def test_rows_are_cut_whole():
    # 1,024 key rows over 768 ranks: two on the first ranks, none on the last
    assert sharded(Weights("k", 1024, 8192), 768) == 2 * 8192
    assert sharded(Weights("q", 8192, 8192, 80), 512) == 80 * 16 * 8192
    assert sharded(Weights("e", 2048, 512, 4, expert=True), 16) == 2048 * 4 / 16 * 512
    padded = Elements.of((Weights("k", 1024, 8192),))
    states = model_states(strategy(zero_stage=3), padded, Shards(768))
    assert states.weights == 2 * 2 * 8192


def test_optimizers_that_look_at_shapes_need_them():
    with pytest.raises(ValueError, match="muon needs the shapes"):
        model_states(strategy(optimizer="muon"), Elements(1e9))


def test_counts_and_shapes_agree():
    model = Catalog().model("mixtral-8x7b")
    graph = build(model, Shape(1, 8))
    layers = tuple(range(len(graph.layers)))
    weights = stage_weights(graph, layers, model, embedding=True, head=True)
    total, expert = graph_parameters(graph, layers, embedding=True, head=True)
    shaped, counted = Elements.of(weights), Elements(total - expert, expert)
    assert (shaped.dense, shaped.expert) == pytest.approx((counted.dense, counted.expert))
    for stage in range(3):
        option = strategy(zero_stage=stage)
        assert model_states(option, shaped, Shards(8, 2)).total == pytest.approx(
            model_states(option, counted, Shards(8, 2)).total
        )


def test_sweeps_take_arrays():
    elements, ranks = np.array([1e9, 2e9, 4e9]), np.array([8, 16, 32])
    together = model_states(strategy(zero_stage=2), Elements(elements), Shards(ranks)).total
    alone = [
        model_states(strategy(zero_stage=2), Elements(float(e)), Shards(int(r))).total
        for e, r in zip(elements, ranks, strict=True)
    ]
    np.testing.assert_allclose(together, alone)


def test_checkpoint_of_bloom():
    # BigScience, model card of BLOOM-176B: 329 GB of bf16 weights, 2.3 TB with optimizer states (binary prefixes)
    parameters = Catalog().model("bloom-176b").parameters
    tensor, stages = 4, 12
    share = Elements(parameters.value / tensor / stages)
    size = checkpoint_bytes(strategy(), [share] * stages, tensor)
    assert size / 2**40 == pytest.approx(2.3, abs=0.06)
    weights = checkpoint_bytes(strategy(optimizer="sgd", master_weights=False), [share] * stages, tensor)
    assert weights == pytest.approx(parameters.value * 6.0)


def test_a_checkpoint_has_every_expert_once():
    size = checkpoint_bytes(strategy(), [Elements(1e6, 4e6)], tensor=2, experts=8)
    assert size == pytest.approx((2 * 1e6 + 8 * 4e6) * 14)
