"""Joined projections as products of their own."""

import pytest

from simulator.graph import Block, Matmul, Numerics, Partition, Shape, build
from simulator.graph.graph import Recompute
from simulator.graph.separate import separate
from simulator.specs import Catalog


@pytest.fixture(scope="module", params=["bf16", "fp8"])
def blocks(request: pytest.FixtureRequest) -> tuple[Block, Block]:
    numerics = Numerics(compute=request.param, scaling="tensor" if request.param == "fp8" else "none")
    model = Catalog(environment={}).model("llama3.1-8b")
    joined = build(model, Shape(1, 512), Partition(2, 1, True), numerics).blocks[0]
    return joined, separate(joined)


@pytest.mark.parametrize("part", ["forward", "input_gradient", "weight_gradient"])
def test_the_same_products_in_parts(blocks: tuple[Block, Block], part: str) -> None:
    joined, apart = blocks

    def flops(block: Block) -> float:
        works = block.works(part)  # type: ignore[arg-type]
        return float(sum(work.flops for work in works if isinstance(work, Matmul)))

    assert flops(apart) == pytest.approx(flops(joined))
    assert apart.parameters == pytest.approx(joined.parameters)
    assert len(apart.operators) == len(joined.operators) + 3


def test_the_same_bytes_are_kept(blocks: tuple[Block, Block]) -> None:
    joined, apart = blocks
    hows: tuple[Recompute, ...] = ("none", "selective", "full")
    for how in hows:
        assert apart.saved_bytes(how) == pytest.approx(joined.saved_bytes(how))


def test_every_tensor_is_there(blocks: tuple[Block, Block]) -> None:
    _, apart = blocks
    for op in apart.operators:
        assert all(name in apart.tensors for name in (*op.inputs, *op.outputs, *op.saves))
    rotary = next(op for op in apart.operators if op.name == "attention.rotary")
    assert rotary.inputs == ("qkv.q_proj", "qkv.k_proj")
