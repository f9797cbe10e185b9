"""Systems that compute on CPUs beside accelerators: KTransformers, Fiddler, llama.cpp, Neural Speed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from simulator.specs import Catalog, MemroofError
from simulator.validation.dataset import Part
from simulator.validation.datasets.runs import (
    UNKNOWN_DEVICE,
    UNKNOWN_MODEL,
    Content,
    Metrics,
    named,
    run_parts,
)

if TYPE_CHECKING:
    import pandas as pd

MACHINES: Mapping[str, str] = {
    "RTX 4090D 24GB + 2x Xeon Gold 6454S, 1TB DRAM": "server-4090d-6454s",
    "4x RTX 4090 24GB + Xeon Gold 6454S, TP4": "server-4x4090-6454s",
    "1x RTX 4090 48GB + 2x Xeon 8488C": "server-1x4090-48gb-8488c",
    "2x RTX 4090 48GB + 2x Xeon 8488C": "server-2x4090-48gb-8488c",
    "4x RTX 4090 48GB + 2x Xeon 8488C": "server-4x4090-48gb-8488c",
    "8x RTX 4090 48GB + 2x Xeon 8488C": "server-8x4090-48gb-8488c",
    "1x RTX 4090 48GB + 2x Xeon 8488C PCIe4": "server-1x4090-48gb-8488c",
    "2x RTX 4090 48GB + 2x Xeon 8488C PCIe4": "server-2x4090-48gb-8488c",
    "1x RTX 5090 32GB + 2x EPYC 9355 PCIe5": "server-1x5090-9355",
    "2x RTX 5090 32GB + 2x EPYC 9355 PCIe5": "server-2x5090-9355",
}
MODELS: Mapping[str, tuple[str, float]] = {
    "DeepSeek-V3 671B Q4_K_M": ("deepseek-v3", 4.85),
    "Kimi-K2-Thinking INT4": ("kimi-k2", 4.5),
    "MiniMax-M2.1 FP8": ("minimax-m2", 8.0),
    "Qwen3-Coder-Next FP8": ("qwen3-coder-next", 8.0),
    "Qwen3-Next-80B-A3B FP8": ("qwen3-next-80b-a3b", 8.0),
}
"""Model and mean bits of a weight: Q4_K_M's file over its parameters; 4 bits with a 16-bit scale for each 32; FP8."""
FITTED_SHARES = (
    ("KTransformers placement=uniform", "0% of experts on GPU"),
    ("KTransformers placement=frequency", "50% of experts on GPU"),
)
FITTED: Mapping[str, tuple[str, ...]] = {
    "single socket 8 experts": ("prefill", "decode"),
    "single socket 6 experts": ("prefill", "decode"),
    "dual socket 8 experts": ("prefill",),
    "llama.cpp 8 experts": ("prefill", "decode"),
}
ON_FITTED = "a constant was fitted on it"
STREAMED_FROM = 8192
"""Prompts from which rows that compute experts on CPUs grow with the number of GPUs, and so stream weights to them."""
CONVERSATION = (256, 128)
"""Prompt and output where a row names none."""
SKEW = 0.43
"""Zipf's exponent of the use of Qwen3-Next's experts, fitted on the row 'placement=frequency' with 50 % of them on GPUs."""


def content(row: Any) -> Content:
    """Return a row of the table of offload systems as a scenario."""
    fitted = any(str(row.metric).startswith(kind) for kind in FITTED.get(row.system, ()))
    if fitted or (row.system, row.placement) in FITTED_SHARES:
        raise MemroofError(ON_FITTED)
    node = named(MACHINES, row.hardware, UNKNOWN_DEVICE)
    if row.model not in MODELS:
        raise MemroofError(UNKNOWN_MODEL)
    model, bits = MODELS[row.model]
    strategy: dict[str, Any] = {
        "method": "host-compute", "gpu_weight_bits": bits, "cpu_weight_bits": bits, "precision": "bf16",
        **_system(row),
    }  # fmt: skip
    prompt = CONVERSATION[0] if row.prompt_len != row.prompt_len else int(row.prompt_len)
    output = CONVERSATION[1] if row.gen_len != row.gen_len else int(row.gen_len)
    streams = "layerwise" in row.placement or (not _early(row) and prompt >= STREAMED_FROM)
    if streams:
        # times of prompts grow on top of what the weights take to copy: a layer is copied, then computed
        strategy |= {"prefill": "streamed", "prefetch": 0}
    return {
        "kind": "offload", "hardware": {"node": node}, "model": model,
        "workload": {"prompt": prompt, "output": output}, "strategy": strategy,
    }  # fmt: skip


def _system(row: Any) -> dict[str, Any]:
    """What the name of a system says about sockets, experts and placement."""
    # what the table calls KTransformers without a version are runs of its later kernels
    found: dict[str, Any] = {} if _early(row) else {"kernels": "kt-kernel"}
    if experts := re.search(r"(\d) experts", row.system):
        found["experts_per_token"] = int(experts.group(1))
        found |= {"sockets": 1} if "single socket" in row.system else {"numa": "copied"}
    if share := re.match(r"(\d+)% of experts", str(row.placement)):
        if "dynamic" in row.system:
            raise MemroofError("experts placed anew while it runs: no strategy yet")
        found["gpu_experts"] = int(share.group(1)) / 100.0
        if found["gpu_experts"]:
            found |= PLACEMENTS[row.system.rsplit("=", 1)[-1]]
    return found


def _early(row: Any) -> bool:
    return "experts" in row.system


PLACEMENTS: Mapping[str, Mapping[str, Any]] = {
    "random": {"expert_placement": "uniform"},
    "uniform": {"expert_placement": "uniform"},
    "front-loading": {"expert_placement": "front-loading"},
    "frequency": {"expert_placement": "frequency", "expert_skew": SKEW},
}


def rate(metrics: Metrics, row: Any) -> tuple[float, float]:
    """Return the rate that a row measures; of decoding where it does not say which."""
    name = "prefill_throughput" if row.metric.startswith("prefill") else "decode_throughput"
    return metrics[name].value, metrics[name].error


def parts(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str]) -> Sequence[Part]:
    """Return the rows of systems that compute on CPUs."""
    return run_parts(
        frame, catalog, skipped, content=content, measured=lambda rows: rows["value"].to_numpy(float), quantity=rate,
        groups=("system", "model"),
    )  # fmt: skip
