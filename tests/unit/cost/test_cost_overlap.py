"""What is left of collectives beside products: whole, in chunks, in a ring, and with gradients apart."""

import pytest

from simulator.cost import Breakdown, CostModel
from simulator.cost.breakdown import Cost
from simulator.cost.numeric import Parts
from simulator.cost.overlap import operator_times
from simulator.graph import Attention, Collective, Matmul, Operator
from simulator.specs import Catalog, Span, Tier

CATALOG = Catalog()
SECONDS = {"product": 8.0, "gather": 4.0, "scatter": 2.0}
PRODUCT = Matmul(800, 1, 1)
ATTENTION = Attention(1, 1, 1, 1, 1, 1, 1, 1)


def price(work):
    """A product takes 8 s at 800 rows, whatever it is cut in; collectives a second for each byte."""
    if isinstance(work, Matmul):
        seconds, name = work.m * work.count / 100.0, "matmul"
    elif isinstance(work, Attention):
        seconds, name = 8.0, "attention"
    else:
        seconds, name = work.size, "collective"
    return Breakdown.of(Cost.of(Parts(seconds, seconds), name, 0.1))


def times(operator, overlap="backward", *, apart=False, occupancy=0.0):
    return operator_times(operator, price, lambda axis: 4, occupancy, overlap=overlap, apart=apart)


def column():
    """A column-parallel layer as the graph has it: gather, product; product, scatter; gather, product."""
    return Operator(
        "column",
        (Collective("all-gather", "tensor", 4.0, chunked=True), PRODUCT),
        (PRODUCT, Collective("reduce-scatter", "tensor", 2.0, hidden_by="weight-gradient", chunked=True)),
        (Collective("all-gather", "tensor", 4.0, hidden_by="input-gradient"), PRODUCT),
    )


@pytest.mark.parametrize(
    ("overlap", "apart", "seconds"),
    [
        ("none", False, (12.0, 10.0, 12.0)),
        ("backward", False, (12.0, 8.0, 8.0)),
        ("backward", True, (12.0, 10.0, 12.0)),
        # forward the gather follows the product; backward whole products hide whole collectives
        ("chunked", False, (8.0, 8.0, 8.0)),
        # the scatter follows its own product; the repeated gather has nothing beside it
        ("chunked", True, (8.0, 8.0, 12.0)),
    ],
)
def test_what_each_choice_leaves_exposed(overlap, apart, seconds):
    found = times(column(), overlap, apart=apart)
    assert (found.forward.time, found.input_gradient.time, found.weight_gradient.time) == seconds


def test_chunks_leave_one_piece_of_the_shorter_exposed():
    # product 8 s in 4 pieces of 2 s, gather 12 s in 3 steps of 4 s: 3 steps, then the last product
    long = Operator("row", (PRODUCT, Collective("reduce-scatter", "tensor", 12.0, chunked=True)))
    assert times(long, "chunked").forward.time == pytest.approx(12.0 + 8.0 / 4)
    assert times(long, "chunked").forward.hidden == pytest.approx(6.0)
    # units that communication takes slow the product
    short = Operator("row", (PRODUCT, Collective("reduce-scatter", "tensor", 4.0, chunked=True)))
    assert times(short, "chunked", occupancy=0.25).forward.time == pytest.approx(8.0 + 0.25 * 4.0)


def test_a_ring_runs_beside_its_own_attention_whatever_the_strategy_says():
    for seconds, expected in ((3.0, 8.0), (6.0, 8.0), (12.0, 12.0 + 8.0 / 4)):
        ring = Operator("core", (ATTENTION, Collective("ring", "context", seconds, hidden_by="forward")))
        for overlap in ("none", "backward", "chunked"):
            assert times(ring, overlap, apart=True).forward.time == pytest.approx(expected)


def test_only_tensor_parallel_collectives_follow_the_strategy():
    gather = Collective("all-gather", "context", 4.0, hidden_by="weight-gradient")
    operator = Operator("core", (), (gather,), (PRODUCT,))
    assert times(operator, "none").input_gradient.time == 0.0
    assert times(operator, "none", apart=True).input_gradient.time == 4.0


def test_a_chunk_has_tiles_of_its_own():
    device = CATALOG.device("h100-sxm")
    model = CostModel(device, CATALOG.calibration(device))
    spans = {"tensor": Span((Tier("node", 8, 450e9, 1e-6),))}
    rows, gather = Matmul(1024, 8192, 1024), Collective("all-gather", "tensor", 1e3, chunked=True)
    operator = Operator("column", (gather, rows))
    whole = model.operator_times(Operator("column", (rows,)), spans).forward.time
    # 128 rows a chunk fill no large tile: slower than one product, though nearly nothing is communicated
    assert model.operator_times(operator, spans, overlap="chunked").forward.by_class["matmul"] > whole
    assert model.operator_times(operator, spans).forward.by_class["matmul"] == pytest.approx(whole)
