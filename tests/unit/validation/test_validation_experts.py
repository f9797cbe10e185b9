"""Data sets of layers of experts: units, reasons, groups, tiles by rule, what the busiest rank gets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from simulator.graph.work import Elementwise, Matmul, Route
from simulator.specs import Catalog
from simulator.validation.dataset import Loaded, constants_for
from simulator.validation.datasets import experts, known

CATALOG = Catalog()
COLUMNS = (
    "src,kernel_source,moe_dtype,num_tokens,hidden_size,inter_size,topk,num_experts,moe_tp_size,moe_ep_size,"
    "distribution,latency_ms\n"
)
VLLM = "h100_sxm/vllm/1,vllm_fused_moe,bfloat16"


def load(name: str, text: str, tmp_path: Path) -> Loaded:
    file = tmp_path / "table.csv"
    file.write_text(text)
    return {dataset.name: dataset for dataset in known()}[name].load(file, CATALOG)


def layer(row: str, tmp_path: Path) -> experts.FusedLayer:
    (part,) = load("aiconfigurator/moe.csv", COLUMNS + row + ",1\n", tmp_path).parts
    return part.predict.__self__  # type: ignore[attr-defined, no-any-return]


def test_every_row_is_priced_or_counted(tmp_path: Path) -> None:
    shape = "64,2048,768,8,128,2,4"
    rows = [
        f"{VLLM},{shape},balanced,0.5", f"{VLLM},{shape},power_law_1.2,0.4", f"{VLLM},{shape},zipf,0.4",
        f"{VLLM},{shape},balanced,0", f"h100_sxm/vllm/1,vllm_fused_moe,ternary,{shape},balanced,1",
        f"h100_sxm/trtllm/1,other,bfloat16,{shape},balanced,1",
        f"x9000/vllm/1,vllm_fused_moe,bfloat16,{shape},balanced,1",
    ]  # fmt: skip
    loaded = load("aiconfigurator/moe.csv", COLUMNS + "\n".join(rows) + "\n", tmp_path)
    assert [(p.device, p.measured.tolist(), p.groups.tolist()) for p in loaded.parts] == [
        ("h100-sxm", [0.5e-3], ["2048|768|128|8"]), ("h100-sxm", [0.4e-3], ["2048|768|128|8"]),
    ]  # fmt: skip
    assert dict(loaded.skipped) == {
        "distribution is not modelled": 1, "no time above 0": 1, "number format is not modelled": 1,
        "kernel is not modelled": 1, "device is not in the catalog": 1,
    }  # fmt: skip


def test_a_rank_holds_a_share_of_experts_and_of_their_width(tmp_path: Path) -> None:
    row = layer(f"{VLLM},64,2048,768,8,128,2,4,balanced", tmp_path)
    assert (row.experts[0], row.width[0]) == (32.0, 384.0)
    # 512 copies over four ranks, four for each of 32 experts
    assert (row.copies[0], row.active[0]) == (128.0, 32.0)
    up, down = row.products(True)
    assert (up.m[0], up.n[0], up.k[0], up.count[0]) == (4.0, 768.0, 2048.0, 32.0)
    assert (down.n[0], down.k[0]) == (2048.0, 384.0)


def test_tiles_follow_the_rule_of_the_framework(tmp_path: Path) -> None:
    few = layer(f"{VLLM},64,2048,768,8,128,1,1,balanced", tmp_path).products(False)[0]
    many = layer(f"{VLLM},256,2048,768,8,128,1,1,balanced", tmp_path).products(False)[0]
    assert (few.tile[0][0], few.tile[1][0], few.loop[0]) == (16.0, 32.0, 64.0)
    assert (many.tile[0][0], many.tile[1][0], many.loop[0]) == (64.0, 64.0, 32.0)
    scaled = layer("h100_sxm/vllm/1,vllm_fused_moe,fp8_block,64,2048,768,8,128,1,1,balanced", tmp_path)
    assert scaled.products(False)[0].tile == (64.0, 128.0)
    # Mixtral's shape on two ranks is tuned on H100
    assert layer(f"{VLLM},64,4096,14336,2,8,2,1,balanced", tmp_path).tuned[0]
    assert not layer(f"{VLLM},64,4096,14336,2,8,1,1,balanced", tmp_path).tuned[0]


def test_a_tuned_shape_takes_the_tuned_time(tmp_path: Path) -> None:
    row = layer(f"{VLLM},4096,4096,14336,2,8,2,1,balanced", tmp_path)
    cost = constants_for(CATALOG, "h100-sxm")
    around = sum(cost.price(work).time for work in row.works())
    tuned, ruled = (sum(cost.price(work).time for work in row.products(flag)) for flag in (True, False))
    assert row.time(cost)[0] == pytest.approx((around + tuned)[0])
    assert tuned[0] < ruled[0]


def test_vllm_passes_over_the_copies_of_all_ranks(tmp_path: Path) -> None:
    row = layer(f"{VLLM},64,2048,768,8,128,1,4,balanced", tmp_path)
    route, activation, _ = row.works()
    assert isinstance(route, Route)
    assert isinstance(activation, Elementwise)
    # 512 copies; eight experts a token have no kernel of their own for the sum
    assert (route.copies[0], route.summed[0]) == (512.0, 512.0 * 2048)
    assert activation.written[0] == 2 * 512 * 768
    other = layer("h100_sxm/trtllm/1,moe_torch_flow_nongated,fp8,64,2048,768,8,128,1,4,balanced", tmp_path)
    route, activation, *_rest = other.works()
    assert route.summed[0] == 0.0
    # a quarter of the copies, and no gate
    assert (activation.read[0], activation.written[0]) == (2 * 128 * 768, 2 * 128 * 768)
    assert other.products(True)[0].n[0] == 768.0


def test_few_tokens_meet_on_the_first_experts(tmp_path: Path) -> None:
    # one token's eight experts all lie on the rank of the first sixteen
    row = layer(f"{VLLM},1,7168,2048,8,256,1,16,power_law_1.2", tmp_path)
    assert (row.copies[0], row.active[0]) == pytest.approx((8.0, 8.0), rel=0.05)
    alone = layer(f"{VLLM},4096,7168,2048,8,256,1,1,power_law_1.2", tmp_path)
    assert alone.copies[0] == 4096 * 8
    busiest = layer(f"{VLLM},4096,7168,2048,8,256,1,16,power_law_1.2", tmp_path)
    assert 1.5 * 4096 * 8 / 16 < busiest.copies[0] < 4.0 * 4096 * 8 / 16


def test_grouped_products_of_deepgemm(tmp_path: Path) -> None:
    text = (
        "gpu,phase,num_experts,num_gpus,num_local_experts,topk,hidden_size,intermediate_size,tokens_per_expert,"
        "up_proj_us,down_proj_us\n"
        "H20,decode,96,1,96,8,2048,1560,1,166.6,98.1\nH20,decode,96,1,96,8,2048,1560,43,350.0,188.0\n"
        "H900,decode,96,1,96,8,2048,1560,43,350.0,188.0\nH20,prefill,96,1,96,8,2048,1560,430,0,1000\n"
    )
    up = load("infersim/grouped_gemm_us.csv#up", text, tmp_path)
    (part,) = up.parts
    assert (part.device, part.measured.tolist()) == ("h20", pytest.approx([166.6e-6, 350e-6]))
    assert dict(up.skipped) == {"device is not in the catalog": 1, "no time above 0": 1}
    work = part.predict.args[0]  # type: ignore[attr-defined]
    assert isinstance(work, Matmul)
    # half of the experts have a row where the mean is one, and 43 rows fit a tile of 64
    assert np.asarray(work.count).tolist() == [48.0, 96.0]
    assert np.asarray(work.n).tolist() == [3120.0, 3120.0]
    assert len(load("infersim/grouped_gemm_us.csv#down", text, tmp_path).parts[0].measured) == 3


def test_published_rows_of_deepgemm(tmp_path: Path) -> None:
    text = (
        "layout,groups,m_per_group,n,k,derived_time_us\ndense,1,64,2112,7168,9.4\n"
        "grouped_masked,4,256,4096,7168,64.5\n"
    )
    loaded = load("deepgemm/fp8_gemm_h800.csv#grouped", text, tmp_path)
    (part,) = loaded.parts
    assert (part.device, part.rows.tolist(), sum(loaded.skipped.values())) == ("h800-sxm", [3], 1)
    cost = constants_for(CATALOG, "h800-sxm")
    assert part.predict(cost) == pytest.approx(64.5e-6, rel=0.3)
    assert part.relative_errors(cost)[0] > cost.calibration.error["matmul"]
