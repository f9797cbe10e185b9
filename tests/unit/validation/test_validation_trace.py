"""The categories of DeepSeek's training trace: which kernels they are made of, and what is left out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from simulator.graph import Matmul
from simulator.specs import Catalog, MemroofError
from simulator.validation import SHIPPED
from simulator.validation.dataset import constants_for
from simulator.validation.datasets import trace

NAME = "deepseek-h800-trace/train_by_category.csv"
COUNTED = {
    "fp8_dense_gemm", "fp8_grouped_gemm", "fp8_grouped_gemm_wgrad", "bf16_gemm", "flash_attn_fwd", "flash_attn_bwd",
    "flash_attn_bwd_prepost", "fp8_cast_quantize", "transpose", "norm", "rope", "swiglu",
}  # fmt: skip


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return Catalog(environment={})


def test_every_category_has_as_many_kernels_as_were_traced(catalog: Catalog) -> None:
    works = trace.works_by_category(catalog.model("deepseek-v3"))
    table = pd.read_csv(SHIPPED / NAME).set_index("category")["calls"]
    assert {name: trace.LAYERS * len(works[name]) for name in COUNTED} == table[sorted(COUNTED)].to_dict()


def test_products_are_those_of_the_model(catalog: Catalog) -> None:
    works = trace.works_by_category(catalog.model("deepseek-v3"))

    def flops(name: str) -> float:
        return sum(float(work.flops) for work in works[name] if isinstance(work, Matmul))

    # MLA: 7168 to 1536 to 128 x 192, 7168 to 576, 512 to 128 x 256, 128 x 128 to 7168; shared expert of width 2048
    up = 1536 * 24576 + 512 * 32768
    weights = 7168 * 1536 + 7168 * 576 + up + 16384 * 7168 + 7168 * 4096 + 2048 * 7168
    expert = 7168 * 4096 + 2048 * 7168
    assert flops("fp8_dense_gemm") == 2.0 * 4096 * (2 * weights + up)
    assert flops("fp8_grouped_gemm") == 2.0 * (4096 * 8) * 2 * expert
    assert flops("fp8_grouped_gemm_wgrad") == 2.0 * (4096 * weights + 4096 * 8 * expert)
    assert flops("bf16_gemm") == 3 * 2.0 * 4096 * 256 * 7168


def test_a_token_crosses_to_four_nodes_once_each(catalog: Catalog) -> None:
    model = catalog.model("deepseek-v3")
    assert [work.size for work in trace.exchange("ep_dispatch", model)] == [4096 * 4 * 7168.0] * 2
    assert trace.exchange("ep_combine", model)[0].size == 2 * 4096 * 4 * 7168


def test_computation_has_what_communication_leaves(catalog: Catalog) -> None:
    whole = constants_for(catalog, "h800-sxm")
    left = trace.beside_communication(whole)
    assert left.device.compute.units == 112
    assert left.device.compute.matrix["fp8"] == pytest.approx(whole.device.compute.matrix["fp8"] * 112 / 132)
    assert left.sustained


def test_shipped_rows_are_all_accounted_for(catalog: Catalog) -> None:
    loaded = trace.DATASETS[0].load(SHIPPED / NAME, catalog)
    (part,) = loaded.parts
    cost = constants_for(catalog, part.device)
    predicted, errors = part.predict(cost), part.relative_errors(cost)
    assert len(predicted) == len(part.measured) == 14
    assert dict(loaded.skipped) == {trace.SMALL: 4}
    assert np.isfinite(predicted).all()
    assert (predicted > 0).all()
    assert ((errors > 0) & (errors < 1)).all()


def test_communication_is_predicted_and_waiting_is_not(catalog: Catalog, tmp_path: Path) -> None:
    file = tmp_path / "train_by_category.csv"
    header = "category,calls,total_us\n"
    file.write_text(header + "ep_dispatch,8,20000\nep_combine,8,40000\nep_notify_wait,8,50000\nnew,1,5\n")
    loaded = trace.DATASETS[0].load(file, catalog)
    assert dict(loaded.skipped) == {trace.WAITS: 1, trace.UNKNOWN: 1}
    (part,) = loaded.parts
    dispatch, combine = part.predict(constants_for(catalog, part.device))
    # 3.5 of 8 nodes are others: 103 MB in FP8 over a NIC of 50 GB/s, eight times, at 70 to 100 % of its bandwidth
    assert 8 * 0.1028e9 / 50e9 < dispatch < 8 * 0.1028e9 / 35e9
    assert combine == pytest.approx(2.0 * dispatch, rel=0.1)
    file.write_text(header + "new,1,5\n")
    assert trace.DATASETS[0].load(file, catalog).parts == []
    file.write_text("calls,total_us\n1,2\n")
    with pytest.raises(MemroofError, match="no column 'category'"):
        trace.DATASETS[0].load(file, catalog)


def test_another_model_is_refused(catalog: Catalog) -> None:
    with pytest.raises(MemroofError, match="MLA and experts"):
        trace.works_by_category(catalog.model("llama3.1-8b"))
