"""Generation with weights and cache over several memory tiers: FlexGen's comparison on a T4 server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

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

NODES = {"NVIDIA T4 16GB, GCP, 208GB DRAM, 1.5TB SSD": "gcp-n1-t4"}
MODELS = {"OPT-6.7B": "opt-6.7b", "OPT-30B": "opt-30b", "OPT-175B": "opt-175b"}
SYSTEMS = ("FlexGen", "FlexGen 4-bit compression", "HF Accelerate", "DeepSpeed ZeRO-Inference")
PIPELINED = "layers over several machines: no strategy yet"

# FlexGen's blocks of table 2 in GPU batches, and the shares of weights that its placement of whole tensors leaves in DRAM
# and on the SSD: of 20 % asked for on the GPU, 8 % of OPT-30B stay there (the output projection of each layer); its
# OPT-175B puts half of the weights on the SSD
BLOCKS: Mapping[tuple[str, str], Mapping[str, Any]] = {
    ("FlexGen", "OPT-6.7B"): {},
    ("FlexGen", "OPT-30B"): {"batches": 3, "weights": {"dram": 0.918}, "kv": "dram"},
    ("FlexGen", "OPT-175B"): {"batches": 8, "weights": {"dram": 0.5, "nvme": 0.5}, "kv": "dram"},
}


def _content(row: Any) -> Content:
    """FlexGen attends on the CPU where the cache is in DRAM; the others stream weights layer by layer and keep the cache.

    Prefill attention of these systems keeps its scores in memory.
    """
    node, model = named(NODES, row.hardware, UNKNOWN_DEVICE), named(MODELS, row.model, UNKNOWN_MODEL)
    if row.precision != "fp16":
        raise MemroofError("compressed and expanded on the way: no strategy yet")
    tier = row.placement.rsplit(" ", 1)[-1]
    if row.system == "FlexGen":
        strategy = dict(BLOCKS[row.system, row.model])
        if strategy.get("kv") == "dram":
            strategy |= {"attention": "cpu", "cpu_attention": "widened"}
    else:
        place = {"gpu": "gpu", "cpu": "dram", "disk": "nvme"}[tier]
        # HF Accelerate fetches a layer when it is its turn
        strategy = {"weights": place, "prefetch": 0 if row.system == "HF Accelerate" else 1}
    batches = int(strategy.pop("batches", 1))
    return {
        "kind": "offload", "hardware": {"node": node}, "model": model,
        "workload": {
            "prompt": int(row.prompt_len), "output": int(row.gen_len), "batch": int(row.batch) // batches, "batches": batches,
        },
        "strategy": {"precision": "fp16", "fused_attention": False, **strategy},
    }  # fmt: skip


def _split(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str]) -> Sequence[Part]:
    cpu = frame["placement"].str.contains("expert", case=False) | frame["system"].str.contains(
        "KTransformers|socket|llama.cpp"
    )
    on_cpus = host_compute.parts(frame[cpu], catalog, skipped)
    frame = frame[~cpu]
    frame = keep(frame, ~frame["system"].str.contains("Petals"), PIPELINED, skipped)
    frame = keep(frame, frame["hardware"].isin(NODES), UNKNOWN_DEVICE, skipped)
    frame = keep(frame, frame["system"].isin(SYSTEMS), "system is not modelled", skipped)
    own = run_parts(
        frame, catalog, skipped, content=_content, measured=lambda rows: rows["value"].to_numpy(float),
        quantity=metric("generation_throughput"), groups=("system", "model"),
    )  # fmt: skip
    return [*own, *on_cpus]


DATASETS = (TableDataSet("offload/llm_offload_throughput.csv", _split),)
