"""Attention data sets: units, what is skipped and why, groups, which rows constants are fitted on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from simulator.graph import Attention, Elementwise, Matmul
from simulator.specs import Catalog
from simulator.validation.dataset import Loaded, constants_for
from simulator.validation.datasets import known
from simulator.validation.datasets.mla import absorbed, expanded

CATALOG = Catalog()
LAYER = (
    "src,kernel_source,batch_size,isl,num_heads,num_key_value_heads,head_dim,attn_dtype,kv_cache_dtype,step,latency_ms,"
    "window_size\n"
)
MLA = "src,op_name,kernel_source,mla_dtype,kv_cache_dtype,num_heads,batch_size,isl,tp_size,step,latency_ms\n"
PROFILE = (
    "gpu,attn_decode_median_ms,attn_prefill_median_ms,n_embd,n_q_head,n_kv_head,num_tensor_parallel_workers,batch_size,"
    "prefill_chunk_size,kv_cache_size,is_prefill\n"
)
MIXED = "gpu,model,tp,prefill_chunk,kv_prefill,n_decode,kv_decode,time_us\n"
BENCHED = "gpu,kind,phase,heads_kvheads_dim,dtype,kv_dtype,batch_size,kv_len,latency_us,mfu,seq_len\n"
TRAP = "faster than the device's peak or memory allows: keys and values of several sequences or heads are one (trap)"


def load(name: str, text: str, tmp_path: Path) -> Loaded:
    file = tmp_path / "table.csv"
    file.write_text(text)
    return {dataset.name: dataset for dataset in known()}[name].load(file, CATALOG)


def predicted(loaded: Loaded) -> list[float]:
    return [float(t) for part in loaded.parts for t in part.predict(constants_for(CATALOG, part.device))]


def test_prefill_layers_and_their_skipped_rows(tmp_path: Path) -> None:
    vllm = "h100_sxm/vllm/1,vllm_flash_attn"
    rows = [
        f"{vllm},4,4096,32,8,128,bfloat16,bfloat16,0,1.0,", f"{vllm},4,1,32,8,128,bfloat16,bfloat16,0,0.012,",
        f"{vllm},4,4096,32,8,128,bfloat16,bfloat16,0,0.0,", f"{vllm},4,4096,32,8,128,ternary,bfloat16,0,1.0,",
        f"{vllm},4,16384,32,8,128,bfloat16,bfloat16,0,0.1,", "x/vllm/1,k,4,4096,32,8,128,bfloat16,bfloat16,0,1.0,",
        "l40s/vllm/1,vllm_flashinfer,4,4096,32,8,128,bfloat16,fp8,0,1.0,",
        "a100_sxm/vllm/1,vllm_flash_attn,4,4096,32,8,128,fp8,fp8,0,1.0,",
    ]  # fmt: skip
    loaded = load("aiconfigurator/attention_context.csv", LAYER + "\n".join(rows) + "\n", tmp_path)
    assert [(p.device, p.operator_class, p.measured.tolist(), p.rows.tolist()) for p in loaded.parts] == [
        ("h100-sxm", "attention", [1e-3], [2]), ("h100-sxm", "decode-attention", [0.012e-3], [3]),
    ]  # fmt: skip
    assert loaded.parts[0].groups.tolist() == ["32|8|128"]
    assert dict(loaded.skipped) == {
        "L40S, FlashInfer with an fp8 cache: the time falls where query heads are added (trap)": 1,
        "device is not in the catalog": 1, "number format is not modelled": 1, "latency is not positive": 1,
        "number format is not the device's": 1, TRAP: 1,
    }  # fmt: skip


def test_decode_counts_the_token_and_what_is_cached(tmp_path: Path) -> None:
    row = "h100_sxm/vllm/1,vllm_flash_attn,64,1,32,8,128,bfloat16,bfloat16,8191,0.8,\n"
    loaded = load("aiconfigurator/attention_generation.csv", LAYER + row, tmp_path)
    work = Attention(64.0, 32.0, 8.0, 1.0, 8192.0, 128.0, 128.0, 2048.0, decode=True, stores=True)
    price = constants_for(CATALOG, "h100-sxm").price(work).time
    assert predicted(loaded) == pytest.approx([price])


def test_a_window_of_zero_is_none(tmp_path: Path) -> None:
    rows = "".join(
        f"b200_sxm/vllm/1,vllm_flashinfer,8,16384,32,8,128,bfloat16,bfloat16,0,9.0,{window}\n"
        for window in (0, 1024)
    )
    full, cut = predicted(load("aiconfigurator/attention_context.csv", LAYER + rows, tmp_path))
    assert cut < 0.3 * full


def test_another_vendors_kernel_judges_and_is_not_fitted_on(tmp_path: Path) -> None:
    rows = "".join(
        f"h100_sxm/{software},16,1,32,{heads},128,bfloat16,bfloat16,{step},0.1,0\n"
        for software, heads, step in (
            ("vllm/1,vllm_flash_attn", 8, 127), ("trtllm/1,torch_flow", 8, 127), ("trtllm/1,torch_flow", 8, 4095),
        )
    )  # fmt: skip
    loaded = load("aiconfigurator/attention_generation.csv", LAYER + rows, tmp_path)
    assert [(len(part.measured), part.fitted) for part in loaded.parts] == [(1, False), (1, True)]
    (reason,) = loaded.skipped
    assert reason.startswith("TensorRT-LLM, grouped heads")
    cost = constants_for(CATALOG, "h100-sxm")
    other, own = (float(part.relative_errors(cost)[0]) for part in loaded.parts)
    assert own == cost.calibration.error["decode-attention"]
    assert other == pytest.approx(np.hypot(own, 0.5))


def test_a_profile_holds_two_quantities_of_a_rank(tmp_path: Path) -> None:
    text = PROFILE + "a100,0.5,,8192,64,8,2,64,0,4096,False\na100,,0.7,8192,64,8,2,1,1024,1024,True\n"
    name = "vidur/attention_a100_llama2_70b_median.csv"
    decode, prefill = (load(f"{name}#{kind}", text, tmp_path) for kind in ("decode", "prefill"))
    cost = constants_for(CATALOG, "a100-80gb-sxm")
    work = Attention(64.0, 32.0, 4.0, 1.0, 4097.0, 128.0, 128.0, 1024.0, decode=True)
    assert predicted(decode) == pytest.approx([cost.price(work).time])
    # the chunk comes on top of what is cached
    work = Attention(1.0, 32.0, 4.0, 1024.0, 2048.0, 128.0, 128.0, 1024.0)
    assert predicted(prefill) == pytest.approx([cost.price(work).time])
    assert decode.parts[0].measured.tolist() == [0.5e-3]
    assert dict(decode.skipped) == {"prefill: another quantity of this file": 1}


def test_sequences_that_share_their_cache_are_told_by_the_memory(tmp_path: Path) -> None:
    # 200 sequences of 3,648 positions are 0.75 GB: 63 us would be 12 TB/s
    row = ",0.0636,,8192,64,8,4,200,0,3648,False\n"
    loaded = load("llmservingsim/h100_llama31_70b_tp4_attention.csv#decode", PROFILE + row, tmp_path)
    assert not loaded.parts
    assert dict(loaded.skipped) == {TRAP: 1}


def test_mixed_batches_add_decodes_as_tiles(tmp_path: Path) -> None:
    model = "RTX4090,meta-llama/Llama-3.1-8B,tp1"
    rows = [
        f"{model},512,1024,0,0,100",
        f"{model},0,0,16,2048,120",
        f"{model},512,1024,16,2048,200",
        "T4,x,tp1,1,1,0,0,1",
    ]
    loaded = load("llmservingsim/attention_mixed_batch_us.csv", MIXED + "\n".join(rows) + "\n", tmp_path)
    kinds = {tuple(part.frame.iloc[0][["prefill_chunk", "n_decode"]]): part for part in loaded.parts}
    cost = constants_for(CATALOG, "rtx-4090")
    times = {kind: float(part.predict(cost)[0]) for kind, part in kinds.items()}
    tiles = cost.price(Attention(16.0, 32.0, 8.0, 1.0, 2048.0, 128.0, 128.0, 2048.0)).time
    assert times[512, 16] == pytest.approx(times[512, 0] + tiles)
    assert {kind: part.operator_class for kind, part in kinds.items()} == {
        (512, 0): "attention", (0, 16): "decode-attention", (512, 16): "attention",
    }  # fmt: skip
    assert [kinds[kind].fitted for kind in ((512, 0), (0, 16), (512, 16))] == [True, True, False]
    assert dict(loaded.skipped) == {"device or model is not known": 1}


def test_benchmarked_kernels_by_kind(tmp_path: Path) -> None:
    rows = [
        "H20,mha,decode,16-2-128,bf16,fp8,32,4096,59,0.1,", "H800,mla,decode,128-512-64,bf16,bf16,64,4096,155,0.1,",
        "H800,mla,prefill,128-128-64,bf16,,,,1104,0.6,4096", "H9,mha,decode,16-2-128,bf16,bf16,1,1,1,1,",
    ]  # fmt: skip
    loaded = load("infersim/attention_us.csv", BENCHED + "\n".join(rows) + "\n", tmp_path)
    works = [
        Attention(32.0, 16.0, 2.0, 1.0, 4096.0, 128.0, 128.0, 512.0, decode=True, kv_bytes=1.0),
        Attention(64.0, 128.0, 1.0, 1.0, 4096.0, 576.0, 512.0, 576.0, decode=True),
        Attention(1.0, 128.0, 128.0, 4096.0, 4096.0, 192.0, 128.0, 128 * 320.0),
    ]
    prices = [
        constants_for(CATALOG, part.device).price(work).time
        for part, work in zip(loaded.parts, works, strict=True)
    ]
    assert predicted(loaded) == pytest.approx(prices)
    assert [part.operator_class for part in loaded.parts] == [
        "decode-attention",
        "latent-attention",
        "latent-attention",
    ]
    assert dict(loaded.skipped) == {"device is not in the catalog": 1}


def test_latent_modules_end_in_one_of_two_quantities(tmp_path: Path) -> None:
    rows = [
        "h100_sxm/vllm/1,context_mla,vllm_flash_attn_mla,bfloat16,bfloat16,16,4,512,8,0,0.2",
        "h100_sxm/vllm/1,context_mla,vllm_flash_attn_mla,bfloat16,bfloat16,16,4,4096,8,0,0.9",
        "h100_sxm/vllm/1,generation_mla,vllm_flashmla,bfloat16,fp8,16,4,1,8,1023,0.2",
        "h100_sxm/vllm/1,context_mla,vllm_other,bfloat16,bfloat16,16,4,4096,8,0,0.9",
        "x/vllm/1,context_mla,vllm_flashmla,bfloat16,bfloat16,16,4,4096,8,0,0.9",
        "h100_sxm/vllm/1,context_mla,vllm_flashmla,bfloat16,fp8,16,4,4096,8,0,0",
    ]
    loaded = load("aiconfigurator/mla.csv#context_mla", MLA + "\n".join(rows) + "\n", tmp_path)
    assert [part.rows.tolist() for part in loaded.parts] == [[2], [3]]
    assert {part.operator_class for part in loaded.parts} == {"latent-attention"}
    assert loaded.parts[0].groups.tolist() == ["16|4"]
    assert dict(loaded.skipped) == {
        "generation_mla: another quantity of this file": 1, "device is not in the catalog": 1,
        "number format or kernel is not modelled": 1, "latency is not positive": 1,
    }  # fmt: skip


def test_the_cpu_bounds_a_short_module(tmp_path: Path) -> None:
    row = "h100_sxm/vllm/1,generation_mla,{},bfloat16,{},16,1,1,8,15,0.2\n"
    text = MLA + row.format("vllm_flash_attn_mla", "bfloat16") + row.format("vllm_flashmla", "fp8")
    wide, narrow = predicted(load("aiconfigurator/mla.csv#generation_mla", text, tmp_path))
    constants = constants_for(CATALOG, "h100-sxm").calibration.latent_attention
    assert constants.module_latency is not None
    assert constants.narrow_latency is not None
    assert wide == pytest.approx(constants.module_latency, rel=0.01)
    assert narrow - wide == pytest.approx(constants.narrow_latency, rel=0.05)


def test_works_of_a_latent_module() -> None:
    one = np.ones(1)
    # 64 sequences of 128 heads: up-projections of 128 x 512 a head, queries of 576 beside them
    works = absorbed(64 * one, 128 * one, one, 4096 * one, 1.0)
    up, *copies, attention, down = works
    assert isinstance(up, Matmul)
    assert isinstance(down, Matmul)
    assert (up.flops.item(), down.flops.item()) == (2.0 * 64 * 128 * 128 * 512, 2.0 * 64 * 128 * 128 * 512)
    assert [copy.bytes.item() for copy in copies] == [64 * 128 * 576 * 4, 64 * 128 * 576 * 3]
    assert attention.cache_bytes.item() == 64 * 4096 * 576
    assert len(absorbed(one, one, one, one, 2.0)) == 4
    # expanded: keys and values of 128 heads from latents of 512, keys widened by 64 rotary elements
    product, keys, attention, *rest = expanded(one, 128 * one, 1000 * one, 1000 * one, True)
    assert isinstance(product, Matmul)
    assert isinstance(keys, Elementwise)
    assert product.flops.item() == 2.0 * 1000 * 512 * 128 * 256
    assert keys.written.item() == 1000 * 128 * 192 * 2
    assert len(rest) == 2
    assert len(expanded(one, one, one, one, False)) == 3
