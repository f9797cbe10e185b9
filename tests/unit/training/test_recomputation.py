"""Which operators run again, and what is kept then."""

import pytest

from simulator.graph import Block, Numerics, Shape, build
from simulator.specs import Catalog, MemroofError, TrainingStrategy
from simulator.training.recomputation import check_operators, recomputed


@pytest.fixture(scope="module")
def layer() -> Block:
    return build(Catalog(environment={}).model("llama3-8b"), Shape(1, 1024)).blocks[0]


def _strategy(**options: object) -> TrainingStrategy:
    return TrainingStrategy.model_validate(options)


def test_strategies_by_name(layer: Block) -> None:
    assert recomputed(layer, _strategy()) == frozenset()
    assert recomputed(layer, _strategy(recompute="selective")) == {"attention.core"}
    assert recomputed(layer, _strategy(recompute="full")) == {op.name for op in layer.operators}
    named = _strategy(recompute="selective", recompute_operators=["mlp.norm", "moe.up"])
    assert recomputed(layer, named) == {"attention.core", "mlp.norm"}


def test_selective_keeps_the_output_of_attention(layer: Block) -> None:
    kept = layer.saved(recomputed(layer, _strategy(recompute="selective")))
    assert "context" in kept
    assert "logsumexp" not in kept
    assert layer.saved("selective") == kept


def test_full_keeps_the_input_alone(layer: Block) -> None:
    assert list(layer.saved(recomputed(layer, _strategy(recompute="full")))) == ["input"]


def test_output_of_a_repeated_norm_is_dropped_although_others_need_it(layer: Block) -> None:
    none, norm = layer.saved(), layer.saved(frozenset({"mlp.norm"}))
    assert set(none) - set(norm) == {"mlp.norm.out"}


def test_operators_in_place_are_dropped_with_all_their_writers(layer: Block) -> None:
    assert "qkv" in layer.saved(frozenset({"attention.rotary"}))
    assert "qkv" not in layer.saved(frozenset({"attention.rotary", "attention.qkv"}))


def test_every_second_product_as_torchtitan_keeps_them() -> None:
    # selective checkpoints by operator: queries, values, attention, gate and the last product are kept beside the input:
    # 1 + 1 + 1/4 + 1 + 3.5 + 1 activations of 4,096, and the statistics of attention
    again = {
        "attention.norm", "attention.qkv.k_proj", "attention.rotary", "attention.output", "attention.residual", "mlp.norm",
        "mlp.up.up_proj", "mlp.activation", "mlp.residual",
    }  # fmt: skip
    model = Catalog(environment={}).model("llama3.1-8b")
    block = build(model, Shape(2, 8192), joined_projections=False).blocks[0]
    unit, statistics = 2 * 8192 * 4096 * 2, 2 * 8192 * 32 * 4
    assert block.saved_bytes(frozenset(again)) == 7.75 * unit + statistics


def test_quantised_copies_go_with_what_they_are_cast_from() -> None:
    model = Catalog(environment={}).model("llama3.1-8b")
    numerics = Numerics(compute="fp8", scaling="tensor")
    block = build(model, Shape(1, 1024), numerics=numerics).blocks[0]
    assert "mlp.up.input" in block.saved()
    kept = block.saved(frozenset({"mlp.norm"}))
    assert "mlp.up.input" not in kept
    assert "mlp.norm.out" not in kept


def test_unknown_operators_are_refused(layer: Block) -> None:
    check_operators([layer], ["mlp.norm"])
    with pytest.raises(MemroofError, match=r"no layer has an operator mlp\.nrom; did you mean mlp\.norm"):
        check_operators([layer], ["mlp.nrom"])
    with pytest.raises(MemroofError, match=r"there are attention\.core"):
        check_operators([layer], ["zzz"])
