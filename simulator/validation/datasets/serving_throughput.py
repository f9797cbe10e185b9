"""Published throughput of servers: TensorRT-LLM's tables, MLPerf inference offline, a vLLM closed loop, SGLang prefill."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.specs import Catalog, MemroofError
from simulator.validation.dataset import FloatArray, Part, TableDataSet, keep
from simulator.validation.datasets.runs import (
    TOO_LARGE,
    UNKNOWN_DEVICE,
    UNKNOWN_MODEL,
    Case,
    Content,
    Metrics,
    Quantity,
    metric,
    named,
    run_parts,
    thin,
)
from simulator.validation.datasets.serving import closed_loop, numerics
from simulator.validation.datasets.serving_defaults import wide_modules

if TYPE_CHECKING:
    import pandas as pd

KIND = ["model", "gpu", "precision", "parallelism", "isl"]
LONG_ANSWER = 8192
"""Tokens of an answer beyond which the cache alone makes the rate fall."""
MOST = 40
"""Rows of a table that are simulated; of more, those whose labels hash lowest."""

# --- TensorRT-LLM ----------------------------------------------------------------------------------------------------

TENSORRT_GPUS = {
    "H100": "h100-sxm", "H200": "h200-sxm", "B200": "b200", "GB200": "gb200", "RTXPRO6000": "rtx-pro-6000-blackwell",
}  # fmt: skip
TENSORRT_MODELS = {
    "Llama 3.1 8B": "llama3.1-8b", "Llama 3.3 70B": "llama3.3-70b", "LLaMA v3.3 70B": "llama3.3-70b",
    "Llama 4 Scout": "llama4-scout", "Llama 4 Maverick": "llama4-maverick", "LLaMA v4 Maverick": "llama4-maverick",
    "Qwen3 235B A22B": "qwen3-235b-a22b", "Qwen3-235B-A22B": "qwen3-235b-a22b", "Qwen3 30B A3B": "qwen3-30b-a3b",
    "Qwen3-30B-A3B": "qwen3-30b-a3b", "GPT-OSS 120B": "gpt-oss-120b", "GPT-OSS 20B": "gpt-oss-20b",
    "Llama 3.1 405B": "llama3.1-405b", "LLaMA v3.1 405B": "llama3.1-405b", "LLaMA v3.1 8B": "llama3.1-8b",
}  # fmt: skip
EXPERTS = ("Scout", "Maverick", "Qwen3", "GPT-OSS")
"""Parts of the names of mixtures of experts."""
TOKENS = 3_000_000
"""Output tokens of a run, within 256 to 3,000 requests: enough for ramp and drain to be a small part, as in the tables."""


def degrees(parallelism: str) -> dict[str, int]:
    """Read ``TP8``, ``TP4,PP1`` or ``DEP8`` (attention data-parallel, experts over the same GPUs)."""
    parts = {
        part.rstrip("0123456789"): int(part.lstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
        for part in parallelism.split(",")
    }
    groups, stages = parts.get("DEP", 1), parts.get("PP", 1)
    return {
        "tensor_parallel": parts.get("TP", 1), "attention_data_parallel": groups, "expert_parallel": groups,
        "pipeline_parallel": stages,
    }  # fmt: skip


def _tensorrt_content(row: Any) -> Content:
    """Everything at once, fp8 cache, 2,048 sequences and 8,192 tokens an iteration (trtllm-bench's defaults).

    A request is let in when its cache is sure to fit to its end (the scheduler's default, GUARANTEED_NO_EVICT).
    Graphs are captured for every batch of decodes. Where a row states nothing but a degree of tensor parallelism, experts are
    dealt out whole over as many GPUs (assumed).
    """
    device = named(TENSORRT_GPUS, row.gpu, UNKNOWN_DEVICE)
    cut = degrees(row.parallelism)
    if any(part in row.model for part in EXPERTS):
        cut["expert_parallel"] = max(cut["expert_parallel"], cut["tensor_parallel"])
    requests = int(min(3000, max(256, TOKENS // row.osl))) * cut["attention_data_parallel"]
    model, precision = named(TENSORRT_MODELS, row.model, UNKNOWN_MODEL), str(row.precision).lower()
    return {
        "kind": "serving", "hardware": {"device": device, "count": prod(cut.values()) // cut["expert_parallel"]},
        "model": model,
        "workload": {"arrival": "offline", "requests": requests, "prompt": int(row.isl), "output": int(row.osl)},
        "strategy": {
            **cut, **numerics(precision, device, "fp8"), **wide_modules(model, precision), "max_batch": 2048,
            "max_batched_tokens": 8192, "memory_utilization": 0.95, "schedule_ahead": True, "all_reduce": "push",
            "kv_layout": "contiguous", "reserved_tokens": int(row.isl + row.osl),
        },
    }  # fmt: skip


def _tensorrt(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str]) -> Sequence[Part]:
    frame = keep(
        frame, frame["gpu"] != "RTXPRO6000", "labels of the layout were carried over from a header", skipped
    )
    same = frame.groupby(["model", "gpu", "precision", "parallelism", "isl", "osl"])[
        "output_tokens_per_s_total"
    ]
    frame = keep(
        frame,
        frame["output_tokens_per_s_total"] < 2.0 * same.transform("min"),
        "a node's total under one GPU's label",
        skipped,
    )
    shorter = frame[frame["osl"] <= LONG_ANSWER].groupby(KIND)["output_tokens_per_s_total"].max()
    best = frame[KIND].apply(tuple, axis=1).map(shorter.to_dict())
    faster = (frame["osl"] > LONG_ANSWER) & (frame["output_tokens_per_s_total"] > best)
    frame = keep(frame, ~faster, "faster at longer contexts: a row of another model", skipped)
    frame = thin(frame, ("model", "gpu", "parallelism", "isl", "osl"), MOST, skipped)
    return run_parts(
        frame, catalog, skipped, content=_tensorrt_content,
        measured=lambda rows: rows["output_tokens_per_s_total"].to_numpy(float), quantity=metric("output_throughput"),
        groups=("model", "gpu", "parallelism"),
    )  # fmt: skip


# --- MLPerf ----------------------------------------------------------------------------------------------------------

MLPERF_GPUS = {
    "NVIDIA H100-SXM-80GB": "h100-sxm", "NVIDIA H100-PCIe-80GB": "h100-pcie", "NVIDIA H100-NVL-94GB": "h100-nvl",
    "NVIDIA H200-SXM-141GB": "h200-sxm", "NVIDIA H200-SXM-141GB-CTS": "h200-sxm", "NVIDIA L40S": "l40s",
    "NVIDIA B200-SXM-180GB": "b200", "AMD Instinct MI300X-NPS1-SPX-192GB-750W": "mi300x",
    "AMD MI300X-NPS1-SPX-192GB-750W": "mi300x", "NVIDIA GeForce RTX 4090": "rtx-4090",
}  # fmt: skip
MLPERF_MODELS = {
    "llama2-70b-99": "llama2-70b",
    "llama2-70b-99.9": "llama2-70b",
    "mixtral-8x7b": "mixtral-8x7b",
}
BUS = ("l40s", "rtx-4090", "h100-pcie")
PROMPT = {"mean": 294, "sigma": 0.5, "maximum": 1024}
"""OpenOrca prompts of MLPerf, which end at 1,024 tokens: as long as its answers on average (assumed)."""
SAMPLES = 3000
"""Requests of an offline run: MLPerf's 24,576 are more rounds of the same."""
ROOM = 20e9
"""Bytes of cache a GPU for which the smallest tensor-parallel degree is taken: hundreds of sequences of these models."""


def _mlperf_content(row: Any, catalog: Catalog) -> Content:
    """The fewest GPUs a replica that leave room for a cache, 8-bit weights and cache (4-bit on B200), all requests at once."""
    device = named(MLPERF_GPUS, row.accelerator, UNKNOWN_DEVICE)
    model, gpus = named(MLPERF_MODELS, row.benchmark, UNKNOWN_MODEL), int(row.accelerators_per_node)
    if row.n_nodes > 1:
        raise MemroofError("more than one node")
    mean = row.tokens_per_s / row.samples_per_s
    for tensor in (1, 2, 4, 8):
        if gpus % tensor:
            continue
        if tensor > 1 and device in BUS:
            raise MemroofError("a model over GPUs without NVLink, likely as a pipeline")
        content = {
            "kind": "serving", "hardware": {"device": device, "count": tensor}, "model": model,
            "workload": {
                "arrival": "offline", "requests": SAMPLES, "prompt": PROMPT,
                "output": {"mean": round(float(mean), 1), "sigma": 0.5, "maximum": 1024},
            },
            "strategy": {
                "tensor_parallel": tensor, **numerics("fp4" if device == "b200" else "fp8", device, "fp8"), "max_batch": 1024,
                "max_batched_tokens": 8192, "memory_utilization": 0.95, "schedule_ahead": True,
                "all_reduce": "pull" if device == "mi300x" else "push",
            },
        }  # fmt: skip
        try:
            if _cache_bytes(Case.of(content, catalog)) >= ROOM:
                return content
        except MemroofError as error:
            if str(error) != TOO_LARGE:
                raise
    raise MemroofError(TOO_LARGE)


def _cache_bytes(case: Case) -> float:
    from simulator.serving import make_plan

    return make_plan(case.setup).cache.capacity


def _mlperf(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str]) -> Sequence[Part]:
    frame = keep(
        frame,
        frame["scenario"] == "Offline",
        "server scenario: the rate is the figure, not an input",
        skipped,
    )
    frame = keep(frame, frame["division"] == "closed", "open division: another model or rule", skipped)
    frame = keep(frame, frame["result_valid"] == "VALID", "not a valid result", skipped)
    frame = keep(frame, frame["benchmark"].isin(MLPERF_MODELS), UNKNOWN_MODEL, skipped)
    frame = keep(frame, frame["accelerator"].isin(MLPERF_GPUS), UNKNOWN_DEVICE, skipped)
    frame = keep(frame, frame["tokens_per_s"].notna(), "tokens are not stated", skipped)
    again = frame.duplicated(["system", "samples_per_s"])
    frame = keep(frame, ~again, "the same result for a laxer accuracy", skipped)
    return run_parts(
        frame, catalog, skipped, content=lambda row: _mlperf_content(row, catalog),
        measured=lambda rows: (rows["tokens_per_s"] / rows["accelerators_per_node"]).to_numpy(float),
        quantity=metric("output_throughput_per_gpu"), groups=("accelerator", "accelerators_per_node", "benchmark"),
    )  # fmt: skip


# --- vLLM and SGLang -------------------------------------------------------------------------------------------------

BLOG_MODELS = {"Llama-3.1-8B": "llama3.1-8b", "gpt-oss-20b": "gpt-oss-20b"}
BLOG_CACHES = {"BF16 KV": "bf16", "FP8 KV": "fp8"}


def _blog_content(row: Any) -> Content:
    """Means are given: lengths are taken to lie within a fifth of them."""
    model = named(BLOG_MODELS, row.model, UNKNOWN_MODEL)
    cache = named(BLOG_CACHES, row.config, "caches of different formats in one model")
    formats = {"kv_precision": cache} | (
        numerics("fp4", "h100-sxm", cache) | wide_modules(model, "fp4") if model.startswith("gpt-oss") else {}
    )
    prompt, output = (
        {"uniform": [round(0.8 * mean), round(1.2 * mean)]} for mean in (row.isl_mean, row.osl_mean)
    )
    content = closed_loop("h100-sxm", model, 1, prompt, output, int(row.concurrency), formats)
    return {**content, "workload": {**content["workload"], "requests": int(row.n_requests)}}


def _blog(
    frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str], *, column: str, unit: float, quantity: str
) -> Sequence[Part]:
    return run_parts(
        frame, catalog, skipped, content=_blog_content, measured=lambda rows: rows[column].to_numpy(float) * unit,
        quantity=metric(quantity), groups=("model",),
    )  # fmt: skip


SGLANG_MODELS = {"Qwen3-30B-A3B-BF16": ("qwen3-30b-a3b", "bf16"), "Qwen3-8B-FP8": ("qwen3-8b", "fp8")}
SGLANG_PROMPT = 4096
"""Tokens of a prompt (the table does not say): prefill rates of these models change by a tenth from 1k to 8k."""
DEEPSEEK = {
    "tensor_parallel": 1, "attention_data_parallel": 32, "expert_parallel": 32, "expert_exchange": "normal", "expert_nodes": 4,
    "dual_batch_overlap": True, "precision": "fp8", "max_batched_tokens": 16384,
}  # fmt: skip
"""DeepSeek's prefill in its published profile: experts over 32 GPUs, 4,096 tokens a prompt, 16,384 a GPU, two batches that
overlap (deepseek-ai/profile-data)."""


def _prefill_content(row: Any) -> Content:
    deepseek = row.model == "DeepSeek-V3"
    if not deepseek and row.model not in SGLANG_MODELS:
        raise MemroofError(UNKNOWN_MODEL)
    model, precision = ("deepseek-v3", "fp8") if deepseek else SGLANG_MODELS[row.model]
    device = {"device": named({"H20": "h20", "H800": "h800-sxm"}, row.gpu, UNKNOWN_DEVICE)}
    strategy = DEEPSEEK if deepseek else {"precision": precision, "max_batched_tokens": 16384}
    requests = 8 * (32 if deepseek else 1)
    return {
        "kind": "serving", "hardware": {"cluster": "deepseek-v3-2048-h800", "nodes": 4} if deepseek else device,
        "model": model, "workload": {"arrival": "offline", "requests": requests, "prompt": SGLANG_PROMPT, "output": 1},
        "strategy": {**strategy, "schedule_ahead": True},
    }  # fmt: skip


def _prompts(metrics: Metrics, row: Any) -> tuple[float, float]:
    rate = metrics["request_throughput"]
    gpus = 32 if row.model == "DeepSeek-V3" else 1
    return rate.value * SGLANG_PROMPT / gpus, rate.error


def _prefill(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str]) -> Sequence[Part]:
    quantity: Quantity = _prompts

    def rates(rows: pd.DataFrame) -> FloatArray:
        return np.asarray(rows["prefill_tokens_per_gpu_s"].to_numpy(float))

    return run_parts(
        frame,
        catalog,
        skipped,
        content=_prefill_content,
        measured=rates,
        quantity=quantity,
        groups=("model",),
    )


def _decode(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str]) -> Sequence[Part]:
    keep(frame, np.zeros(len(frame), bool), "batch and context are not stated", skipped)
    return ()


_BLOG = "vllm-blog/kv_precision_serving_h100.csv"
DATASETS = (
    TableDataSet("tensorrt-llm/throughput.csv", _tensorrt),
    TableDataSet("mlperf-inference-v4.1/llm_results.csv#offline", _mlperf),
    TableDataSet(
        f"{_BLOG}#ttft",
        partial(_blog, column="median_ttft_ms", unit=1e-3, quantity="time_to_first_token_p50"),
    ),
    TableDataSet(
        f"{_BLOG}#tpot",
        partial(_blog, column="median_itl_ms", unit=1e-3, quantity="time_per_output_token_p50"),
    ),
    TableDataSet(
        f"{_BLOG}#throughput",
        partial(_blog, column="output_tokens_per_s", unit=1.0, quantity="output_throughput"),
    ),
    TableDataSet("infersim/end_to_end_tgs.csv#prefill", _prefill),
    TableDataSet("infersim/end_to_end_tgs.csv#decode", _decode),
)
