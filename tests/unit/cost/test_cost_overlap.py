"""What is left of collectives beside products: whole, in chunks, in a ring, and with gradients apart."""

import pytest

from simulator.cost import Breakdown, CostModel
from simulator.cost.breakdown import Cost
from simulator.cost.numeric import Parts
from simulator.cost.overlap import operator_times
from simulator.graph import Attention, Collective, Matmul, Operator, Partition, Shape, build
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


def test_shared_experts_run_while_tokens_travel():
    device = CATALOG.device("h100-sxm")
    model = CostModel(device, CATALOG.calibration(device))
    spans = {
        "tensor": Span(()),
        "expert": Span((Tier("node", 8, 450e9, 1e-6), Tier("infiniband", 8, 50e9, 5e-6))),
    }
    block = build(CATALOG.model("deepseek-v3"), Shape(1, 4096), Partition(1, 64)).blocks[1]
    apart = model.block_times(block, spans)
    beside = model.block_times(block, spans, shared_experts=True)
    assert apart == {op.name: model.operator_times(op, spans) for op in block.operators}
    shared = [op.name for op in block.operators if op.name.startswith("moe.shared")]
    for part, hider in (("forward", "forward"), ("input_gradient", "backward")):
        before, after = (sum(getattr(t, part).time for t in times.values()) for times in (apart, beside))
        hiding = sum(getattr(apart[name], hider).time for name in shared)
        # the exchange is longer: all of the shared experts' time hides some of it
        assert before - after == pytest.approx(hiding)
        assert sum(getattr(beside[n], part).hidden for n in ("moe.dispatch", "moe.combine")) >= 0.999 * hiding
    changed = {name for name, time in beside.items() if time != apart[name]}
    assert changed == {"moe.dispatch", "moe.combine"} or changed == {"moe.dispatch"}


def test_a_layer_without_shared_experts_stays_as_it_is():
    device = CATALOG.device("h100-sxm")
    model = CostModel(device, CATALOG.calibration(device))
    spans = {"tensor": Span(()), "expert": Span((Tier("node", 8, 450e9, 1e-6),))}
    block = build(CATALOG.model("mixtral-8x7b"), Shape(1, 4096), Partition(1, 8)).blocks[0]
    assert model.block_times(block, spans, shared_experts=True)["moe.dispatch"].forward.time == pytest.approx(
        model.block_times(block, spans)["moe.dispatch"].forward.time
    )
