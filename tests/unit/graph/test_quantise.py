"""Quantised training: bytes and kernels of casts, what is kept, what stays in 16 bits."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pydantic import TypeAdapter

from simulator.cost import CostModel
from simulator.graph import Collective, Elementwise, Matmul, ModelGraph, Numerics, Partition, Shape, build
from simulator.graph.quantise import RECIPES, cast, gathered_bytes, stored_weights
from simulator.graph.trainable import subset
from simulator.specs import Catalog
from simulator.specs.scenario_base import HardwareChoice
from simulator.specs.trainable_spec import Trainable

TOKENS = 8192
FORMATS = {"delayed": "fp8", "tensor": "fp8", "block": "fp8", "mxfp8": "fp8", "nvfp4": "fp4"}
PLAIN = Partition()


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return Catalog(environment={})


def graph(
    catalog: Catalog, model: str, scaling: str, partition: Partition = PLAIN, *, narrow: bool = False
) -> ModelGraph:
    numerics = Numerics.of(FORMATS.get(scaling, "bf16"), "bf16")
    numerics = replace(numerics, scaling=scaling, narrow_parameters=narrow)
    return build(catalog.model(model), Shape(1, TOKENS), partition, numerics)


def casts(works: tuple[object, ...]) -> list[Elementwise]:
    return [work for work in works if isinstance(work, Elementwise)]


@pytest.mark.parametrize(
    ("scaling", "moved"),
    [
        ("delayed", 2 + 2 * 1),
        ("tensor", 2 + 2 + 2 * 1),  # the maximum is looked for first
        ("block", 2 + 2 * (1 + 4 / 128)),
        ("mxfp8", 2 + 2 * (1 + 1 / 32)),
        ("nvfp4", 2 + 2 + 2 * (1 / 2 + 1 / 16)),
    ],
)
def test_bytes_of_a_cast(scaling: str, moved: float) -> None:
    kernels = cast(Numerics(scaling=scaling), 1000)
    assert sum(kernel.bytes for kernel in kernels) == pytest.approx(1000 * moved)


@pytest.mark.parametrize(
    ("scaling", "kept"), [("delayed", 1), ("tensor", 1), ("block", 2), ("mxfp8", 2), ("nvfp4", 2)]
)
def test_units_that_read_any_order(scaling: str, kept: int) -> None:
    """A tensor with one scale needs no transposed copy on Blackwell; blocks are scaled along one direction."""
    numerics = Numerics(scaling=scaling, any_order=True)
    assert cast(numerics, 1000)[-1].written == pytest.approx(kept * 1000 * RECIPES[scaling].activation)
    assert stored_weights(numerics, 1000) == pytest.approx(1000 * (2 + kept * RECIPES[scaling].weight))


def test_nothing_to_cast() -> None:
    assert cast(Numerics(), 1000) == ()
    assert stored_weights(Numerics(), 1000) is None


@pytest.mark.parametrize("scaling", RECIPES)
def test_linear_inputs_are_kept_narrow(catalog: Catalog, scaling: str) -> None:
    """A layer of Llama keeps the input of its four linear layers in the narrow format instead of 16 bits.

    Attention keeps its output besides, since its own backward pass needs it.
    """
    model = catalog.model("llama3.1-8b")
    h, i = model.hidden_size, model.intermediate_size
    before = graph(catalog, "llama3.1-8b", "none").blocks[0].saved_bytes("none")
    after = graph(catalog, "llama3.1-8b", scaling).blocks[0].saved_bytes("none")
    inputs = TOKENS * (h + h + h + i)
    context = TOKENS * h
    assert after == pytest.approx(before - 2 * (inputs - context) + RECIPES[scaling].activation * inputs)


@pytest.mark.parametrize("scaling", RECIPES)
def test_weights_through_a_step(catalog: Catalog, scaling: str) -> None:
    """16-bit parameters and both copies; the copies alone where parameters are narrow. Embedding and head stay wide."""
    plain = graph(catalog, "llama3.1-8b", "none")
    layers = 32 * sum(m.elements for op in plain.blocks[0].operators for m in op.matrices)
    copies = 2 * RECIPES[scaling].weight * layers
    assert graph(catalog, "llama3.1-8b", scaling).weight_bytes == pytest.approx(plain.weight_bytes + copies)
    narrow = graph(catalog, "llama3.1-8b", scaling, narrow=True)
    assert narrow.weight_bytes == pytest.approx(plain.weight_bytes + copies - 2 * layers)


def test_what_is_gathered(catalog: Catalog) -> None:
    """fp8 parameters travel in one byte; MXFP8's two copies have scales of their own, so that 16 bits travel."""

    def gathered(scaling: str, *, narrow: bool) -> float:
        built = graph(catalog, "llama3.1-8b", scaling, narrow=narrow)
        return sum(gathered_bytes(op, built.numerics) for op in built.blocks[0].operators)

    wide = gathered("none", narrow=False)
    assert gathered("tensor", narrow=False) == gathered("mxfp8", narrow=True) == wide
    norms = 2 * 4096
    assert gathered("tensor", narrow=True) == wide / 2 + norms


@pytest.mark.parametrize("scaling", RECIPES)
def test_products_in_the_format(catalog: Catalog, scaling: str) -> None:
    built = graph(catalog, "deepseek-v3", scaling)
    narrow = FORMATS[scaling]
    for block in built.blocks:
        for op in block.operators:
            products = [w for w in (*op.forward, *op.backward) if isinstance(w, Matmul)]
            wide = op.name == "moe.router"
            assert {w.format for w in products} <= {"bf16" if wide else narrow}, op.name
            if products and not wide:
                assert {w.scaled for w in products} == {RECIPES[scaling].scaled}
                # input forward, gradient of the output backward, weights once a step
                kernels = 2 if RECIPES[scaling].maximum_first else 1
                assert len(casts(op.forward)) == len(casts(op.step)) == kernels
                assert len(casts(op.input_gradient[:kernels])) == kernels
    for end in (built.embedding, built.head):
        assert {w.format for w in (*end.works(), *end.works("weight_gradient")) if isinstance(w, Matmul)} <= {
            "bf16"
        }
        assert not end.step_works()


def test_narrow_gathers(catalog: Catalog) -> None:
    """With sequence parallelism what has been cast is gathered; what is reduced stays in 16 bits."""

    def sizes(scaling: str, kind: str) -> float:
        block = graph(catalog, "llama3.1-8b", scaling, Partition(8, 1, True)).blocks[0]
        works = (*block.works(), *block.works("input_gradient"), *block.works("weight_gradient"))
        return sum(w.size for w in works if isinstance(w, Collective) and w.kind == kind)

    assert sizes("delayed", "all-gather") == sizes("none", "all-gather") / 2
    assert sizes("delayed", "reduce-scatter") == sizes("none", "reduce-scatter")


def test_recipes_in_time(catalog: Catalog) -> None:
    """fp8 layers are faster than bf16 ones and slower than twice as fast; a pass for the maximum costs more than none."""
    device = catalog.device("h100-sxm")
    cost = CostModel(device, catalog.calibration(device))

    def seconds(scaling: str) -> float:
        block = graph(catalog, "llama3.1-70b", scaling).blocks[0]
        times = [
            cost.operator_times(op, {"tensor": catalog.hardware(HardwareChoice(node="dgx-h100")).span(1)})
            for op in block.operators
        ]
        return sum(float(time.forward.time) + float(time.backward.time) for time in times)

    plain = seconds("none")
    assert plain / 2 < seconds("delayed") < seconds("tensor") < plain
    assert seconds("delayed") < seconds("block") < plain


def test_recipes_run_in_the_vendors_kernels(catalog: Catalog) -> None:
    """What serving keeps in fp8 without a recipe runs in its engine's own."""

    def kernels(numerics: Numerics) -> set[str]:
        block = build(catalog.model("llama3.1-8b"), Shape(1, 1024), numerics=numerics).blocks[0]
        works = (*block.works(), *block.works("weight_gradient"))
        return {w.kernel for w in works if isinstance(w, Matmul)}

    assert kernels(Numerics(compute="fp8", scaling="mxfp8")) == {"vendor"}
    assert kernels(Numerics(compute="fp8")) == {"engine"}


def test_tokens_reach_their_experts_narrow(catalog: Catalog) -> None:
    """DeepSeek-V3, section 3.3.3: dispatch forward and the gradient's dispatch backward in fp8, combining in 16 bits."""

    def sizes(scaling: str) -> list[float]:
        block = graph(catalog, "deepseek-v3", scaling, Partition(1, 64)).blocks[-1]
        exchanges = {op.name: op for op in block.operators if op.name in ("moe.dispatch", "moe.combine")}
        return [
            next(w.size for w in getattr(exchanges[f"moe.{name}"], part) if isinstance(w, Collective))
            for name in ("dispatch", "combine")
            for part in ("forward", "input_gradient")
        ]

    wide = sizes("tensor")
    narrow = (1 + 4 / 128) / 2
    assert wide == sizes("none")
    assert sizes("block") == pytest.approx([wide[0] * narrow, wide[1], wide[2], wide[3] * narrow])


def test_frozen_layers_cast_once(catalog: Catalog) -> None:
    """Beside adapters a frozen layer needs no second copy of its input, nor of its output's gradient."""
    full = graph(catalog, "llama3.1-8b", "tensor")
    lora = subset(full, TypeAdapter(Trainable).validate_python({"method": "lora", "rank": 16}))
    for block, written in ((full.blocks[0], 2 * TOKENS * 4096), (lora.blocks[1], TOKENS * 4096)):
        qkv = next(op for op in block.operators if op.name == "attention.qkv")
        assert [kernel.written for kernel in casts(qkv.forward)] == [0, written]
        assert casts(qkv.input_gradient)[1].written == written * 6144 / 4096
    assert next(op for op in lora.blocks[1].operators if op.name == "attention.qkv").saves == ()
