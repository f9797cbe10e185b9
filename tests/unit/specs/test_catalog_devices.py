"""The shipped devices: they load, every figure has a source, peaks agree with data sheets and silicon."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from simulator.specs import Catalog, MemroofError, Processor
from simulator.specs.base import Figure, Spec
from simulator.specs.source import read_document

CATALOG = Catalog(environment={})
DEVICES = CATALOG.names("device")
PROCESSORS = tuple(name for name in DEVICES if isinstance(CATALOG.device(name), Processor))
ACCELERATORS = tuple(name for name in PROCESSORS if CATALOG.processor(name).kind != "cpu")
CPUS = tuple(name for name in PROCESSORS if CATALOG.processor(name).kind == "cpu")
NVIDIA_SPARSE = tuple(
    name
    for name in ACCELERATORS
    if CATALOG.processor(name).vendor == "NVIDIA" and CATALOG.processor(name).compute.matrix_sparse
)

EXPECTED = {
    "v100-16gb-sxm", "v100-32gb-sxm", "v100-16gb-pcie", "v100-32gb-pcie", "t4", "a10", "a40",
    "a100-40gb-sxm", "a100-40gb-pcie", "a100-80gb-sxm", "a100-80gb-pcie", "l4", "l40s", "h100-sxm",
    "h100-pcie", "h100-nvl", "h800-sxm", "h20", "h200-sxm", "gh200-96gb", "gh200-144gb", "b200",
    "gb200", "b300", "gb300", "h100-96gb-hbm2e", "rtx-3090", "rtx-4090", "rtx-5090", "rtx-pro-6000-blackwell",
    "mi250x", "mi300x", "mi325x", "mi355x", "gaudi-2", "gaudi-3", "tpu-v3", "tpu-v4", "tpu-v5e", "tpu-v5p",
    "m2-max", "m2-ultra", "snapdragon-8-gen-3", "xeon-8168", "xeon-skylake-gcp", "xeon-8380",
    "xeon-gold-5320", "xeon-8480-plus", "xeon-8480c", "xeon-8570", "epyc-7702", "epyc-7742", "epyc-9654",
    "threadripper-pro-5975wx", "core-i9-14900k", "grace",
}  # fmt: skip


def figures(value: Any, path: str = "") -> Iterator[tuple[str, Figure]]:
    """Every figure inside a spec, by its key path."""
    if isinstance(value, Figure):
        yield path, value
    elif isinstance(value, Spec):
        for name, inner in value:
            yield from figures(inner, f"{path}.{name}".lstrip("."))
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from figures(inner, f"{path}.{name}".lstrip("."))


def sourced(data: Any) -> Iterator[dict[str, Any]]:
    """Every ``{value, source, ...}`` of a file as written."""
    if isinstance(data, dict):
        if "value" in data:
            yield data
        for inner in data.values():
            yield from sourced(inner)


def lists(name: str) -> tuple[tuple[str, float, float], ...]:
    """(format, dense, sparse) where a device lists both."""
    compute = CATALOG.processor(name).compute
    return tuple((f, compute.matrix[f], sparse) for f, sparse in compute.matrix_sparse.items())


def test_the_catalog_has_the_devices_that_nodes_and_papers_need() -> None:
    assert set(PROCESSORS) >= EXPECTED


@pytest.mark.parametrize("name", DEVICES)
def test_every_device_loads_and_is_named_as_its_file(name: str) -> None:
    device = CATALOG.device(name)
    assert device.name == name == CATALOG.file("device", name).stem
    assert device.source.strip()


@pytest.mark.parametrize("name", PROCESSORS)
def test_every_figure_has_a_source(name: str) -> None:
    device = CATALOG.processor(name)
    found = dict(figures(device))
    assert {"compute.clock", "power.limit"} <= set(found)
    assert all(figure.source or device.source for figure in found.values())
    assert re.search(r"\b20[12]\d\b", device.source) or "documentation" in device.source
    written = list(sourced(read_document(CATALOG.file("device", name)).data))
    assert all(item.get("source", "").strip() for item in written)


@pytest.mark.parametrize("name", PROCESSORS)
def test_prices_are_dated(name: str) -> None:
    price = CATALOG.processor(name).price
    for figure in (price.purchase, price.rent):
        assert figure is None or (
            isinstance(figure, Figure) and figure.source and re.fullmatch(r"20\d\d-\d\d", figure.date)
        )


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_device_is_physically_plausible(name: str) -> None:
    device = CATALOG.processor(name)
    compute = device.compute
    assert compute.vector["fp32"] > 0
    assert (0.2e9 if device.architecture == "fpga" else 0.5e9) < compute.clock < 6.5e9
    assert all(dense >= compute.vector.get(f, 0.0) for f, dense in compute.matrix.items())
    assert all(sparse >= compute.matrix[f] for f, sparse in compute.matrix_sparse.items())
    if device.power.idle is not None:
        assert device.power.idle < device.power.limit
    assert re.fullmatch(r"20\d\d-(0[1-9]|1[0-2])", device.released)


@pytest.mark.parametrize("name", ACCELERATORS)
def test_an_accelerator_has_memory_and_known_links(name: str) -> None:
    device = CATALOG.processor(name)
    assert set(device.memory) <= {"hbm", "dram", "cxl"}
    known = set(CATALOG.names("link"))
    assert {link for link in (device.host_link, device.fabric) if link} <= known
    on_chip = sum(cache.capacity for cache in device.cache.values())
    assert all(port.capacity > on_chip for port in device.memory.values())
    fastest = max((cache.bandwidth or 0.0 for cache in device.cache.values()), default=0.0)
    assert fastest == 0.0 or all(port.bandwidth < fastest for port in device.memory.values())


@pytest.mark.parametrize("name", CPUS)
def test_dram_of_a_cpu_belongs_to_the_node(name: str) -> None:
    device = CATALOG.processor(name)
    assert device.memory == {}
    on_a_chip = name == "grace" or name.endswith("-cpu")  # its channels are those of the chip
    assert device.memory_channels in {2, 4, 6, 8, 12} or on_a_chip
    assert device.compute.vector["fp32"] == pytest.approx(2 * device.compute.vector["fp64"], rel=0.01)


def test_a_memory_device_is_no_processor() -> None:
    storage = next(name for name in DEVICES if name not in PROCESSORS)
    with pytest.raises(MemroofError, match="only stores"):
        CATALOG.processor(storage)


# fp32 lanes of one unit: Volta, Turing and A100 white papers 64; GA102, Ada, Hopper and Blackwell 128;
# CDNA 2 64 (unpacked), CDNA 3 and 4 128 (packed); Apple 128; CPUs two SIMD units of 16 (AVX-512) or 8
# (AVX2, Zen 4) lanes, Grace four of 4.
LANES = {
    "v100-16gb-sxm": 64, "v100-32gb-sxm": 64, "v100-16gb-pcie": 64, "v100-32gb-pcie": 64, "t4": 64,
    "a100-40gb-sxm": 64, "a100-40gb-pcie": 64, "a100-80gb-sxm": 64, "a100-80gb-pcie": 64,
    "a10": 128, "a40": 128, "rtx-3090": 128, "l4": 128, "l40s": 128, "rtx-4090": 128,
    "h100-sxm": 128, "h100-pcie": 128, "h100-nvl": 128, "h800-sxm": 128, "h200-sxm": 128,
    "gh200-96gb": 128, "gh200-144gb": 128, "b200": 128, "gb200": 128, "b300": 128, "gb300": 128,
    "h100-96gb-hbm2e": 128, "rtx-5090": 128,
    "rtx-pro-6000-blackwell": 128, "mi250x": 64, "mi300x": 128, "mi325x": 128, "mi355x": 128,
    "m2-max": 128, "m2-ultra": 128,
    "xeon-8168": 32, "xeon-skylake-gcp": 32, "xeon-8380": 32, "xeon-gold-5320": 32, "xeon-silver-4310": 32, "xeon-8480-plus": 32,
    "xeon-8480c": 32, "xeon-8570": 32, "epyc-7702": 16, "epyc-7742": 16, "epyc-9654": 16,
    "threadripper-pro-5975wx": 16, "threadripper-3960x": 16, "grace": 16,
}  # fmt: skip


@pytest.mark.parametrize(("name", "lanes"), LANES.items())
def test_vector_peak_is_units_times_lanes_times_clock(name: str, lanes: int) -> None:
    compute = CATALOG.processor(name).compute
    assert compute.vector["fp32"] == pytest.approx(compute.units * lanes * 2 * compute.clock, rel=0.02)


# dense 16-bit FLOP a clock of one unit, from the architecture white papers; Hopper and data-center Blackwell
# are left out because their matrix peaks hold at another clock than their vector peaks.
MATRIX_FLOP_PER_CLOCK = {
    "v100-16gb-sxm": 1024, "v100-16gb-pcie": 1024, "t4": 1024, "a100-80gb-sxm": 2048, "a100-80gb-pcie": 2048,
    "a10": 1024, "a40": 1024, "rtx-3090": 512, "l4": 1024, "l40s": 1024, "rtx-4090": 512, "rtx-5090": 512,
    "rtx-pro-6000-blackwell": 1024, "mi250x": 1024, "mi300x": 2048, "mi325x": 2048, "mi355x": 4096,
    "gaudi-2": 2 * 256 * 256, "gaudi-3": 2 * 256 * 256, "tpu-v3": 2 * 2 * 128 * 128,
    "tpu-v4": 4 * 2 * 128 * 128, "tpu-v5e": 4 * 2 * 128 * 128, "tpu-v5p": 4 * 2 * 128 * 128,
}  # fmt: skip


@pytest.mark.parametrize(("name", "flop"), MATRIX_FLOP_PER_CLOCK.items())
def test_matrix_peak_is_units_times_flop_times_clock(name: str, flop: int) -> None:
    compute = CATALOG.processor(name).compute
    peak = compute.matrix["bf16"] if "bf16" in compute.matrix else compute.matrix["fp16"]
    assert peak == pytest.approx(compute.units * flop * compute.clock, rel=0.02)


@pytest.mark.parametrize("name", NVIDIA_SPARSE)
def test_sparse_peaks_are_twice_the_dense_ones(name: str) -> None:
    exceptions = {("b300", "fp4"), ("gb300", "fp4")}  # Blackwell Ultra raised dense fp4 only
    pairs = [(dense, sparse) for f, dense, sparse in lists(name) if (name, f) not in exceptions]
    assert pairs
    assert all(sparse == pytest.approx(2 * dense, rel=0.02) for dense, sparse in pairs)


@pytest.mark.parametrize("name", ACCELERATORS)
def test_sixteen_bit_formats_run_at_one_rate(name: str) -> None:
    matrix = CATALOG.processor(name).compute.matrix
    if {"fp16", "bf16"} <= set(matrix):
        assert matrix["fp16"] == matrix["bf16"]


# fp16/bf16 dense, memory bandwidth [B/s], memory capacity [B], board power [W]: as printed in the data
# sheets, capacities as the driver reports them.
SHEET = {
    "v100-32gb-sxm": (125e12, 900e9, 32 * 2**30, 300),
    "t4": (65e12, 320e9, 15360 * 2**20, 70),
    "a100-40gb-sxm": (312e12, 1555e9, 40 * 2**30, 400),
    "a100-80gb-sxm": (312e12, 2039e9, 80 * 2**30, 400),
    "a100-80gb-pcie": (312e12, 1935e9, 80 * 2**30, 300),
    "l4": (121e12, 300e9, 23034 * 2**20, 72),
    "h100-sxm": (989.4e12, 3.35e12, 81559 * 2**20, 700),
    "h20": (148e12, 4.0e12, 97871 * 2**20, 400),
    "h200-sxm": (989.4e12, 4.8e12, 143771 * 2**20, 700),
    "b200": (2.25e15, 7.7e12, 183359 * 2**20, 1000),
    "gb200": (2.5e15, 8e12, 189471 * 2**20, 1200),
    "gb300": (2.5e15, 8e12, 284208 * 2**20, 1400),
    "h100-96gb-hbm2e": (989.4e12, 2.4e12, 97871 * 2**20, 500),
    "rtx-3090": (71e12, 936e9, 24 * 2**30, 350),
    "rtx-4090": (165.2e12, 1008e9, 24564 * 2**20, 450),
    "rtx-5090": (209.5e12, 1792e9, 32607 * 2**20, 575),
    "mi300x": (1307.4e12, 5.3e12, 206_141_652_992, 750),
    "mi355x": (2516.6e12, 8e12, 294896 * 2**20, 1400),
    "gaudi-2": (432e12, 2.46e12, 96 * 2**30, 600),
    "gaudi-3": (1835e12, 3.67e12, 128 * 2**30, 900),
    "tpu-v4": (275e12, 1200e9, 32 * 2**30, 192),
    "tpu-v5p": (459e12, 2765e9, 95 * 2**30, 450),
}


@pytest.mark.parametrize(("name", "sheet"), SHEET.items())
def test_figures_are_those_of_the_data_sheet(name: str, sheet: tuple[float, float, float, float]) -> None:
    device = CATALOG.processor(name)
    matrix = device.compute.matrix
    memory = device.memory["hbm"]
    peak = matrix["bf16"] if "bf16" in matrix else matrix["fp16"]
    assert (peak, memory.bandwidth, memory.capacity, device.power.limit) == pytest.approx(sheet, rel=1e-12)


@pytest.mark.parametrize(
    ("slower", "faster"),
    [
        ("v100-32gb-sxm", "a100-80gb-sxm"),
        ("a100-40gb-sxm", "a100-80gb-sxm"),
        ("h100-pcie", "h100-sxm"),
        ("h100-sxm", "h200-sxm"),
        ("h200-sxm", "b200"),
        ("mi250x", "mi300x"),
        ("mi300x", "mi325x"),
        ("mi325x", "mi355x"),
        ("rtx-3090", "rtx-4090"),
        ("rtx-4090", "rtx-5090"),
        ("gaudi-2", "gaudi-3"),
        ("tpu-v3", "tpu-v4"),
        ("tpu-v4", "tpu-v5p"),
    ],
)
def test_a_successor_has_more_bandwidth(slower: str, faster: str) -> None:
    old, new = CATALOG.processor(slower), CATALOG.processor(faster)
    assert new.memory["hbm"].bandwidth > old.memory["hbm"].bandwidth
    assert new.compute.matrix.get("bf16", 0.0) >= old.compute.matrix.get("bf16", 0.0)


def test_export_parts_differ_from_the_h100_where_the_law_says() -> None:
    h100, h800, h20 = (CATALOG.processor(name) for name in ("h100-sxm", "h800-sxm", "h20"))
    assert h800.compute.matrix["bf16"] == h100.compute.matrix["bf16"]
    assert (h800.fabric, h100.fabric, h20.fabric) == ("nvlink-4-h800", "nvlink-4", "nvlink-4")
    assert h20.compute.matrix["bf16"] < 0.2 * h100.compute.matrix["bf16"]
    assert h20.memory["hbm"].bandwidth > h100.memory["hbm"].bandwidth


def test_formats_that_a_generation_lacks_are_absent() -> None:
    for name, absent in {
        "v100-16gb-sxm": {"bf16", "tf32", "int8", "fp8"},
        "t4": {"bf16", "tf32", "fp8"},
        "a100-80gb-sxm": {"fp8", "fp4"},
        "h100-sxm": {"fp4", "fp6"},
        "mi300x": {"fp4", "fp6"},
        "tpu-v5e": {"fp16", "fp8"},
        "m2-max": {"fp16", "fp32"},
        "xeon-8380": {"bf16", "int8"},
    }.items():
        assert not absent & set(CATALOG.processor(name).compute.matrix)
