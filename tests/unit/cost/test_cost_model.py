"""The model of a device: peaks, classes, breakdowns, hidden collectives, calibration and doubt."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from simulator.cost import (
    Breakdown,
    Cost,
    CostModel,
    Parts,
    class_errors,
    interval,
    peak_flops,
    relative_error,
)
from simulator.graph.graph import Operator
from simulator.graph.work import Attention, Collective, Elementwise, Gather, Matmul
from simulator.specs import Catalog, MemroofError, Processor, Span, Tier
from simulator.specs.calibration import FitRecord

CATALOG = Catalog()
NVLINK = Span((Tier("node", 8, 300e9, 0.5e-6),))


def device(**changes: object) -> Processor:
    """A processor of round figures."""
    data: dict[str, object] = {
        "kind": "gpu",
        "name": "round",
        "vendor": "none",
        "architecture": "none",
        "source": "round figures",
        "compute": {
            "matrix": {"fp16": "100 TFLOP/s", "int8": "200 TOP/s"},
            "vector": {"fp32": "10 TFLOP/s", "fp64": "5 TFLOP/s"},
            "units": 100,
            "clock": "1 GHz",
        },
        "memory": {"hbm": {"technology": "HBM", "capacity": "80 GB", "bandwidth": "2 TB/s"}},
        "power": {"limit": "300 W"},
    }
    return Processor.model_validate(data | changes)


@pytest.fixture(scope="module")
def a100() -> CostModel:
    processor = CATALOG.device("a100-80gb-sxm")
    assert isinstance(processor, Processor)
    return CostModel(processor, CATALOG.calibration(processor))


def test_peak_of_matrix_and_vector_units():
    gpu = device()
    assert peak_flops(gpu, "fp16") == 100e12
    assert peak_flops(gpu, "fp32", matrix=False) == 10e12
    # wide formats fall back to the vector units, 16-bit vectors to fp32
    assert peak_flops(gpu, "fp32") == 10e12
    assert peak_flops(gpu, "fp64") == 5e12
    assert peak_flops(gpu, "bf16", matrix=False) == 10e12


def test_matrix_formats_are_not_interchanged():
    with pytest.raises(MemroofError, match="round has no bf16 matrix units; it has fp16, int8"):
        peak_flops(device(), "bf16")
    with pytest.raises(MemroofError, match="tf32"):
        peak_flops(device(), "tf32")
    with pytest.raises(MemroofError, match="no fp8 vector units; it has fp32, fp64"):
        peak_flops(device(), "fp8", matrix=False)


def test_devices_without_matrix_units_use_their_vectors():
    cpu = device(compute={"vector": {"fp32": "2 TFLOP/s"}, "units": 16, "clock": "3 GHz"})
    assert peak_flops(cpu, "bf16") == peak_flops(cpu, "fp32") == 2e12
    with pytest.raises(MemroofError, match="no int8 vector units"):
        peak_flops(cpu, "int8")


@pytest.mark.parametrize(
    ("work", "operator_class", "bound"),
    [
        (Matmul(4096, 4096, 4096), "matmul", "compute"),
        (Matmul(1, 16384, 16384), "matmul", "memory"),
        (Matmul(1, 64, 64), "matmul", "latency"),
        (Attention(8, 32, 32, 4096, 4096, 128, 128, 8192), "attention", "compute"),
        (
            Attention(64, 32, 8, 1, 8192, 128, 128, 2048, decode=True, kv_bytes=4.0),
            "decode-attention",
            "memory",
        ),
        (Elementwise(1e9, 1e9), "elementwise", "memory"),
        (Gather(4096, 8192), "embedding", "memory"),
        (Collective("all-reduce", "tensor", 1e9), "collective", "link"),
        (Collective("all-reduce", "tensor", 1e3), "collective", "latency"),
    ],
)
def test_class_and_bound(a100, work, operator_class, bound):
    cost = a100.price(work, NVLINK)
    assert (cost.operator_class, cost.bound) == (operator_class, bound)
    assert cost.error == a100.calibration.error[operator_class]
    assert cost.time >= max(cost.compute, cost.memory, cost.link)


def test_large_gemm_runs_near_what_a100_sustains(a100):
    # cuBLAS on A100 sustains 235 to 293 of 312 TFLOP/s on large bf16 GEMMs (5th to 95th percentile of
    # measured ones)
    rate = 2 * 8192**3 / a100.price(Matmul(8192, 8192, 8192)).time
    assert 235e12 < rate < 293e12


def test_bound_of_an_array(a100):
    cost = a100.price(Matmul(np.array([1.0, 8192.0]), 8192, 8192))
    assert cost.bound.tolist() == ["memory", "compute"]
    breakdown = Breakdown.of(cost)
    assert breakdown.by_bound["memory"] == pytest.approx([cost.time[0], 0.0])
    assert breakdown.by_bound["compute"] == pytest.approx([0.0, cost.time[1]])


def test_grouped_products_are_slower(a100):
    plain = a100.price(Matmul(4096, 4096, 4096, 8))
    grouped = a100.price(Matmul(4096, 4096, 4096, 8, grouped=True))
    assert plain.time < grouped.time < 2.0 * plain.time
    assert (plain.operator_class, grouped.operator_class) == ("matmul", "grouped-matmul")


def test_backward_attention_is_2_5_products_at_its_own_efficiency(a100):
    constants = a100.calibration.attention.model_copy(update={"tile_latency": 1e-12})
    a100 = replace(a100, calibration=a100.calibration.model_copy(update={"attention": constants}))
    forward = a100.price(Attention(8, 32, 32, 4096, 4096, 128, 128, 8192))
    backward = a100.price(Attention(8, 32, 32, 4096, 4096, 128, 128, 8192, backward=True))
    # one exponential a pair in both passes, worth softmax_dim of the head on a unit of 1,024 FLOP a clock
    held_up = constants.softmax_dim * 312e12 / (108 * 1.41e9) / 1024 / 128
    slower = constants.peak_efficiency / constants.backward_efficiency
    assert backward.compute == pytest.approx((2.5 + held_up) / (1 + held_up) * slower * forward.compute)


def test_a_window_bounds_attention(a100):
    long = a100.price(Attention(8, 32, 32, 32768, 32768, 128, 128, 8192))
    windowed = a100.price(Attention(8, 32, 32, 32768, 32768, 128, 128, 8192, window=1024))
    # about 1024 of 16384 keys a query, plus half a tile and the prologue
    assert windowed.compute == pytest.approx(long.compute * (1024 + 64 + 128) / (16384 + 64 + 128), rel=0.03)
    decoded = a100.price(Attention(64, 32, 8, 1, 32768, 128, 128, 2048, window=1024, decode=True))
    assert decoded.time < 0.1 * a100.price(Attention(64, 32, 8, 1, 32768, 128, 128, 2048, decode=True)).time


def test_transfers(a100):
    constants = a100.calibration.transfer
    copy = a100.transfer(1e10, 31.5e9, 1e-6)
    assert copy.operator_class == "transfer"
    assert copy.time == pytest.approx(1e-6 + (1e10 + constants.half_bytes) / (31.5e9 * constants.efficiency))
    flash = a100.transfer(1e10, 7e9, storage=True)
    assert flash.time == pytest.approx((1e10 + constants.half_bytes) / (7e9 * constants.storage_efficiency))


def test_total_sums_exposed(a100):
    works = (
        Matmul(4096, 4096, 4096),
        Collective("all-reduce", "tensor", 1e8, "weight-gradient"),
        Elementwise(1e8, 1e8),
    )
    total = a100.total(works, {"tensor": NVLINK})
    parts = [a100.price(work, NVLINK).time for work in works]
    assert total.time == pytest.approx(sum(parts))
    assert sum(total.by_bound.values()) == pytest.approx(total.time)
    assert list(total.by_class) == ["matmul", "collective", "elementwise"]


def test_collectives_need_a_span(a100):
    work = Collective("all-reduce", "expert", 1e6)
    with pytest.raises(MemroofError, match="all-reduce of axis 'expert' has no span"):
        a100.price(work)
    with pytest.raises(MemroofError, match="known axes: tensor"):
        a100.total((work,), {"tensor": NVLINK})


def test_hidden_collectives_are_exposed_only_beyond_what_hides_them(a100):
    product = Matmul(4096, 4096, 4096)
    short = Collective("reduce-scatter", "tensor", 1e6, "weight-gradient")
    long = Collective("all-gather", "tensor", 1e9, "input-gradient")
    operator = Operator("linear", (product,), (product, short), (long, product))
    times = a100.operator_times(operator, {"tensor": NVLINK})
    one, gather, scatter = (float(a100.price(w, NVLINK).time) for w in (product, long, short))
    assert scatter < one < gather
    assert times.forward.time == pytest.approx(one)
    # the short one costs only the units that it takes from the weight gradient; the long one sticks out
    taken = a100.calibration.collective.occupancy * scatter
    assert times.input_gradient.time == pytest.approx(one + taken)
    assert times.input_gradient.hidden == pytest.approx(scatter - taken)
    assert times.weight_gradient.by_class["collective"] == pytest.approx(gather - one)
    assert times.weight_gradient.hidden == pytest.approx(one)
    assert times.backward.time == pytest.approx(one + gather + taken)
    assert times.backward.time + times.backward.hidden == pytest.approx(2 * one + gather + scatter)


def test_two_collectives_share_what_hides_them(a100):
    product = Matmul(4096, 4096, 4096)
    gather = Collective("all-gather", "tensor", 1e8, "input-gradient")
    operator = Operator("linear", (), (product,), (gather, gather))
    times = a100.operator_times(operator, {"tensor": NVLINK})
    one, both = a100.price(product).time, 2 * a100.price(gather, NVLINK).time
    assert times.weight_gradient.time == pytest.approx(max(0.0, both - one))


def test_breakdowns_add_and_scale():
    one = Breakdown.of(Cost.of(Parts(2.0, 2.0), "matmul", 0.1))
    other = Breakdown.of(Cost.of(Parts(3.0, 0.0, 3.0), "matmul", 0.1))
    total = 2 * one + other * 3.0
    assert total.by_class == {"matmul": 13.0}
    assert total.by_bound == {"compute": 4.0, "memory": 9.0}
    exposed = total.beside(np.array([3.0, 20.0]))
    assert exposed.time == pytest.approx([10.0, 0.0])
    assert exposed.hidden == pytest.approx([3.0, 13.0])
    assert Breakdown().beside(1.0).time == 0.0


def test_a_cpu_needs_the_bandwidth_of_its_dram():
    cpu = CATALOG.device("epyc-9654")
    assert isinstance(cpu, Processor)
    constants = CATALOG.calibration(cpu)
    with pytest.raises(MemroofError, match="epyc-9654 has no memory of its own"):
        CostModel(cpu, constants)
    priced = CostModel(cpu, constants, 460.8e9).price(Matmul(1, 8192, 8192))
    assert priced.memory >= 2 * 8192 * 8192 / 460.8e9


@pytest.mark.parametrize("kind", ["gpu", "tpu", "npu", "cpu"])
def test_every_kind_is_complete(kind):
    name = {"gpu": "l40s", "tpu": "tpu-v5e", "npu": "gaudi-3", "cpu": "xeon-8480-plus"}[kind]
    processor = CATALOG.device(name)
    assert isinstance(processor, Processor)
    assert processor.kind == kind
    model = CostModel(processor, CATALOG.calibration(processor), 1e12)
    assert model.price(Matmul(4096, 4096, 4096)).time > 2 * 4096**3 / peak_flops(processor, "bf16")


def test_missing_constants_are_named():
    calibration = CATALOG.calibration(device())
    hollow = calibration.model_copy(
        update={
            "matmul": calibration.matmul.model_copy(update={"fill": None}),
            "error": {k: v for k, v in calibration.error.items() if k != "host"},
        }
    )
    with pytest.raises(MemroofError, match=r"calibration gpu: missing matmul\.fill, error\.host"):
        CostModel(device(), hollow)


def test_an_architecture_overrides_one_key(tmp_path: Path):
    folder = tmp_path / "hardware_specs" / "calibration"
    folder.mkdir(parents=True)
    (folder / "volta.yaml").write_text(
        "kind: calibration\nname: volta\nsource: fitted here\n"
        "matmul: {peak_efficiency: 0.5}\nerror: {matmul: 0.05}\n"
    )
    catalog = Catalog([tmp_path])
    general = catalog.calibration(device())
    special = catalog.calibration(device(architecture="volta"))
    assert (special.name, special.matmul.peak_efficiency, special.error["matmul"]) == ("volta", 0.5, 0.05)
    assert special.source.startswith("fitted here; ")
    assert special.matmul.memory_efficiency == general.matmul.memory_efficiency
    assert special.error["attention"] == general.error["attention"]
    assert special.attention == general.attention


def test_interval_of_80_per_cent():
    # the 90th percentile of the normal distribution is 1.2816
    low, high = interval(10.0, 0.1)
    assert low == pytest.approx(10 * np.exp(-0.12816), rel=1e-4)
    assert high == pytest.approx(10 * np.exp(0.12816), rel=1e-4)
    lows, _ = interval(np.array([10.0, 20.0]), np.array([0.1, 0.0]), level=0.5)
    assert lows == pytest.approx([10 * np.exp(-0.06745), 20.0], rel=1e-4)
    with pytest.raises(ValueError, match="between 0 and 1"):
        interval(1.0, 0.1, level=1.0)


def test_error_of_a_sum():
    # 3 s at 20 % and 4 s at 20 %, independent: sqrt(0.36 + 0.64) / 7
    errors = {"matmul": 0.2, "attention": 0.2}
    assert relative_error({"matmul": 3.0, "attention": 4.0}, errors) == pytest.approx(1 / 7)
    assert relative_error({}, errors) == 0.0
    swept = relative_error({"matmul": np.array([3.0, 0.0]), "attention": np.array([4.0, 0.0])}, errors)
    assert swept == pytest.approx([1 / 7, 0.0])


@pytest.mark.parametrize(
    ("own", "beside", "added"),
    [(1.0, 10.0, 0.2), (10.0, 1.0, 9.0), (1.0, 0.9, 0.2), (1.0, 0.7, 0.3), (0.0, 1.0, 0.0)],
)
def test_a_collective_takes_units_from_the_product_beside_it(own, beside, added):
    """With a fifth of the units gone, work of b seconds beside c seconds ends after max(c, b + c/5)."""
    cost = Breakdown({"collective": own}, {"tensor link": own})
    assert cost.beside(beside, 0.2).time == pytest.approx(added)


def test_the_clock_that_is_held_under_load_slows_products_alone(a100):
    held = CostModel(a100.device, a100.calibration, sustained=True)
    product, stream = Matmul(8192, 8192, 8192), Elementwise(1e9, 1e9)
    slower = float(held.price(product).time / a100.price(product).time)
    assert slower == pytest.approx(1 / a100.calibration.host.sustained_clock, rel=2e-3)
    assert held.price(stream).time == a100.price(stream).time


@pytest.mark.parametrize(
    ("name", "format", "watts"), [("h100-sxm", "bf16", 630.0), ("h100-96gb-hbm2e", "bf16", 430.0), ("b200", "fp8", 860.0)]
)  # fmt: skip
def test_the_power_limit_sets_the_clock_of_training(name: str, format: str, watts: float) -> None:
    """A FLOP of 1 pJ in 16 bits, and of 2^-1.5 pJ in 8, runs as often as the limit less the idle power pays for."""
    constants = CATALOG.calibration(CATALOG.processor(name))
    training = constants.training.model_copy(
        update={"flop_energy": 1e-12, "energy_exponent": 1.5, "sustained_clock": 1.0}
    )
    cost = CostModel(
        CATALOG.processor(name),
        constants.model_copy(update={"training": training}),
        sustained=True,
        training=True,
    )
    energy = 1e-12 if format == "bf16" else 1e-12 * 0.5**1.5
    assert cost.kernels._peak(format, True) == pytest.approx(watts / energy)
    assert cost.kernels._peak("fp32", False) == peak_flops(cost.device, "fp32", matrix=False)


def test_training_holds_its_highest_clock_where_power_limits_nothing() -> None:
    device = CATALOG.processor("l40s")
    cost = CostModel(device, CATALOG.calibration(device), sustained=True, training=True)
    assert cost.kernels._peak("bf16", True) == pytest.approx(0.95 * peak_flops(device, "bf16"))


def test_an_8_bit_product_runs_at_the_rate_of_whoever_wrote_its_kernel() -> None:
    """NVIDIA B200: cuBLASLt's best fp8 product is 3.43 PFLOP/s (ml-engineering), that of vLLM's kernels 1.7 (aiconfigurator)."""
    device = CATALOG.processor("b200")
    cost = CostModel(device, CATALOG.calibration(device))
    shape = (15360, 4096, 3072, 1, "fp8", 1.0, 1.0)
    vendor, engine = (Matmul(*shape, kernel=kernel) for kernel in ("vendor", "engine"))
    assert vendor.flops / cost.price(vendor).time == pytest.approx(3.43e15, rel=0.05)
    assert engine.flops / cost.price(engine).time < 1.8e15
    wide = [cost.price(Matmul(*shape[:4], kernel=kernel)).time for kernel in ("vendor", "engine")]
    assert wide[0] == wide[1]


def test_a_link_is_named_by_whose_group_uses_it(a100):
    total = a100.total(
        (Collective("all-reduce", "tensor", 1e9), Collective("all-to-all", "expert", 1e9)),
        {"tensor": NVLINK, "expert": NVLINK},
    )
    assert set(total.by_bound) == {"tensor link", "expert link"}


def test_vector_units_stream_the_matrix_of_a_matrix_vector_product():
    """One row on a GPU without matrix units: the weights at the sustained bandwidth, as llama.cpp decodes on Apple."""
    apple = CATALOG.processor("m2-max")
    model = CostModel(apple, CATALOG.calibration(apple))
    cost = model.price(Matmul(1, 8192, 8192, format="fp16"))
    assert cost.bound == "memory"
    streamed = 2 * 8192 * 8192 / (apple.memory["dram"].bandwidth * model.calibration.matmul.memory_efficiency)
    assert streamed <= cost.time < 1.15 * streamed


def test_what_is_a_kernels_own_averages_out_over_different_kernels(a100):
    """Nine different kernels of equal time: e·sqrt(rho + (1 - rho)/9); nine times the same kernel: e."""
    record = {
        "data": "d",
        "rows": 1,
        "held_out": 1,
        "groups": "g",
        "median": 0.1,
        "mean": 0.1,
        "shared": 0.25,
    }
    fitted = a100.calibration.model_copy(update={"fits": {"matmul": FitRecord(**record)}})
    error = fitted.error["matmul"]
    one = Breakdown({"matmul": 1.0}, {"compute": 1.0}, 0.0, {"matmul": 1.0})
    different = one
    for _ in range(8):
        different = different + one
    assert class_errors(different, fitted)["matmul"] == pytest.approx(error * (0.25 + 0.75 / 9) ** 0.5)
    assert class_errors(one * 9, fitted)["matmul"] == pytest.approx(error)
    assert class_errors(different, fitted.model_copy(update={"fits": {}}))["matmul"] == pytest.approx(error)


def test_quantised_weights_of_a_single_row_are_streamed_on_gpus_too():
    """4-bit weights, one row, RTX 4090: a kernel on the vector units, bound by the memory (llama.cpp's matrix-vector kernels)."""
    card = CATALOG.processor("rtx-4090")
    model = CostModel(card, CATALOG.calibration(card), sustained=True)
    one = model.price(Matmul(1, 28672, 4096, format="fp16", right_bytes=0.5))
    streamed = 0.5 * 28672 * 4096 / card.memory["hbm"].bandwidth
    assert one.bound == "memory"
    assert streamed < one.time < 2 * streamed
    many = model.price(Matmul(4096, 28672, 4096, format="fp16", right_bytes=0.5))
    assert many.time >= 2 * 4096 * 28672 * 4096 / peak_flops(card, "fp16")
