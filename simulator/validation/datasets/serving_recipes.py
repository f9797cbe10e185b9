"""Settings that the servers of the published points ran with, where they are known.

The public continuous benchmark keeps the launch script of each run (SemiAnalysisAI/InferenceX on GitHub, benchmarks/ and
.github/configs/nvidia-master.yaml, as they stood on the day of the run). They say how many tokens an iteration holds, how
many sequences run, how often SGLang looks who has come, whether TensorRT-LLM collects prompts, whether tokens are drafted,
and, before 21 January 2026, that nothing was sent to warm the server up. Of the other runs, aiconfigurator's own, next to
nothing is stated. Everything else is the engines' default: SGLang runs prompts alone, TensorRT-LLM whole ones beside
decodes, vLLM pieces beside decodes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

MODELS = {
    "Qwen/Qwen3-235B-A22B-FP8": "qwen3-235b-a22b", "Qwen/Qwen3-32B": "qwen3-32b", "nvidia/Qwen3-32B-NVFP4": "qwen3-32b",
    "deepseek-ai/DeepSeek-R1": "deepseek-v3", "deepseek-ai/DeepSeek-V3": "deepseek-v3",
    "nvidia/DeepSeek-R1-NVFP4": "deepseek-v3", "nvidia/DeepSeek-V3.1-NVFP4": "deepseek-v3",
    "meta-llama/Llama-3.1-70B": "llama3.1-70b", "meta-llama/Llama-3.1-8B-Instruct": "llama3.1-8b",
    "nvidia/Llama-3.1-8B-Instruct-FP8": "llama3.1-8b", "openai/gpt-oss-120b": "gpt-oss-120b",
}  # fmt: skip
WARMED_UP = "2026-01-21"
"""From this day on the public client sends two requests a client before it measures."""
DRAFTED_ON = {
    ("trtllm", "h200_sxm", "fp8"): ("2026-01-14",),
    ("trtllm", "b200_sxm", "fp8"): ("2026-01-14", "2026-02-05"),
    ("trtllm", "b200_sxm", "fp4"): ("2026-01-14", "2026-02-06"),
}
"""Days on which DeepSeek-R1 was measured with multi-token prediction alone."""
DRAFTED_BESIDE = (("sglang", "b200_sxm", "fp8"), ("sglang", "b300_sxm", "fp8"))
"""Where it was measured with and without on one day; at the same point the shorter time per token is that of drafts, which
alone were measured with more clients than ``UNDRAFTED``."""
UNDRAFTED = 64
DEEPSEEK = ("deepseek-ai/DeepSeek-R1", "deepseek-ai/DeepSeek-V3")
POINT = [
    "measured_on", "backend", "system", "precision", "tp_size", "attention_dp_size", "moe_ep_size", "isl", "osl", "concurrency",
]  # fmt: skip


def is_public(row: Any) -> bool:
    """Whether a row is of the public continuous benchmark."""
    return "gap-analysis" not in str(row.source_dump)


def settings(row: Any) -> dict[str, Any]:
    """Return what is known of a server's strategy; batch and token limits are those of one group of ranks."""
    if not is_public(row):
        return _generated(row)
    if row.backend == "sglang":
        return {"iteration": "prefill-first"} | (_sglang(row) if row.model_path in DEEPSEEK else {})
    return _tensorrt(row) if row.backend == "trtllm" else {}


def _generated(row: Any) -> dict[str, Any]:
    """Settings of aiconfigurator's own runs.

    Its generator lets SGLang mix prompts and decodes (enable_mixed_chunk; ai-dynamo/aiconfigurator,
    generator/rule_plugin/benchmark/sglang.rule). TensorRT-LLM takes one prompt's tokens in an iteration (assumed).
    """
    if row.backend == "trtllm":
        return {"max_batched_tokens": int(row.isl) + int(row.concurrency)}
    return {}


def unquantized(row: Any) -> dict[str, Any]:
    """Return what a row's 4-bit checkpoint keeps in 16 bits, as :func:`wide_modules` says."""
    return wide_modules(MODELS.get(str(row.model_path), ""), str(row.gemm_quant_mode))


def wide_modules(model: str, mode: str) -> dict[str, Any]:
    """Return what a 4-bit checkpoint keeps in 16 bits, besides embedding, gates and logits.

    gpt-oss has only its experts in MXFP4 (its model card). Of DeepSeek-R1 all of attention but its output projection (model
    card of nvidia/DeepSeek-R1-0528-FP4-v2: against the first one, which leaves attention out, wo is quantised too).
    """
    if mode not in ("nvfp4", "fp4"):
        return {}
    names: tuple[str, ...] = ()
    if model.startswith("gpt-oss"):
        names = ("qkv", "output")
    elif model == "deepseek-v3":
        names = ("q_a", "q_b", "kv_a", "kv_b", "k_up", "v_up")
    return {"unquantized": [f"attention.{name}" for name in names]} if names else {}


def _sglang(row: Any) -> dict[str, Any]:
    """DeepSeek-R1: ``--scheduler-recv-interval``, ``--chunked-prefill-size``, ``--max-running-requests``."""
    if row.system == "h200_sxm":
        return {"max_batched_tokens": 32768, "max_batch": 512 if row.osl == row.isl else 256}
    if row.system not in ("b200_sxm", "b300_sxm"):
        return {}
    interval = 30 if row.concurrency >= 16 else 10
    if row.precision == "fp4":
        return {"receive_interval": interval, "max_batched_tokens": 16384, "max_batch": 256}
    if row.tp_size == 4:
        return {
            "receive_interval": 10,
            "max_batched_tokens": 8192,
            "max_batch": 32,
            "memory_utilization": 0.95,
        }
    return {"receive_interval": interval, "max_batched_tokens": 32768, "max_batch": 128}


def _tensorrt(row: Any) -> dict[str, Any]:
    """``max_num_tokens`` and ``batch_wait_*``; a request is let in when its cache is sure to fit to its end.

    ``free_gpu_memory_fraction`` is a share of what the weights leave: more of the whole than other engines take.
    """
    common = {
        "memory_utilization": 0.95, "chunked_prefill": False, "iteration": "mixed", "kv_layout": "contiguous",
        "reserved_tokens": int(row.isl + row.osl),
    }  # fmt: skip
    short = row.isl == row.osl == 1024
    if row.model_path == "openai/gpt-oss-120b":
        return {**common, "max_batched_tokens": 20000}
    if row.model_path == "meta-llama/Llama-3.1-70B":
        wait = {"batch_wait": {"steps": 20, "token_share": 0.9}} if short and row.tp_size < 8 else {}
        return {**common, "max_batched_tokens": 16384, **wait}
    if row.model_path not in DEEPSEEK or row.system not in ("b200_sxm", "h200_sxm"):
        return {}
    tokens = int(row.concurrency + row.isl + 127) // 64 * 64
    if str(row.measured_on) < WARMED_UP:
        return {**common, "max_batched_tokens": tokens}
    collects = short and row.precision == "fp8" and row.system == "b200_sxm" and row.concurrency >= 64
    wait = {"batch_wait": {"steps": 40, "token_share": 0.8}} if collects else {}
    return {**common, "max_batched_tokens": max(8192, tokens), **wait}


def drafted(frame: pd.DataFrame) -> Any:
    """Return which rows are of servers that draft tokens, with an acceptance that nobody states."""
    marks = np.zeros(len(frame), bool)
    deepseek = frame["model_path"].isin(DEEPSEEK).to_numpy()
    kind = list(zip(frame["backend"], frame["system"], frame["precision"], strict=True))
    day = frame["measured_on"].astype(str)
    marks |= deepseek & np.array([d in DRAFTED_ON.get(k, ()) for k, d in zip(kind, day, strict=True)], bool)
    beside = deepseek & np.array([k in DRAFTED_BESIDE for k in kind], bool) & (day >= WARMED_UP).to_numpy()
    times = frame.assign(tpot=frame["tpot_ms"].where(beside)).groupby(POINT, dropna=False)["tpot"]
    shorter = (frame["tpot_ms"] < 0.999 * times.transform("max")).to_numpy()
    more = (frame["concurrency"] > np.where(frame["isl"] > frame["osl"], 4, UNDRAFTED)).to_numpy()
    return marks | (beside & (shorter | (more & (frame["tp_size"] == 8).to_numpy())))


def unwarmed(frame: pd.DataFrame) -> Any:
    """Return which rows are of servers that compile kernels in the measured run: SGLang's, of its first requests."""
    day = frame["measured_on"].astype(str)
    public = frame["measured_on"].notna() & (day < WARMED_UP)
    return (public & (frame["backend"] == "sglang")).to_numpy()
