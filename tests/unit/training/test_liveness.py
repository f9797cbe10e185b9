"""What a micro-batch holds in a block: hand-made blocks, laws, and measured peaks of Megatron-Core."""

from dataclasses import replace

import numpy as np
import pytest

from simulator.graph import (
    Axis,
    Block,
    Collective,
    Elementwise,
    Matmul,
    Numerics,
    Operator,
    Partition,
    Shape,
    Tensor,
    build,
)
from simulator.specs import Catalog, Model
from simulator.training.allocator import cublas_workspaces
from simulator.training.liveness import chain, gradient_placeholders, liveness

GIB = 2.0**30
BF16 = Numerics.of("bf16")


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return Catalog(environment={})


def _two_layers(*, gathered: float = 0.0) -> Block:
    """input (10) -> up (40), kept by the activation -> active (20), kept by down -> out (10)."""
    exchange = (Collective("all-gather", "tensor", gathered),) if gathered else ()
    product, kernel = Matmul(1, 1, 1), Elementwise(1.0, 1.0)
    operators = (
        Operator("up", (*exchange, product), (product,), (product,), 1, ("input",), ("up.out",), ("input",)),
        Operator("activation", (kernel,), (kernel,), (), 0, ("up.out",), ("active",), ("up.out",)),
        Operator("down", (product,), (product,), (product,), 1, ("active",), ("out",), ("active",)),
    )
    sizes = {"input": 10.0, "up.out": 40.0, "active": 20.0, "out": 10.0}
    return Block("two", operators, {name: Tensor(name, size) for name, size in sizes.items()})


def test_nothing_recomputed_by_hand() -> None:
    found = liveness(_two_layers())
    assert (found.saved, found.by_tensor) == (70.0, {"input": 10.0, "up.out": 40.0, "active": 20.0})
    # forward: all three saved and the output at the end
    assert found.forward_peak == 10.0
    # backward: down has both gradients (10 + 20) beside 70; the activation 50 saved, 20 and 40 of gradients
    assert found.backward_peak == 40.0
    assert found.backward_holders == {
        "up.out": 40.0, "gradient of up.out": 40.0, "gradient of active": 20.0, "input": 10.0,
    }  # fmt: skip
    assert found.freed == {"down": 20.0, "activation": 40.0, "up": 10.0}
    # inputs of both products and the gradients of their outputs
    assert found.between == 10.0 + 20.0 + 40.0 + 10.0
    assert found.output == "out"


def test_all_recomputed_by_hand() -> None:
    block = _two_layers()
    found = liveness(block, frozenset({"up", "activation", "down"}))
    assert found.by_tensor == {"input": 10.0}
    # down's gradient needs the activation: the whole block runs again, the gradient of its output waiting (10);
    # then as before: 60 + 50 bytes of tensors and gradients at the activation
    assert found.backward_peak == 110.0 - 10.0
    assert found.freed == {"up": 10.0}


def test_a_discarded_output_comes_back_for_its_reader() -> None:
    found = liveness(_two_layers(), frozenset({"activation"}))
    assert found.by_tensor == {"input": 10.0, "up.out": 40.0}
    # the repeated activation: 50 saved, its output, the gradient that waits
    assert [sum(moment.values()) for moment in found.backward_moments] == [
        80.0,
        100.0,
        110.0,
        90.0 - 20.0 + 10.0 - 20.0,
    ]
    assert "active" in found.backward_moments[0]


def test_buffers_of_exchanges_need_a_group() -> None:
    block = _two_layers(gathered=500.0)
    assert liveness(block, groups={"tensor": 1}).forward_peak == 10.0
    held = liveness(block, groups={"tensor": 2})
    assert held.forward_peak == 10.0 + 40.0 + 500.0 - 70.0
    assert held.forward_holders["all-gather buffer of up"] == 500.0
    assert liveness(block).forward_peak == held.forward_peak


def test_weight_gradients_that_products_do_not_add_themselves() -> None:
    block = _two_layers()
    apart = liveness(block, numerics=replace(BF16, fused_accumulation=False))
    # products of one element: two bytes beside the gradient of the input
    assert apart.backward_moments[0]["weight gradient of down"] == 2.0
    assert liveness(block, numerics=BF16).backward_moments[0]["weight gradient of down"] == 0.0
    assert (
        liveness(block, numerics=BF16, placeholders=True).backward_moments[0]["weight gradient of down"]
        == 2.0
    )


def test_blocks_compose() -> None:
    block = _two_layers()
    one = liveness(block)
    two = chain([one, one])
    assert (two.saved, two.between) == (140.0, 160.0)
    assert (two.forward_peak, two.backward_peak) == (one.forward_peak, one.backward_peak)
    # the first block's peaks count only where they are beyond what the second one saves
    large = replace(one, backward_peak=200.0)
    assert chain([large, one]).backward_peak == 130.0
    assert chain([one, large]).backward_peak == 200.0
    assert chain([]).saved == 0.0


def test_a_block_without_backward_pass_keeps_nothing() -> None:
    block = _two_layers()
    frozen = replace(
        block,
        operators=tuple(replace(op, input_gradient=(), weight_gradient=()) for op in block.operators),
    )
    found = liveness(frozen)
    assert (found.saved, found.backward_peak, found.forward_peak) == (0.0, 0.0, 60.0)


def test_a_reversible_block_keeps_nothing_and_works_with_all() -> None:
    block = replace(_two_layers(), reversible=True)
    found = liveness(block, frozenset(op.name for op in block.operators))
    assert found.saved == 0.0
    assert found.backward_peak == 110.0


def test_logits_and_what_the_loss_makes_of_them(catalog: Catalog) -> None:
    model = catalog.model("llama3.1-8b")
    logits = 1024.0 * model.vocab_size

    def peaks(tensor: int = 1, **options: bool) -> tuple[float, float]:
        head = build(model, Shape(1, 1024), Partition(tensor), BF16, **options).head
        found = liveness(head, numerics=BF16)
        own = {name: float(size) for name, size in found.by_tensor.items() if name in ("input", "normed0")}
        held = float(found.saved) - sum(own.values())
        share = logits / tensor
        return (held + float(found.forward_peak)) / share, (held + float(found.backward_peak)) / share

    # bytes a logit: 16 bits and an fp32 copy (Megatron-Core's fusion); 16 bits alone; PyTorch's cross entropy: log-softmax, its
    # gradient and that of the converted logits; where the vocabulary is cut also differences and exponentials
    assert peaks() == pytest.approx((6.0, 6.0), abs=0.2)
    assert peaks(wide_loss=False) == pytest.approx((2.0, 4.0), abs=0.2)
    assert peaks(fused_loss=False) == pytest.approx((8.0, 12.0), abs=0.2)
    assert peaks(2, fused_loss=False) == pytest.approx((16.0, 12.0), abs=0.5)


def test_quantised_copies_are_cast_again(catalog: Catalog) -> None:
    numerics = Numerics(compute="fp8", scaling="tensor")
    block = build(catalog.model("llama3-8b"), Shape(1, 1024), numerics=numerics).blocks[0]
    found = liveness(block, frozenset({"mlp.norm"}), numerics=numerics)
    assert "mlp.up.input" not in found.by_tensor
    product = next(moment for moment in found.backward_moments if "weight gradient of mlp.up" in moment)
    assert "mlp.up.input" in product


def test_residuals_share_their_gradient(catalog: Catalog) -> None:
    graph = build(catalog.model("llama3-8b"), Shape(1, 4096))
    held = liveness(graph.blocks[0]).backward_holders
    # one gradient of the stream for residual and sublayer
    stream = [name for name in held if name.startswith("gradient") and "residual" in name]
    assert len(stream) == 1
    assert next(iter(held)) == "mlp.up.out"


def test_arrays_say_what_numbers_say(catalog: Catalog) -> None:
    model = catalog.model("mixtral-8x7b")
    degrees = np.array([1, 2, 4])
    again = frozenset({"attention.core", "mlp.norm"})
    together = build(model, Shape(1, 2048), Partition(degrees), BF16)
    many = [liveness(block, again, numerics=BF16) for block in (*together.blocks, together.head)]
    for place, degree in enumerate(degrees):
        graph = build(model, Shape(1, 2048), Partition(int(degree)), BF16)
        for found, block in zip(many, (*graph.blocks, graph.head), strict=True):
            one = liveness(block, again, numerics=BF16)
            for name in ("saved", "forward_peak", "backward_peak", "between"):
                some = np.broadcast_to(getattr(found, name), 3)[place]
                assert some == pytest.approx(getattr(one, name), rel=1e-12)


def test_placeholders_once_a_shape(catalog: Catalog) -> None:
    graph = build(catalog.model("llama3-70b"), Shape(1, 4096), numerics=BF16)
    found = gradient_placeholders(graph.blocks, BF16)
    layer = 8192 * (10240 + 8192 + 57344 + 28672)
    assert sum(found.values()) == 2.0 * layer
    assert gradient_placeholders([*graph.blocks, *graph.blocks], BF16) == found
    assert gradient_placeholders(graph.blocks, replace(BF16, fused_accumulation=False)) == {}


def _rank(model: Model, tensor: int, expert: int, data: int) -> float:
    """Bytes that tensors of the only stage take, Megatron-Core with the distributed optimizer: 6 B and 12 B cut over replicas."""
    graph = build(model, Shape(1, 4096), Partition(tensor, expert, tensor > 1), BF16)
    blocks = [graph.embedding, *(graph.blocks[kind] for kind in graph.layers), graph.head]
    total = sum(float(block.parameters) for block in blocks)
    experts = sum(float(block.expert_parameters) for block in blocks)
    states = 6.0 * total + 12.0 * ((total - experts) / data + experts * expert / data)
    groups: dict[Axis, int] = {"tensor": tensor, "expert": expert}
    passes = chain(
        liveness(block, numerics=BF16, groups=groups, placeholders=block is graph.head) for block in blocks
    )
    empty = sum(float(size) for size in gradient_placeholders(graph.blocks, BF16).values())
    peak = max(float(passes.forward_peak), float(passes.backward_peak))
    return states + float(passes.saved) + peak + empty + cublas_workspaces("blackwell")


@pytest.mark.parametrize(
    ("name", "layers", "tensor", "expert", "data", "measured"),
    [
        ("llama3-70b", 12, 2, 1, 4, 60.68),
        ("llama3-70b", 12, 4, 1, 2, 39.07),
        ("llama3-70b", 12, 8, 1, 1, 28.29),
        ("deepseek-v2", 4, 1, 8, 8, 45.63),
    ],
)
def test_peaks_measured_on_b200(
    catalog: Catalog, name: str, layers: int, tensor: int, expert: int, data: int, measured: float
) -> None:
    # MooreThreads/SimuMax, docs/b200: peak allocated memory of truncated models; nothing is fitted
    model = catalog.model(name)
    moe = model.moe and model.moe.model_copy(update={"first_dense_layers": 1})
    model = model.model_copy(update={"num_hidden_layers": layers, "moe": moe})
    assert _rank(model, tensor, expert, data) / GIB == pytest.approx(measured, rel=0.002)
