"""Rows of serving and offload tables as scenarios: units, reasons for what is skipped, groups, one run for all quantities."""

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from simulator.specs import Catalog, MemroofError
from simulator.validation.dataset import constants_for
from simulator.validation.datasets import runs
from simulator.validation.datasets.runs import TOO_LARGE, Case, metric, named, run_parts, thin

CATALOG = Catalog(environment={})
ROWS = pd.DataFrame(
    {
        "model": ["qwen3-0.6b", "qwen3-0.6b", "llama3.1-70b", "no-such-model"],
        "batch": [1, 2, 1, 1],
        "line": [2, 3, 4, 5],
    }
)


def content(row):
    return {
        "kind": "serving", "hardware": {"device": "h100-sxm"}, "model": row.model,
        "workload": {"arrival": "offline", "requests": int(row.batch), "prompt": 64, "output": 8},
    }  # fmt: skip


def parts(skipped):
    return run_parts(
        ROWS, CATALOG, skipped, content=content, measured=lambda rows: rows["batch"].to_numpy(float) * 100.0,
        quantity=metric("output_throughput"), groups=("model",),
    )  # fmt: skip


def test_rows_become_parts_or_are_counted_with_a_reason():
    skipped = Counter()
    (part,) = parts(skipped)
    assert part.device == "h100-sxm"
    assert part.rows.tolist() == [2, 3]
    assert part.measured.tolist() == [100.0, 200.0]
    assert part.groups.tolist() == ["qwen3-0.6b"] * 2
    # 141 GB of weights and a name that the zoo lacks
    assert skipped.pop(TOO_LARGE) == 1
    assert "unknown model 'no-such-model'" in next(iter(skipped))


def test_predictions_and_their_errors_are_of_the_same_run():
    (part,) = parts(Counter())
    cost = constants_for(CATALOG, part.device)
    one, two = part.predict(cost).tolist()
    assert one < two < 2.5 * one
    assert (part.relative_errors(cost) > 0.0).all()


def test_a_run_is_simulated_once_for_each_set_of_constants(monkeypatch):
    case = Case.of(content(ROWS.iloc[0]), CATALOG)
    cost = constants_for(CATALOG, "h100-sxm")
    before = runs._outcome.cache_info().misses
    runs.metrics_of([case, case], cost)
    runs.metrics_of([case], constants_for(CATALOG, "h100-sxm"))
    assert runs._outcome.cache_info().misses <= before + 1


def test_thinning_keeps_the_same_rows_in_any_order():
    frame = pd.DataFrame({"name": [f"row {i}" for i in range(50)]})
    skipped = Counter()
    kept = thin(frame, ("name",), 10, skipped)
    again = thin(frame.sample(frac=1.0, random_state=1), ("name",), 10, Counter())
    assert sorted(kept["name"]) == sorted(again["name"])
    assert skipped == {runs.THINNED: 40}
    assert len(thin(frame, ("name",), 50, skipped)) == 50


def test_names_of_a_source_are_looked_up_or_refused():
    assert named({"H100": "h100-sxm"}, "H100", "why") == "h100-sxm"
    with pytest.raises(MemroofError, match="why"):
        named({}, "H100", "why")


def write(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.write_text(text.replace(" ", ""))
    return file


# --- serving points ---


POINTS = """id,backend,model_path,system,mode,isl,osl,gemm_quant_mode,batch_size,tp_size,pp_size,attention_dp_size,moe_tp_size,moe_ep_size,concurrency,ttft_ms,tpot_ms,source_dump
a,vllm,nvidia/Llama-3.1-8B-Instruct-FP8,h100_sxm,agg,64,16,fp8,4,1,1,1,1,1,4,20,5,db-dump
a,vllm,nvidia/Llama-3.1-8B-Instruct-FP8,h100_sxm,agg,64,16,fp8,4,1,1,1,1,1,4,20,5,db-dump
b,trtllm,nvidia/Llama-3.1-8B-Instruct-FP8,h100_sxm,agg,64,16,fp8,4,1,1,1,1,1,8,21,5.5,gap-analysis
c,vllm,nvidia/Llama-3.1-8B-Instruct-FP8,h100_sxm,disagg,64,16,fp8,4,1,1,1,1,1,4,20,5,db-dump
d,vllm,other,h100_sxm,agg,64,16,fp8,4,1,1,1,1,1,4,20,5,db-dump
e,vllm,nvidia/Llama-3.1-8B-Instruct-FP8,h100_sxm,agg,64,16,fp8,4,1,1,4,1,1,4,20,5,db-dump
f,vllm,nvidia/Llama-3.1-8B-Instruct-FP8,h100_sxm,agg,64,16,fp8,4,2,1,1,1,2,4,20,5,db-dump
g,vllm,nvidia/Llama-3.1-8B-Instruct-FP8,h100_sxm,agg,64,16,,4,1,1,1,1,1,4,20,5,db-dump
h,vllm,nvidia/Llama-3.1-8B-Instruct-FP8,h100_sxm,agg,64,16,fp8,4,1,1,1,1,1,,20,5,db-dump
"""


def test_points_are_closed_loops_in_seconds(tmp_path):
    from simulator.validation.datasets import serving

    tpot, ttft = (data.load(write(tmp_path, "p.csv", POINTS), CATALOG) for data in serving.DATASETS[:2])
    (part,) = tpot.parts
    # the fifth row counts experts of a model that has none
    assert part.measured.tolist() == [0.005, 0.0055, 0.005]
    assert ttft.parts[0].measured.tolist() == [0.02, 0.021, 0.02]
    assert sum(tpot.skipped.values()) == 6
    assert {runs.DISAGGREGATED, runs.UNKNOWN_MODEL} < set(tpot.skipped)
    cost = constants_for(CATALOG, part.device)
    assert (part.predict(cost) < ttft.parts[0].predict(cost)).all()


def test_origins_differ_in_what_they_do_not_state():
    from simulator.validation.datasets import serving

    frame = pd.read_csv(pd.io.common.StringIO(POINTS))
    public, other = (serving._content(row) for row in frame.iloc[[0, 2]].itertuples(index=False))
    assert public["workload"]["prompt"] == {"uniform": [52, 64]}
    assert public["strategy"]["kv_precision"] == "fp8"
    # 8 clients of two replicas of 4
    assert other["workload"] == {
        "arrival": "closed",
        "concurrency": 4,
        "requests": 40,
        "prompt": 64,
        "output": 16,
    }
    assert other["strategy"]["all_reduce"] == "push"
    assert other["strategy"]["max_batched_tokens"] == 68


@pytest.mark.parametrize(
    ("mode", "device", "formats"),
    [
        ("nvfp4", "b200", {"precision": "fp4", "weight_precision": "fp4"}),
        ("nvfp4", "h100-sxm", {"precision": "bf16", "weight_precision": "fp4"}),
        ("fp8_block", "h100-sxm", {"precision": "fp8"}),
        ("int4_wo", "h100-sxm", {"precision": "bf16", "weight_precision": "int4"}),
        ("bfloat16", "h100-sxm", {"precision": "bf16"}),
    ],
)
def test_formats_of_a_mode(mode, device, formats):
    from simulator.validation.datasets.serving import numerics

    assert numerics(mode, device, None) == formats
    assert numerics(mode, device, "fp8") == formats | {"kv_precision": "fp8"}


# --- replayed requests ---


REQUESTS = """gpu,model,request_id,input_toks,output_toks,arrival_time,queued_ts,scheduled_ts,first_token_ts,last_token_ts
RTX4090,Llama-3.1-8B,r0,100,11,0.0,0.0,0.0,0.05,0.25
RTX4090,Llama-3.1-8B,r1,200,21,0.1,0.1,0.1,0.2,0.6
RTX4090,Llama-3.1-8B,r2,50,1,0.3,0.3,0.3,0.4,0.4
V100,Llama-3.1-8B,r0,50,1,0.3,0.3,0.3,0.4,0.4
"""
SETTINGS = """gpu,model,vllm_version,tensor_parallel_size,max_num_seqs,max_num_batched_tokens,max_model_len,dtype,n_requests,num_kv_tokens,num_gpu_blocks
RTX4090,Llama-3.1-8B,0.19.0,1,2,2048,32768,bfloat16,3,41408,2588
RTX4090,Qwen3-32B,0.19.0,1,2,2048,32768,bfloat16,3,,
"""


def test_a_run_is_a_row_of_percentiles(tmp_path):
    from simulator.validation.datasets import serving_requests

    write(tmp_path, "vllm_runs.csv", SETTINGS)
    file = write(tmp_path, "vllm_requests.csv", REQUESTS)
    found = {data.name.partition("#")[2]: data.load(file, CATALOG) for data in serving_requests.DATASETS[:-1]}
    measured = {name: float(loaded.parts[0].measured[0]) for name, loaded in found.items()}
    # times to first token 0.05, 0.1 and 0.1 s; gaps of 20 ms for 10 and 20 further tokens; one token has none
    assert measured == pytest.approx(
        {"ttft_p50": 0.1, "ttft_p90": 0.1, "tpot_p50": 0.02, "tpot_p90": 0.02, "makespan": 0.6}
    )
    assert found["makespan"].skipped == {"no settings of the run in vllm_runs.csv": 1}
    cost = constants_for(CATALOG, "rtx-4090")
    assert 0.3 < float(found["makespan"].parts[0].predict(cost)[0]) < 1.2


def test_a_series_may_show_a_larger_limit_than_the_settings(tmp_path):
    from simulator.validation.datasets import serving_requests

    series = write(
        tmp_path,
        "vllm_timeseries.csv",
        "gpu,model,t,running\nRTX4090,Llama-3.1-8B,1,5\nRTX4090,Llama-3.1-8B,2,9\n",
    )
    assert serving_requests.most_running(series) == {("RTX4090", "Llama-3.1-8B"): 9}
    assert serving_requests.most_running(tmp_path / "none.csv") == {}
    frame = pd.read_csv(pd.io.common.StringIO(REQUESTS))
    run = next(pd.read_csv(pd.io.common.StringIO(SETTINGS)).itertuples(index=False))
    assert serving_requests.replayed(frame, run, 9)["strategy"]["max_batch"] == 9
    assert serving_requests.replayed(frame, run, 0)["strategy"]["max_batch"] == 2


def test_blocks_of_the_cache_are_tokens(tmp_path):
    from simulator.validation.datasets import serving_requests

    loaded = serving_requests.DATASETS[-1].load(
        write(tmp_path, "r.csv", SETTINGS.replace(",2,2048", ",256,2048")), CATALOG
    )
    (part,) = loaded.parts
    assert part.measured.tolist() == [41408.0]
    assert part.predict(constants_for(CATALOG, part.device)) == pytest.approx(41408.0, rel=0.03)
    assert loaded.skipped == {"number of blocks is not stated": 1}


# --- throughput ---


def test_layout_labels_are_read():
    from simulator.validation.datasets.serving_throughput import degrees

    assert degrees("TP8") == {
        "tensor_parallel": 8, "attention_data_parallel": 1, "expert_parallel": 1, "pipeline_parallel": 1
    }  # fmt: skip
    assert degrees("TP4,PP2")["pipeline_parallel"] == 2
    assert degrees("DEP4") == {
        "tensor_parallel": 1, "attention_data_parallel": 4, "expert_parallel": 4, "pipeline_parallel": 1
    }  # fmt: skip


APART = """id,backend,model_path,system,mode,isl,osl,gemm_quant_mode,prefill_num_workers,prefill_tp_size,prefill_pp_size,prefill_attention_dp_size,prefill_moe_tp_size,prefill_moe_ep_size,decode_num_workers,decode_tp_size,decode_pp_size,decode_attention_dp_size,decode_moe_tp_size,decode_moe_ep_size,concurrency,ttft_ms,tpot_ms,source_dump
a,trtllm,Qwen/Qwen3-32B,h100_sxm,disagg,64,16,fp8,2,1,1,1,1,1,1,2,1,1,1,1,4,20,5,db-dump
b,trtllm,Qwen/Qwen3-32B,h100_sxm,disagg,64,16,fp8,,1,1,1,1,1,1,2,1,1,1,1,4,21,6,db-dump
c,trtllm,Qwen/Qwen3-32B,h100_sxm,agg,64,16,fp8,2,1,1,1,1,1,1,2,1,1,1,1,4,22,7,db-dump
"""


def test_points_with_phases_apart_are_fleets(tmp_path):
    from simulator.validation.datasets import serving

    (apart,) = (data for data in serving.DATASETS if data.name.endswith("#apart-tpot"))
    loaded = apart.load(write(tmp_path, "p.csv", APART), CATALOG)
    (part,) = loaded.parts
    assert part.measured.tolist() == [0.005]
    assert sum(loaded.skipped.values()) == 2
    assert 0.001 < part.predict(constants_for(CATALOG, part.device))[0] < 0.05


THROUGHPUT = """model,gpu,precision,parallelism,n_gpus,isl,osl,output_tokens_per_s_total
Llama 3.1 8B,H100,FP8,TP1,1,128,64,100
Llama 3.1 8B,H100,FP8,TP1,1,128,32,100
Llama 3.1 8B,H100,FP8,TP1,1,128,32,800
Llama 3.1 8B,RTXPRO6000,FP4,TP1,1,128,64,100
Qwen3 235B A22B,H100,FP8,DEP4,4,128,64,100
Other,H100,FP8,TP1,1,128,64,100
"""


def test_doubtful_rows_of_the_throughput_table_are_left_out(tmp_path, monkeypatch):
    from simulator.validation.datasets import serving_throughput as module

    monkeypatch.setattr(module, "TOKENS", 64 * 256)
    file = tmp_path / "t.csv"
    file.write_text(THROUGHPUT)
    loaded = module.DATASETS[0].load(file, CATALOG)
    assert loaded.parts[0].rows.tolist() == [2, 3, 6]
    assert sum(loaded.skipped.values()) == 3
    assert loaded.skipped["a node's total under one GPU's label"] == 1
    assert (loaded.parts[0].predict(constants_for(CATALOG, "h100-sxm")) > 0).all()


RESULTS = """division,system,accelerator,accelerators_per_node,n_nodes,benchmark,scenario,result_valid,samples_per_s,tokens_per_s
closed,s1,NVIDIA H100-SXM-80GB,8,1,llama2-70b-99.9,Offline,VALID,10,3000
closed,s1,NVIDIA H100-SXM-80GB,8,1,llama2-70b-99,Offline,VALID,10,3000
closed,s1,NVIDIA H100-SXM-80GB,8,1,llama2-70b-99.9,Server,VALID,9,2700
open,s2,NVIDIA H100-SXM-80GB,8,1,llama2-70b-99.9,Offline,VALID,10,3000
closed,s3,NVIDIA H100-SXM-80GB,8,1,gptj-99,Offline,VALID,10,
closed,s4,NVIDIA H200-SXM-141GB,8,1,llama2-70b-99.9,Offline,VALID,10,3000
closed,s5,NVIDIA H100-SXM-80GB,8,2,llama2-70b-99.9,Offline,VALID,10,3000
closed,s6,NVIDIA L40S,1,1,llama2-70b-99.9,Offline,VALID,10,3000
"""


def test_offline_results_count_for_a_gpu_on_the_fewest_that_hold_the_model(tmp_path):
    from simulator.validation.datasets import serving_throughput as module

    file = tmp_path / "r.csv"
    file.write_text(RESULTS)
    loaded = module.DATASETS[1].load(file, CATALOG)
    measured = {part.device: part.measured.tolist() for part in loaded.parts}
    assert measured == {"h100-sxm": [375.0], "h200-sxm": [375.0]}
    assert loaded.skipped["the same result for a laxer accuracy"] == 1
    # 70 GB of weights leave no room on one H100, and plenty on one H200
    row = next(pd.read_csv(file).itertuples(index=False))
    assert module._mlperf_content(row, CATALOG)["strategy"]["tensor_parallel"] == 2
    assert (
        module._mlperf_content(row._replace(accelerator="NVIDIA H200-SXM-141GB"), CATALOG)["hardware"][
            "count"
        ]
        == 1
    )
    assert loaded.skipped[TOO_LARGE] == 1


def test_batch_and_context_must_be_stated(tmp_path):
    from simulator.validation.datasets import serving_throughput as module

    file = tmp_path / "e.csv"
    file.write_text(
        "model,gpu,prefill_tokens_per_gpu_s,decode_tokens_per_gpu_s\nQwen3-8B-FP8,H20,15000,2600\nDeepSeek-V3,H800,7000,2000\n"
    )
    prefill, decode = (data.load(file, CATALOG) for data in module.DATASETS[-2:])
    assert prefill.parts[0].measured.tolist() == [15000.0]
    assert prefill.parts[1].measured.tolist() == [7000.0]
    assert not prefill.skipped
    assert not decode.parts
    assert decode.skipped == {"batch and context are not stated": 2}
    rate = float(prefill.parts[0].predict(constants_for(CATALOG, "h20"))[0])
    # below the peak of the products: 296 TFLOP/s over twice 8.2e9 parameters
    assert 3_000 < rate < 296e12 / (2 * 7.6e9)


def test_eight_clients_of_an_h100(tmp_path):
    from simulator.validation.datasets import serving_throughput as module

    file = tmp_path / "b.csv"
    file.write_text(
        "model,config,gpu,concurrency,isl_mean,osl_mean,n_requests,median_ttft_ms,median_itl_ms,duration_s,output_tokens_per_s\n"
        "Llama-3.1-8B,BF16 KV,H100,8,2000,200,16,100,10,60,700\nLlama-3.1-8B,both,H100,8,2000,200,16,100,10,60,700\n"
    )
    loaded = [data.load(file, CATALOG) for data in module.DATASETS[2:5]]
    assert [float(found.parts[0].measured[0]) for found in loaded] == [0.1, 0.01, 700.0]
    assert loaded[0].skipped == {"caches of different formats in one model": 1}


# --- one sequence, offload ---


LLAMA_CPP = """gpu,model,phase,n_tokens,tokens_per_s,status
4090 24GB,8B Q4_K_M,decode,512,127,ok
4090 24GB,8B Q4_K_M,prefill,512,6000,ok
4090 24GB,8B F16,decode,8192,,oom
4090 24GB,70B Q4_K_M,decode,512,,oom
4090 24GB * 2,70B Q4_K_M,decode,512,19,ok
3070 8GB,8B Q4_K_M,decode,512,70,ok
A100 SXM 80GB,8B F16,prefill,512,680,ok
"""


def test_single_gpus_decode_and_prefill(tmp_path):
    from simulator.validation.datasets import decode

    file = tmp_path / "l.csv"
    file.write_text(LLAMA_CPP)
    decoded, prefilled = (data.load(file, CATALOG) for data in decode.DATASETS[:2])
    assert [part.measured.tolist() for part in (*decoded.parts, *prefilled.parts)] == [[127.0], [6000.0]]
    assert decoded.skipped["out of memory, as predicted"] == 1
    assert decoded.skipped["out of memory, predicted to fit"] == 1
    assert decoded.skipped[decode.SPLIT_LAYERS] == decoded.skipped[runs.UNKNOWN_DEVICE] == 1
    assert any("implausible" in reason for reason in prefilled.skipped)
    rate = float(decoded.parts[0].predict(constants_for(CATALOG, "rtx-4090"))[0])
    # 4.9 bits of 8.03e9 weights (but for the embedding) at 1,008 GB/s are the ceiling
    assert rate < 1008e9 / (7.5e9 * 4.9 / 8)


SYSTEMS = """model,system,device,decode_tokens_per_s,engine
Llama 3.2:3b,Intel 265K Custom PC (Nvidia RTX 4090),GPU,334,ollama
Llama2 7B EXL2 4.0 bpw g-,RTX 4090,GPU,211,exllamav2
Llama 7B GPTQ g128,RTX 4090,GPU,205,exllamav2
Llama 7B GPTQ g128,RTX 3090 Ti,GPU,205,exllamav2
TinyLlama 1.1B EXL2 3.0 bpw g-,RTX 4090,GPU,600,exllamav2
Unknown,Ryzen (Nvidia 4090),GPU,600,ollama
Llama 3.2:3b,Pi 5 - 8GB,CPU,5,ollama
Llama 3.1:70b,Ryzen 9 7900X (Nvidia 4090),GPU/CPU,4,ollama
"""


def test_desktop_systems_are_known_by_their_gpu(tmp_path):
    from simulator.validation.datasets import decode

    file = tmp_path / "s.csv"
    file.write_text(SYSTEMS)
    loaded = decode.DATASETS[2].load(file, CATALOG)
    (part,) = loaded.parts
    assert part.rows.tolist() == [2, 3, 4]
    assert loaded.skipped == {
        runs.UNKNOWN_DEVICE: 1,
        runs.UNKNOWN_MODEL: 2,
        decode.ON_CPU: 1,
        "layers on GPU and CPU: no strategy yet": 1,
    }


T4 = "NVIDIA T4 16GB, GCP, 208GB DRAM, 1.5TB SSD"
OFFLOADED = f"""system,model,hardware,batch,prompt_len,gen_len,placement,precision,metric,value
FlexGen,OPT-30B,"{T4}",144,512,4,lowest tier used: cpu,fp16,throughput,7.32
HF Accelerate,OPT-6.7B,"{T4}",2,512,4,lowest tier used: gpu,fp16,throughput,25
DeepSpeed ZeRO-Inference,OPT-6.7B,"{T4}",16,512,4,lowest tier used: cpu,fp16,throughput,9
FlexGen 4-bit compression,OPT-6.7B,"{T4}",72,512,4,lowest tier used: gpu,4bit w+kv,throughput,29
Petals,OPT-6.7B,"{T4}",2,512,4,lowest tier used: gpu,fp16,throughput,8
KTransformers,DeepSeek-V3,RTX 4090D,1,512,4,routed experts on CPU,q4,decode,13
ZeRO-Inference,OPT-30B,A6000,8,512,4,cpu_offload,fp16,throughput,9
"""


def test_offloaded_generation_is_placed_as_its_system_does(tmp_path):
    from simulator.validation.datasets import offload

    file = tmp_path / "o.csv"
    file.write_text(OFFLOADED)
    loaded = offload.DATASETS[0].load(file, CATALOG)
    (part,) = loaded.parts
    assert part.rows.tolist() == [2, 3, 4, 5]
    assert sum(loaded.skipped.values()) == 3
    assert {offload.PIPELINED, runs.UNKNOWN_DEVICE} <= set(loaded.skipped)
    rows = list(pd.read_csv(file).itertuples(index=False))
    flexgen, accelerate, deepspeed = (offload._content(row) for row in rows[:3])
    assert flexgen["workload"] == {"prompt": 512, "output": 4, "batch": 48, "batches": 3}
    assert flexgen["strategy"]["attention"] == "cpu"
    assert accelerate["strategy"]["weights"] == "gpu"
    assert deepspeed["strategy"] == {
        "precision": "fp16",
        "fused_attention": False,
        "weights": "dram",
        "prefetch_bytes": "100 MB",
    }
    assert np.isfinite(part.predict(constants_for(CATALOG, "t4"))).all()


@pytest.mark.parametrize(
    ("system", "placement", "precision", "expected"),
    [
        (
            "ZeRO-Inference",
            "nvme_offload ; kv cache on cpu",
            "fp16",
            {"weights": "nvme", "kv": "dram", "pageable": ["kv"]},
        ),
        (
            "FlexGen",
            "cpu_offload ; kv on gpu",
            "int4 weights",
            {
                "weights": "dram",
                "weight_precision": "int4",
                "weight_group": 64,
                "expansion": "passes",
                "barrier": True,
            },
        ),
    ],
)
def test_rows_of_the_a6000_say_where_weights_and_cache_lie(system, placement, precision, expected):
    from simulator.validation.datasets import offload

    columns = ("system", "model", "hardware", "batch", "prompt_len", "gen_len", "placement", "precision")
    row = pd.DataFrame(
        [(system, "OPT-30B", offload.A6000, 24, 512, 32, placement, precision)], columns=columns
    )
    content = offload._content(next(row.itertuples(index=False)))
    assert content["hardware"] == {"node": "rtx-a6000-server"}
    assert expected.items() <= content["strategy"].items()


def claimed(**row):
    from simulator.validation.datasets.streaming_claims import claim

    base = {
        "system": "FlexGen", "model": "OPT-175B", "workload": "prompt 512, generate 32", "strategy": "FlexGen",
        "metric": "generation throughput", "value": 0.69,
    }  # fmt: skip
    return claim(next(pd.DataFrame([{**base, **row}]).itertuples(index=False)))


def test_claims_of_flexgen_are_scenarios_with_their_drive_and_stages():
    slow = claimed(workload="prompt 512, SSD 0.5 GB/s, generate 32", value=0.30)
    assert slow.measured == 0.30
    # nameplate over what the paper reads: 2.65 over 1.6
    assert slow.contents[0]["hardware"]["changes"]["components"]["nvme"] == {"bandwidth": "0.8281 GB/s"}
    four = claimed(workload="prompt 512, 4x T4 pipeline, generate 32")
    assert four.contents[0]["hardware"] == {"node": "gcp-n1-t4", "nodes": 4}
    assert four.contents[0]["strategy"]["pipeline_parallel"] == 4
    faster, slower = claimed(
        system="ZeRO-Inference", workload="prompt 4, generate 10", metric="throughput ratio", value=1.14
    ).contents
    assert faster["strategy"]["prefetch_bytes"] == "100 MB"
    assert slower["strategy"]["prefetch"] == 0


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"metric": "decode cache read"}, "no outcome"),
        ({"strategy": "another policy"}, "policy"),
        ({"system": "ZeRO-Inference"}, "batch"),
    ],
)
def test_claims_that_are_no_scenario_say_why(row, reason):
    with pytest.raises(MemroofError, match=reason):
        claimed(**row)
