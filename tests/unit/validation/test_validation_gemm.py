"""Data sets of matrix products and element-wise kernels: units, formats, reasons, groups."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from simulator.cost import CostModel
from simulator.graph.work import Elementwise, Matmul
from simulator.specs import Catalog
from simulator.validation.dataset import Loaded, constants_for
from simulator.validation.datasets import elementwise, gemm, known, layers

CATALOG = Catalog()


def load(name: str, text: str, tmp_path: Path) -> Loaded:
    file = tmp_path / "table.csv"
    file.write_text(text)
    return {dataset.name: dataset for dataset in known()}[name].load(file, CATALOG)


def cost(device: str) -> CostModel:
    return constants_for(CATALOG, device)


GEMM = """src,kernel_source,gemm_dtype,m,n,k,latency_ms
h100_sxm/vllm/1,x,bfloat16,64,4096,1024,0.01
h100_sxm/vllm/1,x,fp8,64,4096,1024,0.008
h100_sxm/trtllm/1,x,fp8,64,4096,1024,0.02
h100_sxm/vllm/1,x,fp8_block,64,4096,1024,0.02
a100_sxm/trtllm/1,x,int8_wo,64,4096,1024,0.02
a100_sxm/trtllm/1,x,bfloat16,64,4096,1024,0
x9000/vllm/1,x,bfloat16,64,4096,1024,0.01
h100_sxm/vllm/1,x,ternary,64,4096,1024,0.01
"""


def test_every_gemm_row_is_priced_or_counted(tmp_path: Path) -> None:
    main = load("aiconfigurator/gemm.csv", GEMM, tmp_path)
    assert [(p.device, len(p.measured), p.groups.tolist()) for p in main.parts] == [
        ("h100-sxm", 1, ["4096|1024"])
    ] * 3
    assert main.parts[1].measured.tolist() == [0.01e-3]
    assert main.parts[1].rows.tolist() == [2]
    assert dict(main.skipped) == {
        "number format is not modelled": 1, "priced in aiconfigurator/gemm.csv#other-formats": 2, "no time above 0": 1,
        "device is not in the catalog": 1,
    }  # fmt: skip
    others = load("aiconfigurator/gemm.csv#other-formats", GEMM, tmp_path)
    assert sum(len(p.measured) for p in others.parts) == 2
    for loaded in (main, others):
        assert sum(len(p.measured) for p in loaded.parts) + sum(loaded.skipped.values()) == 8


def test_low_precision_rows_hold_the_quantisation(tmp_path: Path) -> None:
    main = load("aiconfigurator/gemm.csv", GEMM, tmp_path)
    model = cost("h100-sxm")
    trtllm, plain, vllm = (p.predict(model)[0] for p in main.parts)
    m, n, k = np.array([64.0]), np.array([4096.0]), np.array([1024.0])
    work = gemm.product(m, n, k, "bfloat16")
    assert plain == model.price(work).time[0]
    # six layers of 16 bits go round
    assert work.reuse_distance == pytest.approx(6 * 2 * 4096 * 1024 + 2 * 64 * 1024 + 2 * 64 * 4096)
    product = model.price(gemm.product(m, n, k, "fp8", "h100_sxm/vllm")).time[0]
    quantise = model.price(Elementwise(2 * m * k, m * k, scalar=m * k, rows=m, chained=True)).time[0]
    assert vllm == pytest.approx(product + quantise)
    # three kernels of PyTorch and one for the scale
    assert trtllm > vllm + 2 * model.calibration.elementwise.base_latency


def test_cutlass_takes_its_tile_from_the_rows() -> None:
    rows, columns = gemm.hopper_rule(np.array([1, 16, 17, 64, 65, 128, 129]))
    assert rows.tolist() == [16, 16, 64, 64, 64, 64, 128]
    assert columns.tolist() == [64, 64, 64, 64, 128, 128, 128]


QUANTISE = """src,op_name,kernel_source,m,k,quant_dtype,latency_ms
h100_sxm/trtllm/1,scale_matrix,torch_ops,4096,4096,fp8,0.018
h100_sxm/trtllm/1,compute_scale,torch_ops,4096,4096,fp8,0.025
l40s/trtllm/1,compute_scale,torch_ops,512,4096,fp8,0.0
"""


def test_quantisation_rows(tmp_path: Path) -> None:
    scale = load("aiconfigurator/elementwise_quantize.csv#compute_scale", QUANTISE, tmp_path)
    assert [p.device for p in scale.parts] == ["h100-sxm"]
    assert scale.skipped["no time above 0"] == 1
    apply = load("aiconfigurator/elementwise_quantize.csv#scale_matrix", QUANTISE, tmp_path)
    model = cost("h100-sxm")
    size = 4096.0 * 4096
    assert apply.parts[0].predict(model)[0] == model.price(Elementwise(2 * size, size)).time
    both = model.price(Elementwise(4 * size, 0.0, kernels=2)).time + 2 * elementwise.REDUCTION_TAIL
    assert scale.parts[0].predict(model)[0] == pytest.approx(both)


VIDUR = (
    "gpu,model,emb_median_ms,input_layernorm_median_ms,attn_pre_proj_median_ms,attn_rope_median_ms,attn_post_proj_median_ms,"
    "post_attention_layernorm_median_ms,mlp_up_proj_median_ms,mlp_act_median_ms,mlp_down_proj_median_ms,add_median_ms,n_head,"
    "n_kv_head,n_embd,n_expanded_embd,vocab_size,use_gated_mlp,num_tokens,num_tensor_parallel_workers\n"
    "a100,llama,0.4,0.2,2.8,0.17,2.4,0.2,12,0.5,6,0.1,64,8,8192,22016,32768,True,4096,4\n"
    "a100,phi,0.4,0.2,2.8,0.17,2.4,,12,0.5,6,0.0,32,32,2560,10240,51200,False,4096,1\n"
    "v9,phi,0.4,0.2,2.8,0.17,2.4,0.1,12,0.5,6,0.1,32,32,2560,10240,51200,False,4096,1\n"
)


def test_vidur_columns_are_shapes_of_a_decoder_layer(tmp_path: Path) -> None:
    loaded = load("vidur/linear_ops_median.csv#attn_pre_proj", VIDUR, tmp_path)
    (part,) = loaded.parts
    assert part.measured == pytest.approx([2.8e-3, 2.8e-3])
    assert part.groups.tolist() == ["llama", "phi"]
    # 16 query heads and 2 of keys and values on each of 4 ranks, 128 wide
    rows = part.frame
    joint = layers._linear(rows, "attn_pre_proj_median_ms")
    assert joint.n.tolist() == [128 * (16 + 2 * 2), 3 * 2560]
    up = layers._linear(rows, "mlp_up_proj_median_ms")
    assert up.n.tolist() == [2 * 22016 / 4, 10240]
    down = layers._linear(rows, "mlp_down_proj_median_ms")
    assert down.k.tolist() == [22016 / 4, 10240]
    # the profiler ran hot
    model = cost("a100-80gb-sxm")
    cold = model.price(Matmul(4096.0, float(joint.n[0]), 8192.0, format="fp16")).time
    assert part.predict(model)[0] > cold


def test_vidur_rows_without_the_operator_are_counted(tmp_path: Path) -> None:
    norm = load("vidur/linear_ops_median.csv#post_attention_layernorm", VIDUR, tmp_path)
    assert dict(norm.skipped) == {"the model has no such operator": 1, "device is not in the catalog": 1}
    add = load("vidur/linear_ops_median.csv#add", VIDUR, tmp_path)
    assert add.skipped["no time above 0"] == 1
    rope = load("vidur/linear_ops_median.csv#attn_rope", VIDUR, tmp_path)
    elements = elementwise._elements(rope.parts[0].frame, "attn_rope_median_ms")
    assert elements.tolist() == [4096 * 128 * (16 + 2), 4096 * 80 * 64]


LAYERS = """gpu,model,tp,table,layer,tokens,time_us,sequences,activated_experts
RTX4090,meta-llama/Llama-3.1-8B,tp1,dense,down_proj,512,400,,
RTX4090,meta-llama/Llama-3.1-8B,tp1,dense,act_fn,512,40,,
RTX4090,meta-llama/Llama-3.1-8B,tp1,per_sequence,lm_head,,1100,4,
RTX4090,meta-llama/Llama-3.1-8B,tp1,per_sequence,sampler,,25,4,
RTX4090,unheard/of,tp1,dense,down_proj,512,400,,
"""


def test_serving_layers(tmp_path: Path) -> None:
    loaded = load("llmservingsim/layer_us.csv", LAYERS, tmp_path)
    assert dict(loaded.skipped) == {
        "model's dimensions are not known": 1,
        "sampler is not modelled as one kernel": 1,
    }
    model = cost("rtx-4090")
    predicted = {p.frame["layer"].iloc[0]: (p.operator_class, p.predict(model)[0]) for p in loaded.parts}
    assert predicted["down_proj"] == ("matmul", model.price(Matmul(512.0, 4096, 14336)).time)
    assert predicted["lm_head"] == ("matmul", model.price(Matmul(4.0, 128256, 4096)).time)
    # 512 rows are several waves: the weights of the product before have passed the cache
    size = 6.0 * 512 * 14336
    cold = model.price(Elementwise(size, 0.0, reuse_distance=1e9)).time
    assert predicted["act_fn"] == ("elementwise", pytest.approx(cold))


def test_torch_layers_are_many_kernels(tmp_path: Path) -> None:
    text = "layer_name,input,kv_cache,tp_size,latency(ns)\nrope,1,0,1,30000\nattn,1,0,1,5000\nq_proj,16,0,1,14000\n"
    loaded = load("llmservingsim/h100_llama31_8b_tp1_layers_ns.csv", text, tmp_path)
    assert dict(loaded.skipped) == {"attention is not among these operators": 1}
    rope = next(p for p in loaded.parts if p.operator_class == "elementwise")
    model = cost("h100-sxm")
    assert rope.measured.tolist() == [30e-6]
    assert rope.predict(model)[0] > 12 * float(model.calibration.elementwise.base_latency or 0)


def test_deepgemm_and_infersim_rows_are_block_scaled(tmp_path: Path) -> None:
    text = (
        "layout,groups,m_per_group,n,k,tflops,mem_bw_gb_s,derived_time_us\ndense,1,64,7168,2048,295,2470,6.37\n"
        "grouped_masked,4,256,4096,7168,932,2064,64.5\n"
    )
    loaded = load("deepgemm/fp8_gemm_h800.csv", text, tmp_path)
    assert dict(loaded.skipped) == {"grouped products belong to MoE": 1}
    model = cost("h800-sxm")
    expected = model.price(Matmul(64.0, 7168.0, 2048.0, 1, "fp8", 1.0, 1.0, scaled=1.0)).time
    assert loaded.parts[0].predict(model)[0] == pytest.approx(expected)
    loaded = load(
        "infersim/gemm_us.csv", "gpu,m,k,n,latency_us,mfu\nH20,16,2048,6144,10.6,0.1\nX,1,1,1,1,1\n", tmp_path
    )
    assert [p.device for p in loaded.parts] == ["h20"]
    assert dict(loaded.skipped) == {"device is not in the catalog": 1}


def test_llmcompass_times_hold_a_call_from_python(tmp_path: Path) -> None:
    text = (
        "gpu,op,dim0,dim1,dim2,time_ms,value,value_unit\nA100,gelu,1000,,,,0.02,Gelements/s\n"
        "A100,gelu,268435456,,,,380,Gelements/s\nA100,matmul,8192,64,64,0.03,2.3,tflops\nMI210,gelu,1024,,,,1,Gelements/s\n"
    )
    loaded = load("llmcompass/kernel_measurements.csv#elementwise", text, tmp_path)
    (part,) = loaded.parts
    assert part.measured == pytest.approx([268435456 / 380e9])
    model = cost("a100-80gb-sxm")
    kernel = model.price(Elementwise(4.0 * 268435456, 0.0)).time
    # 1000 elements at 0.02e9 a second: a call of 50 us
    assert part.predict(model)[0] == pytest.approx(
        kernel + 50e-6 - model.calibration.elementwise.base_latency
    )
    assert sum(loaded.skipped.values()) == 3
    products = load("llmcompass/kernel_measurements.csv#matmul", text, tmp_path)
    assert products.parts[0].measured.tolist() == [3e-5]


def test_best_products_are_rates_under_load(tmp_path: Path) -> None:
    text = (
        "accelerator,dtype,measured_tflops,spec_tflops,best_m,best_n,best_k\nNVIDIA H100 SXM,bf16,794.5,989,2048,2048,13312\n"
        "Abacus,bf16,1,1,1,1,1\n"
    )
    loaded = load("ml-engineering/max_achievable_matmul_tflops.csv", text, tmp_path)
    (part,) = loaded.parts
    assert part.measured.tolist() == [794.5e12]
    assert 0.5 * 989.4e12 < part.predict(cost("h100-sxm"))[0] < 0.95 * 989.4e12
    assert dict(loaded.skipped) == {"device is not in the catalog": 1}
