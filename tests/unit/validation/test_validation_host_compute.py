"""Rows of systems that compute on CPUs, as scenarios: what they say, what is skipped and why."""

from __future__ import annotations

import pandas as pd
import pytest

from simulator.specs import Catalog, MemroofError
from simulator.validation.dataset import constants_for
from simulator.validation.datasets import (
    host_compute,
    host_compute_claims,
    mixed_stream_claims,
    offload,
    offload_claims,
)

CATALOG = Catalog(environment={})
MACHINE = "RTX 4090D 24GB + 2x Xeon Gold 6454S, 1TB DRAM"
TABLE = f"""system,model,hardware,batch,prompt_len,gen_len,placement,precision,metric,value
single socket 8 experts,DeepSeek-V3 671B Q4_K_M,"{MACHINE}",1,500,,routed experts on CPU,q4_k_m,decode tokens/s,8.73
dual socket 6 experts,DeepSeek-V3 671B Q4_K_M,"{MACHINE}",1,500,,routed experts on CPU,q4_k_m,decode tokens/s,13.69
KTransformers 8 experts v0.2.1,DeepSeek-V3 671B Q4_K_M,"{MACHINE}",1,7678,300,routed experts on CPU,q4_k_m,prefill tokens/s,80
KTransformers,MiniMax-M2.1 FP8,1x RTX 5090 32GB + 2x EPYC 9355 PCIe5,1,8192,512,experts on CPU,fp8,prefill tokens/s,1196
KTransformers placement=frequency,Qwen3-Next-80B-A3B FP8,"4x RTX 4090 24GB + Xeon Gold 6454S, TP4",,,,20% of experts on GPU,fp8,tokens/s,61.92
KTransformers placement=dynamic-expert-update,Qwen3-Next-80B-A3B FP8,"4x RTX 4090 24GB + Xeon Gold 6454S, TP4",,,,20% of experts on GPU,fp8,tokens/s,74.73
KTransformers,Unknown,1x RTX 5090 32GB + 2x EPYC 9355 PCIe5,1,64,,experts on CPU,fp8,decode tokens/s,7
"""
COLUMNS = "system,model,workload,strategy,baseline_strategy,metric,value"


def rows(tmp_path):
    file = tmp_path / "o.csv"
    file.write_text(TABLE)
    return file, list(pd.read_csv(file).itertuples(index=False))


def claimed(line: str):
    values = dict(zip(COLUMNS.split(","), line.split(","), strict=True))
    return pd.Series(values).to_frame().T.astype({"value": float}).itertuples(index=False).__next__()


def test_rows_become_scenarios_and_what_was_fitted_on_is_not_judged(tmp_path):
    file, table = rows(tmp_path)
    loaded = offload.DATASETS[0].load(file, CATALOG)
    assert sum(len(part.rows) for part in loaded.parts) == 4
    assert loaded.skipped[host_compute.ON_FITTED] == 1
    assert sum(loaded.skipped.values()) == 3
    for part in loaded.parts:
        predicted = part.predict(constants_for(CATALOG, part.device))
        assert predicted == pytest.approx(part.measured, rel=0.3)
    six, long, minimax, frequent = (host_compute.content(row)["strategy"] for row in table[1:5])
    assert (six["experts_per_token"], six["numa"]) == (6, "copied")
    assert "kernels" not in long and "prefill" not in long
    assert (minimax["kernels"], minimax["prefill"]) == ("kt-kernel", "streamed")
    assert frequent["gpu_experts"] == 0.2 and frequent["expert_placement"] == "frequency"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("llama.cpp,LLaMA-3-8B Q4_K_M,generate,all layers on device,,decode,127", host_compute_claims.RESIDENT),
        ("KTransformers,DeepSeek-V3,prompt 500,KTransformers V0.2 dual socket 8 experts,,decode,12",
         host_compute_claims.ELSEWHERE),
        ("KTransformers,DeepSeek-V3,,,,AMX theoretical peak,73.7", host_compute_claims.INPUT),
        ("KTransformers,DeepSeek-V3,,,,single CUDA graph decode gain,1.23", host_compute_claims.NOT_MODELLED),
    ],
)  # fmt: skip
def test_claims_that_are_inputs_or_stand_elsewhere_are_skipped(line, reason):
    with pytest.raises(MemroofError, match=reason[:30]):
        host_compute_claims.claim(claimed(line))


def test_published_utilisation_and_memory_are_near(tmp_path):
    file = tmp_path / "c.csv"
    file.write_text(
        f"{COLUMNS}\n"
        "KTransformers,DeepSeek-V3,,,,CPU utilisation before deferral,74\n"
        'KTransformers,DeepSeek-V3,,,,"DRAM needed, single socket Q4",382\n'
        "KTransformers,DeepSeek-V3,prompt 2K,KTransformers V0.3 AMX 8 experts,,prefill,255\n"
        'Intel LLM runtime (Neural Speed),3B-20B INT4,,INT4,,"time per generated token, high",80\n'
        "MoE-Lens,Mixtral-8x7B,,MoE-Lens,,GPU utilisation,90\n"
        "MoE-Lens,Mixtral-8x7B,,MoE-Lens,MoE-Lightning,throughput ratio mean,4.6\n"
    )
    loaded = offload_claims.DATASETS[0].load(file, CATALOG)
    assert loaded.skipped == {mixed_stream_claims.BASELINE: 1}
    found = {}
    for part in loaded.parts:
        predicted = part.predict(constants_for(CATALOG, part.device)) / part.measured
        found |= dict(zip(part.rows.tolist(), predicted.tolist(), strict=True))
    near = [found[line] for line in (2, 3, 5, 6)]
    assert near == pytest.approx([1.0] * 4, abs=0.15)
    # 0.3's prefill is three quarters too fast
    assert found[4] == pytest.approx(1.75, abs=0.1)
