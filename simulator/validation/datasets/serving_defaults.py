"""What serving engines do where nobody says otherwise, and what 4-bit checkpoints keep wide.

The rows of serving points name engine and release, and no settings; these are the engines' defaults, and facts of model cards.
"""

from __future__ import annotations

from typing import Any

MODELS = {
    "Qwen/Qwen3-235B-A22B-FP8": "qwen3-235b-a22b", "Qwen/Qwen3-32B": "qwen3-32b", "nvidia/Qwen3-32B-NVFP4": "qwen3-32b",
    "deepseek-ai/DeepSeek-R1": "deepseek-v3", "deepseek-ai/DeepSeek-V3": "deepseek-v3",
    "nvidia/DeepSeek-R1-NVFP4": "deepseek-v3", "nvidia/DeepSeek-V3.1-NVFP4": "deepseek-v3",
    "meta-llama/Llama-3.1-70B": "llama3.1-70b", "meta-llama/Llama-3.1-8B-Instruct": "llama3.1-8b",
    "nvidia/Llama-3.1-8B-Instruct-FP8": "llama3.1-8b", "openai/gpt-oss-120b": "gpt-oss-120b",
}  # fmt: skip
BUDGET = 8192
"""Tokens of an iteration: what each of these servers has for a default on GPUs of 80 GB and more."""


def is_public(row: Any) -> bool:
    """Whether a row is of the public continuous benchmark."""
    return "gap-analysis" not in str(row.source_dump)


def engine(row: Any, clients: int) -> dict[str, Any]:
    """Return how the engine of a row batches.

    vLLM mixes pieces of prompts with decodes. SGLang runs prompts alone (``enable_mixed_chunk`` is off). TensorRT-LLM mixes
    whole prompts with decodes (``enable_chunked_prefill`` is off), lets a request in when its cache is sure to fit to its end
    (GUARANTEED_NO_EVICT), and gives its cache a share of what the weights leave, more of the whole than others take; its
    budget is taken to hold one prompt at least, and no more in aiconfigurator's own runs (assumed).
    """
    if row.backend == "sglang":
        return {"iteration": "prefill-first", "max_batched_tokens": max(BUDGET, clients)}
    if row.backend != "trtllm":
        return {"max_batched_tokens": max(BUDGET, clients)}
    one = int(row.isl) + clients
    return {
        "memory_utilization": 0.95, "chunked_prefill": False, "iteration": "mixed", "kv_layout": "contiguous",
        "reserved_tokens": int(row.isl + row.osl), "max_batched_tokens": max(BUDGET, one) if is_public(row) else one,
    }  # fmt: skip


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
