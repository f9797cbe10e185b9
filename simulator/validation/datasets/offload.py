"""Generation with weights and cache over several memory tiers: FlexGen's comparison on a T4, ZeRO-Inference's on an A6000."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.specs import Catalog, MemroofError
from simulator.validation.dataset import Part, TableDataSet, keep
from simulator.validation.datasets import host_compute
from simulator.validation.datasets.runs import (
    UNKNOWN_DEVICE,
    UNKNOWN_MODEL,
    Content,
    metric,
    named,
    run_parts,
)

if TYPE_CHECKING:
    import pandas as pd

T4 = "NVIDIA T4 16GB, GCP, 208GB DRAM, 1.5TB SSD"
A6000 = "NVIDIA A6000 48GB, 252GB DRAM, NVMe 5.6GB/s read"
NODES = {T4: "gcp-n1-t4", A6000: "rtx-a6000-server"}
MODELS = {
    "OPT-6.7B": "opt-6.7b", "OPT-30B": "opt-30b", "OPT-66B": "opt-66b", "OPT-175B": "opt-175b",
    "BLOOM-176B": "bloom-176b", "LLAMA2-70B": "llama2-70b",
}  # fmt: skip
SYSTEMS = (
    "FlexGen",
    "FlexGen 4-bit compression",
    "HF Accelerate",
    "DeepSpeed ZeRO-Inference",
    "ZeRO-Inference",
)
PIPELINED = "layers over several machines of a swarm: their network is not stated"
UNSTATED = "lengths of prompt and answer are not stated"

BUCKET: Mapping[str, Any] = {"prefetch_bytes": "100 MB"}
"""What DeepSpeed fetches ahead: its default prefetch bucket, 5e7 elements of two bytes (stage3_prefetch_bucket_size)."""
FLEXGEN: Mapping[str, Any] = {"barrier": True, "split_layers": True}
"""FlexGen's loop."""
CPU: Mapping[str, Any] = {"attention": "cpu", "cpu_attention": "widened"}
GROUPED: Mapping[str, Any] = {"weight_precision": "int4", "weight_group": 64}
"""Weights in 4 bits, 64 values a scale and a minimum, as both systems keep them."""
GROUPED_CACHE: Mapping[str, Any] = {"kv_precision": "int4", "kv_group": 64}

# FlexGen's blocks of table 2 in GPU batches, and the shares of weights that its placement of whole tensors leaves in DRAM
# and on the SSD: of 20 % asked for on the GPU, 8 % of OPT-30B stay there (the output projection of each layer). Compressed
# OPT-30B keeps its weights in fp16 and its cache in 4 bits (bench_suite.py)
BLOCKS: Mapping[tuple[str, str], Mapping[str, Any]] = {
    ("FlexGen", "OPT-6.7B"): {},
    ("FlexGen", "OPT-30B"): {
        "batches": 3, "weights": {"dram": 0.918}, "kv": "dram", "hidden": "dram", "pageable": ["kv"], **FLEXGEN, **CPU,
    },
    ("FlexGen 4-bit compression", "OPT-6.7B"): {**GROUPED, **GROUPED_CACHE, "expansion": "passes"},
    ("FlexGen 4-bit compression", "OPT-30B"): {
        "batches": 8, "weights": "dram", "kv": "dram", "hidden": "dram", "pageable": ["kv"], **FLEXGEN,
        **GROUPED_CACHE, "expansion": "passes",
    },
}  # fmt: skip


def _content(row: Any) -> Content:
    """Return the scenario of a row; prefill attention of these systems keeps its scores in memory."""
    node, model = named(NODES, row.hardware, UNKNOWN_DEVICE), named(MODELS, row.model, UNKNOWN_MODEL)
    strategy = dict(_on_t4(row) if row.hardware == T4 else _on_a6000(row))
    batches = int(strategy.pop("batches", 1))
    return {
        "kind": "offload", "hardware": {"node": node}, "model": model,
        "workload": {
            "prompt": int(row.prompt_len), "output": int(row.gen_len), "batch": int(row.batch) // batches, "batches": batches,
        },
        "strategy": {"precision": "fp16", "fused_attention": False, **strategy},
    }  # fmt: skip


def _on_t4(row: Any) -> Mapping[str, Any]:
    """FlexGen attends on the CPU where the cache is in DRAM; the others stream weights layer by layer and keep the cache."""
    if row.system.startswith("FlexGen"):
        found = BLOCKS.get((row.system, row.model))
        if found is None:
            raise MemroofError("FlexGen's block is not known")
        return found
    place = {"gpu": "gpu", "cpu": "dram", "disk": "nvme"}[row.placement.rsplit(" ", 1)[-1]]
    if row.system == "HF Accelerate":
        # a layer is fetched when it is its turn, from memory that is not pinned
        return {"weights": place, "prefetch": 0, **({"pageable": ["weights"]} if place == "dram" else {})}
    return {"weights": place, **BUCKET} if place != "gpu" else {}


def _on_a6000(row: Any) -> Mapping[str, Any]:
    """Weights in DRAM or on the drive, the cache on the GPU or in DRAM; one batch, attention on the GPU."""
    weights, cache = (part.strip() for part in str(row.placement).split(";"))
    strategy: dict[str, Any] = {"weights": {"cpu_offload": "dram", "nvme_offload": "nvme"}[weights]}
    if cache.endswith("cpu"):
        strategy |= {"kv": "dram"}
    strategy |= FLEXGEN if row.system == "FlexGen" else BUCKET
    if "kv" in strategy:
        # neither pins a cache that large, and DeepSpeed's released script does not pin the weights beside it either
        loose = row.system != "FlexGen" and strategy["weights"] == "dram"
        strategy["pageable"] = ["weights", "kv"] if loose else ["kv"]
    if row.precision == "int4 weights":
        # DeepSpeed expands in one kernel, FlexGen in PyTorch operators
        strategy |= {**GROUPED, "expansion": "passes" if row.system == "FlexGen" else "kernel"}
    return strategy


def _split(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str]) -> Sequence[Part]:
    cpu = frame["placement"].str.contains("expert", case=False) | frame["system"].str.contains(
        "KTransformers|socket|llama.cpp"
    )
    on_cpus = host_compute.parts(frame[cpu], catalog, skipped)
    frame = frame[~cpu]
    frame = keep(frame, ~frame["system"].str.contains("Petals"), PIPELINED, skipped)
    frame = keep(frame, np.isfinite(frame["prompt_len"].astype(float)), UNSTATED, skipped)
    frame = keep(frame, frame["hardware"].isin(NODES), UNKNOWN_DEVICE, skipped)
    frame = keep(frame, frame["system"].isin(SYSTEMS), "system is not modelled", skipped)
    own = run_parts(
        frame, catalog, skipped, content=_content, measured=lambda rows: rows["value"].to_numpy(float),
        quantity=metric("generation_throughput"), groups=("system", "model"),
    )  # fmt: skip
    return [*own, *on_cpus]


DATASETS = (TableDataSet("offload/llm_offload_throughput.csv", _split),)
