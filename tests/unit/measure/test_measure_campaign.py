"""The plan: which cases, what they ask for, in which order; names of devices."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from fake_backend import GPU, TINY

from simulator.measure import GRIDS, GROUPS, catalog_name, plan, work
from simulator.measure.campaign import Target
from simulator.measure.names import REPORTED, plain
from simulator.specs import Catalog, MemroofError

CATALOG = Catalog(environment={})


def test_the_plan_is_the_product_of_its_axes() -> None:
    count = Counter(case.group for case in plan(TINY, GPU, CATALOG))
    # formats x rows x weights; heads x (prefills + decodes); kernels x sizes; directions x memories x sizes; ranks x kinds x sizes
    assert count == {
        "gemm": 2 * 3 * 2, "attention": 2 * 4, "elementwise": 5 * 2, "copy": 2 * 2 * 2, "collective": 2 * 4 * 2,
        "training": 1, "decode": 1,
    }  # fmt: skip


def test_order_is_deterministic_and_spread_over_the_grid() -> None:
    first, again, other = (plan(TINY, GPU, CATALOG, seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    assert set(first) == set(other)
    groups = [case.group for case in first]
    assert groups == sorted(groups, key=list(GROUPS).index)
    rows = [case.sizes["m"] for case in first if case.operator == "matmul"]
    assert any(a > b for a, b in pairwise(rows))  # not from small to large


def test_only_some_groups() -> None:
    assert {case.group for case in plan(TINY, GPU, CATALOG, only=["copy", "gemm"])} == {"copy", "gemm"}
    with pytest.raises(MemroofError, match="unknown group 'gem'; did you mean 'gemm'"):
        plan(TINY, GPU, CATALOG, only=["gem"])


def test_without_a_format_or_a_second_gpu_their_cases_are_not_planned() -> None:
    cases = plan(TINY, Target(("fp32",), 16e9, gpus=1), CATALOG)
    assert {case.group for case in cases} == {"gemm", "copy", "training", "decode"}
    assert {case.format for case in cases if case.group == "gemm"} == {"fp32"}


def test_three_gpus_are_joined_as_two_and_three() -> None:
    cases = plan(TINY, Target((), 16e9, gpus=3), CATALOG, only=["collective"])
    assert {case.sizes["ranks"] for case in cases} == {2, 3}


def test_work_of_a_product_by_hand() -> None:
    case = next(c for c in plan(TINY, GPU, CATALOG) if c.label == "matmul fp8 m=16 n=4096 k=1024")
    assert case.flops == 2 * 16 * 4096 * 1024
    # one byte an element of the operands, bf16 out
    assert case.bytes == 16 * 1024 + 4096 * 1024 + 2 * 16 * 4096
    asked = work("matmul", "fp8", case.sizes)
    assert asked.reuse_distance == case.bytes  # type: ignore[union-attr]


def test_work_of_attention_and_streams_by_hand() -> None:
    shape = {"batch": 2, "heads": 8, "kv_heads": 2, "queries": 1, "keys": 100, "head_dim": 64}
    decode = work("decode-attention", "bf16", shape)
    assert decode.flops == 4 * 2 * 8 * 100 * 64
    assert decode.bytes == 2 * (2 * 2 * 64 * 100 * 2) + 2 * 8 * 2 * 64 * 2
    prefill = work("attention", "fp32", {**shape, "queries": 100})
    assert prefill.flops == 4 * 2 * 8 * (100 * 101 / 2) * 64
    assert work("elementwise", "bf16", {"kernel": "add", "rows": 3, "columns": 5}).bytes == 3 * 3 * 5 * 2
    with pytest.raises(MemroofError, match="'mul' is none of copy, add"):
        work("elementwise", "bf16", {"kernel": "mul", "rows": 3, "columns": 5})
    with pytest.raises(MemroofError, match="no kernel that memroof measures"):
        work("convolution", "bf16", {})


def test_steps_take_the_largest_model_that_fits() -> None:
    def model(memory: float) -> str:
        case = plan(TINY, Target(("bf16",), memory), CATALOG, only=["training"])[0]
        return str(case.sizes["model"])

    assert model(16e9) == "llama3.2-1b"
    assert model(3e9) == "qwen2.5-0.5b"
    assert model(1e6) == "qwen2.5-0.5b"  # does not fit either; the run says so


def test_training_flops_are_six_a_weight_and_token_and_the_attention() -> None:
    case = plan(TINY, GPU, CATALOG, only=["training"])[0]
    # llama3.2-1b: 4 layers of (2 x 2048^2 + 2 x 2048 x 512 + 3 x 2048 x 8192) and the output layer, tied
    layer = 2 * 2048**2 + 2 * 2048 * 512 + 3 * 2048 * 8192
    attention = 4 * 4 * 2048 * 32
    assert case.flops == pytest.approx(3 * 64 * (2 * (4 * layer + 2048 * 128256) + attention))
    assert case.footprint > 4 * 2 * (4 * layer + 2048 * 128256)


@pytest.mark.parametrize("kind", GRIDS)
def test_shipped_grids_can_be_planned(kind: str) -> None:
    target = Target(("bf16", "fp32", "int8"), 80e9, gpus=8 if kind == "cuda" else 0)
    cases = plan(GRIDS[kind], target, CATALOG)
    assert len({case.label for case in cases}) == len(cases) > 300
    assert all(case.sizes["m"] > 16 for case in cases if case.format == "int8" and case.operator == "matmul")


def test_every_alias_names_a_catalogued_processor() -> None:
    for reported, name in REPORTED.items():
        assert plain(reported) == reported
        assert CATALOG.processor(name).name == name


@pytest.mark.parametrize(
    ("reported", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100-sxm"), ("NVIDIA A100-SXM4-80GB", "a100-80gb-sxm"), ("Tesla T4", "t4"),
        ("AMD EPYC 9654 96-Core Processor", "epyc-9654"), ("Intel(R) Xeon(R) Platinum 8480+", "xeon-8480-plus"),
        ("Intel(R) Xeon(R) Platinum 8380 CPU @ 2.30GHz", "xeon-8380"), ("NVIDIA GeForce GTX 280", None),
    ],
)  # fmt: skip
def test_names_that_drivers_report(reported: str, name: str | None) -> None:
    assert catalog_name(reported, CATALOG.names("device")) == name


def test_a_device_of_the_users_own_is_found_by_its_reported_name() -> None:
    assert catalog_name("NVIDIA Toy-GPU", ["toy-gpu"]) == "toy-gpu"
