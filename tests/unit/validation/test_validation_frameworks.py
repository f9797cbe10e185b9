"""Rows of frameworks' tables as steps: FSDP, Megatron-Bridge, Automodel, MLPerf; what a source leaves open is one assumption."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from simulator.specs import Catalog, MemroofError, TrainingStrategy
from simulator.training import simulate
from simulator.validation.dataset import Loaded, constants_for
from simulator.validation.datasets import frameworks, fsdp, mlperf, published, steps
from simulator.validation.datasets.frameworks import HYBRID

CATALOG = Catalog()


def load(name: str, text: str, tmp_path: Path) -> Loaded:
    file = tmp_path / "table.csv"
    file.write_text(text)
    found = {
        dataset.name: dataset
        for module in (frameworks, fsdp, mlperf, published)
        for dataset in module.DATASETS
    }
    return found[name].load(file, CATALOG)


def row(header: str, values: str) -> object:
    """A row of a table as its readers see it."""
    names = header.split(",")
    return type("Row", (), dict(zip(names, (_value(text) for text in values.split(",")), strict=True)))()


def _value(text: str) -> object:
    if text == "":
        return float("nan")
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"True": True, "False": False}.get(text, text)


FOUNDRY = "model,seq_len,n_gpus,gpu,micro_batch,grad_accum,global_batch,tokens_per_s_per_gpu,precision,mp_mode,fsdp_sharding,act_ckpt,act_cpu_offload,n_params"


def test_a_row_of_fsdp() -> None:
    case = fsdp._foundry_case(
        CATALOG,
        row(FOUNDRY, "3b,4096,16,a100_40gb,2,8,256,8777,bf16,PURE,SHARD_GRAD_OP,True,False,2657080320"),
    )
    strategy = case.strategy
    assert (case.node, case.nodes, case.batch, case.sequence) == ("oci-bm.gpu4.8", 2, 256, 4096)
    assert (strategy.zero_stage, strategy.reshard_after_forward, strategy.recompute) == (3, False, "full")
    assert (strategy.parameter_precision, strategy.precision, strategy.gradient_precision) == (
        "fp32",
        "bf16",
        "bf16",
    )
    assert case.model.max_position_embeddings == 4096
    full = fsdp._foundry_case(
        CATALOG,
        row(FOUNDRY, "3b,2048,8,h100_80gb,10,6,480,30586,amp_fp8,DEFAULT,FULL_SHARD,False,False,2651837440"),
    )
    assert (full.strategy.precision, full.strategy.fp8_recipe, full.strategy.gradient_precision) == (
        "fp8",
        "delayed",
        "fp32",
    )
    assert full.strategy.reshard_after_forward
    assert full.strategy.recompute == "none"


def test_offloaded_activations_are_left_out() -> None:
    offloaded = row(FOUNDRY, "7b,2048,8,a100_40gb,2,8,256,8777,bf16,PURE,FULL_SHARD,True,True,1")
    with pytest.raises(MemroofError, match="offloaded"):
        fsdp._foundry_case(CATALOG, offloaded)


def test_tokens_a_second_of_fsdp(tmp_path: Path) -> None:
    text = f"""{FOUNDRY}
125m,512,8,a100_80gb,64,4,2048,100000,amp_bf16,DEFAULT,FULL_SHARD,False,False,124131840
125m,512,8,v100,64,4,2048,100000,amp_bf16,DEFAULT,FULL_SHARD,False,False,124131840
"""
    loaded = load("llm-foundry/mpt_training_mfu.csv", text, tmp_path)
    assert loaded.skipped == {"device is not in the catalog": 1}
    (part,) = loaded.parts
    found = next(part.frame.itertuples(index=False))
    metrics = simulate(fsdp._foundry_case(CATALOG, found).setup(CATALOG)).metrics
    assert part.predict(constants_for(CATALOG, part.device)) == pytest.approx(
        [metrics["tokens_per_second_per_gpu"].value]
    )


TITAN = "model,hardware,n_gpus,fsdp,tp,pp,cp,seq_len,local_batch,global_batch,recompute,techniques,tokens_per_s_per_gpu,peak_memory_gib"
H100 = "H100 96GB HBM2e 500W"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (f"Llama3.1-8B,{H100},8,8,1,1,1,8192,2,16,selective AC,FSDP,5762,82.4",
         {"precision": "bf16", "fused_loss": False, "recompute": "none", "recompute_operators": fsdp.TITAN_AGAIN}),
        (f"Llama3.1-8B,{H100},8,2,1,1,4,131072,1,,full AC,FSDP+CP+compile+float8,1071,84",
         {"precision": "fp8", "context_parallel": 4, "data_parallel": 2, "recompute": "full", "fused_loss": False}),
        (f"Llama3.1-70B,{H100},256,32,8,1,1,8192,16,,full AC,AsyncTP compile float8 tensorwise,942,",
         {"tensor_parallel": 8, "overlap_tensor_parallel": "chunked", "sequence_parallel": True, "micro_batch": 16}),
        (f"Llama3.1-8B,{H100},8,8,1,1,1,8192,1,8,no AC,FSDP,5762,82.4",
         {"recompute": "none", "recompute_operators": ()}),
        (f"Llama3.1-405B,{H100},512,8,8,8,1,8192,32,256,full AC,FSDP+TP+PP interleaved 1F1B,128,",
         {"pipeline_parallel": 8, "schedule": "1f1b-interleaved", "micro_batch": 4, "zero_stage": 1}),
    ],
)  # fmt: skip
def test_rows_of_torchtitan(values: str, expected: dict) -> None:
    case = fsdp._titan_case(CATALOG, row(TITAN, values))
    assert {name: getattr(case.strategy, name) for name in expected} == expected
    assert case.node == "hgx-h100-96gb-hbm2e"


def test_tokens_and_bytes_of_torchtitan(tmp_path: Path) -> None:
    text = f"""{TITAN}
Llama3.1-8B,{H100},8,8,1,1,1,8192,2,16,selective AC,FSDP+compile,6667,77.0
Llama3.1-8B,{H100},64,8,8,1,1,8192,12,,per-op SAC,TP float8 rowwise,3708,
Llama3.1-8B,"H200, 400Gb/s",32,32,1,1,1,8192,2,,(config default),FSDP+compile,10938,
"""
    tps = load("torchtitan/training_tps_memory.csv#tps", text, tmp_path)
    memory = load("torchtitan/training_tps_memory.csv#memory", text, tmp_path)
    assert [part.device for part in tps.parts] == ["h100-96gb-hbm2e", "h200-sxm"]
    assert sum(tps.skipped.values()) == 1
    assert memory.skipped["not measured"] == 1
    (part,) = memory.parts
    assert part.measured == pytest.approx([77.0 * 2**30])
    assert part.relative_errors(constants_for(CATALOG, part.device)).tolist() == [0.0]
    assert part.predict(constants_for(CATALOG, part.device)) == pytest.approx(part.measured, rel=0.1)


BRIDGE = "task,model,system,n_gpus,precision,gbs,mbs,seq_len,fsdp,tp,pp,cp,vp,ep,tokens_per_s_per_gpu"


def test_rows_of_megatron_bridge() -> None:
    case = frameworks._bridge_case(
        CATALOG, row(BRIDGE, "Pre-Training,LLAMA3_70B,DGX-H100,64,FP8,256,1,8192,0,4,8,1,5,,1664")
    )
    strategy = case.strategy
    assert (strategy.precision, strategy.schedule, strategy.virtual_stages) == ("fp8", "1f1b-interleaved", 5)
    assert (strategy.tensor_parallel, strategy.pipeline_parallel, strategy.data_parallel) == (4, 8, 2)
    assert (strategy.zero_stage, strategy.parameter_precision, strategy.layer_split) == (1, "fp8", None)
    assert (case.node, case.nodes) == ("dgx-h100", 8)
    rings = frameworks._bridge_case(
        CATALOG, row(BRIDGE, "Pre-Training,LLAMA3.1_405B,DGX-H100,1024,FP8,1536,1,8192,0,8,8,2,8,,326")
    )
    assert (rings.strategy.context_exchange, rings.strategy.layer_split) == ("ring", (1, *[2] * 62, 1))
    sharded = frameworks._bridge_case(
        CATALOG, row(BRIDGE, "Pre-Training,LLAMA3_70B,DGX-GB300,64,MXFP8,256,2,8192,64,1,1,1,,,5003")
    )
    assert (sharded.node, sharded.strategy.zero_stage, sharded.strategy.fp8_recipe) == (
        "gb300-nvl72",
        3,
        "mxfp8",
    )


def test_adapters_and_ends_of_megatron_bridge() -> None:
    adapters = frameworks._bridge_case(
        CATALOG, row(BRIDGE, "LoRA Performance,LLAMA3_70B,DGX-H100,8,FP8,32,1,4096,,2,4,1,20,,2643")
    )
    assert adapters.strategy.trainable is not None
    assert adapters.strategy.trainable.method == "lora"
    # 126 layers, an embedding and a loss over 128 places; over 32 places four each, but three at the ends
    assert frameworks._ends_counted(126, 128)["layer_split"] == (0, *[1] * 126, 0)
    assert frameworks._ends_counted(126, 32)["layer_split"] == (3, *[4] * 30, 3)
    assert (
        frameworks._ends_counted(80, 40)
        == frameworks._ends_counted(94, 1)
        == frameworks._ends_counted(94, 28)
        == {}
    )


@pytest.mark.parametrize(
    ("name", "experts", "gpus", "nodes"),
    [("deepseek-v3", 64, 8, 4), ("deepseek-v3", 16, 8, 2), ("qwen3-30b-a3b", 16, 8, 2), ("gpt-oss-120b", 64, 8, 4), ("kimi-k2", 64, 72, None)],
)  # fmt: skip
def test_one_copy_of_a_token_for_each_node(name: str, experts: int, gpus: int, nodes: int | None) -> None:
    found = frameworks._one_copy_a_node(CATALOG.model(name), experts, gpus)
    assert found.get("expert_nodes") == nodes


def test_what_megatron_bridge_leaves_out(tmp_path: Path) -> None:
    text = f"""{BRIDGE}
Pre-Training,Nemotron_3_Nano,DGX-B200,8,MXFP8,512,2,8192,0,1,1,1,,8,32768
Pre-Training,DeepSeekV4 Flash,DGX-GB300,128,MXFP8,2048,1,4096,,1,1,1,,64,8224
Pre-Training,GPT OSS 120B,DGX-H100,64,INT4,1280,1,4096,0,1,4,1,,8,5993
Pre-Training,GPT OSS 120B,DGX-H100,64,BF16,1280,1,4096,0,1,4,1,,8,5993
"""
    loaded = load("megatron-bridge/training_throughput.csv", text, tmp_path)
    assert loaded.skipped == {
        HYBRID: 1, "model or system is not in the catalog": 1, "training in INT4: no precision of a training scenario": 1,
    }  # fmt: skip
    (part,) = loaded.parts
    assert part.measured.tolist() == [5993.0]
    assert 0.4 < part.predict(constants_for(CATALOG, part.device))[0] / 5993.0 < 2.0


AUTOMODEL = "task,model,system,n_gpus,gbs,mbs,lbs,grad_accum,seq_len,tp,pp,cp,ep,vp,fsdp,step_time_s"


def test_rows_of_automodel() -> None:
    case = frameworks._automodel_case(
        CATALOG, row(AUTOMODEL, "pretrain,Kimi K2,H100,256,512,1,8,2,4096,1,8,1,32,4,32,8.86")
    )
    # two accumulations of eight sequences: the pipeline is filled and drained twice
    assert (case.batch, case.strategy.virtual_stages, case.strategy.expert_parallel) == (256, 4, 32)
    assert (case.strategy.zero_stage, case.strategy.expert_nodes) == (1, 4)
    experts = frameworks._automodel_case(
        CATALOG, row(AUTOMODEL, "pretrain,GPT-OSS 20B,H100,8,256,2,2,16,4096,1,1,1,-,-,8,10.04")
    )
    assert (experts.batch, experts.strategy.expert_parallel, experts.strategy.zero_stage) == (256, 8, 3)


MLPERF = "submitter,system,benchmark,n_nodes,accel_per_node,accelerator,global_batch_size,grad_accum,median_train_step_s,median_throughput_samples_s"
RUNS = f"""{MLPERF}
NVIDIA,eos,gpt3,32,8,NVIDIA H100-SXM5-80GB,2048,128,18.0,
NVIDIA,eos,gpt3,32,8,NVIDIA H100-SXM5-80GB,2048,128,19.0,
Dell,x,llama2_70b_lora,1,4,NVIDIA H100-SXM5-80GB,8,8,,1.0
Dell,x-POWER,llama2_70b_lora,1,4,NVIDIA H100-SXM5-80GB,8,8,,1.0
Google,v5p,gpt3,1024,4,TPU-v5p,4096,1,,
Google,v5p,llama2_70b_lora,1024,4,TPU-v5p,4096,1,,5.0
"""


def test_adapters_of_automodel() -> None:
    case = frameworks._automodel_case(
        CATALOG, row(AUTOMODEL, "LoRA,Llama3 70B 2-node,H100,16,32,2,2,2,4096,2,1,1,-,1,8,8.32")
    )
    assert case.model.name == "llama3-70b"
    assert case.strategy.trainable is not None
    assert (case.strategy.sequence_parallel, case.strategy.data_parallel, case.batch) == (True, 8, 32)


def test_steps_of_automodel_count_every_flush(tmp_path: Path) -> None:
    text = f"""{AUTOMODEL}
pretrain,Kimi K2,H100,256,512,1,8,2,4096,1,8,1,32,4,32,8.86
pretrain,Nemotron V3 Nano,H100,8,512,4,4,16,4096,1,1,1,8,-,8,15.6
pretrain,Other,H100,8,512,4,4,16,4096,1,1,1,8,-,8,15.6
"""
    loaded = load("nemo-automodel/training_step_time_h100.csv", text, tmp_path)
    assert loaded.skipped == {HYBRID: 1, "model is not in the catalog": 1}
    (part,) = loaded.parts
    case = frameworks._automodel_case(CATALOG, next(part.frame.itertuples(index=False)))
    flush = simulate(case.setup(CATALOG)).metrics["step_time"].value
    assert part.predict(constants_for(CATALOG, part.device))[0] == pytest.approx(2 * flush)


def test_mlperf_layouts_are_searched_and_repeats_averaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[steps.Case] = []
    monkeypatch.setattr(mlperf, "fastest", lambda cases, catalog: tried.extend(cases) or cases[0])
    loaded = load("mlperf-training-v4.1/llm_runs.csv#gpt3", RUNS, tmp_path)
    assert loaded.skipped == {
        "another benchmark: a data set of its own": 3, "no time of a step": 1, "repeat, averaged into its first run": 1,
    }  # fmt: skip
    (part,) = loaded.parts
    assert part.measured.tolist() == [18.5]
    for case in tried:
        strategy = case.strategy
        ranks = strategy.tensor_parallel * strategy.pipeline_parallel * (strategy.data_parallel or 1)
        assert ranks == 256
        assert 2048 // ((strategy.data_parallel or 1) * strategy.micro_batch) == 128
    assert {case.strategy.micro_batch for case in tried} == {1, 2}


def test_mlperf_adapters(tmp_path: Path) -> None:
    loaded = load("mlperf-training-v4.1/llm_runs.csv#lora", RUNS, tmp_path)
    assert loaded.skipped == {
        "another benchmark: a data set of its own": 3, "a copy of another system's runs": 1,
        "system is not in the catalog": 1,
    }  # fmt: skip
    (part,) = loaded.parts
    case = mlperf._case(CATALOG, next(part.frame.itertuples(index=False)))
    strategy = case.strategy
    assert case.node == "hgx-h100-4gpu"
    assert strategy.tensor_parallel * strategy.context_parallel == 4
    assert strategy.trainable is not None
    assert part.measured.tolist() == [1.0]
    step = simulate(case.setup(CATALOG)).metrics["step_time"].value
    assert part.predict(constants_for(CATALOG, part.device))[0] == pytest.approx(8 / step)


def small(batch: int = 32, name: str = "gpt3-1.3b", **options: object) -> steps.Case:
    strategy = TrainingStrategy(data_parallel=8, zero_stage=1, **options)
    return steps.Case("dgx-h100", 1, CATALOG.model(name), batch, 2048, strategy)


def test_the_fastest_of_several_layouts() -> None:
    slow, fast, wrong = small(recompute="full"), small(), small(batch=33)
    assert steps.fastest([wrong, slow, fast], CATALOG) == fast
    with pytest.raises(MemroofError, match="no multiple"):
        steps.fastest([wrong], CATALOG)
    with pytest.raises(MemroofError, match="no layout is predicted to fit"):
        steps.fastest([small(name="gpt3-175b")], CATALOG)


def test_the_least_recomputation_that_fits() -> None:
    assert steps.least_recomputed(small(), CATALOG).strategy.recompute == "none"
    assert steps.least_recomputed(small(name="gpt3-175b"), CATALOG).strategy.recompute_layers is None
    large = small(name="gpt3-6.7b", micro_batch=4)
    part = steps.least_recomputed(large, CATALOG).strategy
    assert (part.recompute, steps.least_recomputed(large, CATALOG, in_parts=False).strategy.recompute) == (
        "full",
        "full",
    )
    layers = part.recompute_layers
    assert layers is not None
    assert 0 < layers < 32
    fewer = part.model_copy(update={"recompute_layers": layers - 1})
    assert steps.fits(replace(large, strategy=part), CATALOG)
    assert not steps.fits(replace(large, strategy=fewer), CATALOG)


def test_gpu_hours_are_tokens_a_second() -> None:
    hours = row("quantity,value,accelerators", "pretrain_gpu_hours_per_1e12_tokens,180000,2048")
    assert published._tokens_a_second(hours) == pytest.approx(1e12 / (180_000 * 3600 / 2048))
    case = published._deepseek_case(CATALOG)
    assert (case.nodes * 8, case.strategy.schedule, case.model.num_hidden_layers) == (2048, "dualpipe", 62)
    assert np.prod([case.strategy.pipeline_parallel, case.strategy.data_parallel]) == 2048
