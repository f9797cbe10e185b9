"""Harmony (Li et al. 2022): iteration times and peak memory that its own event simulator gives, from its layer profiles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simulator.specs import MemroofError
from simulator.validation.datasets.claim import Claim, figure

PROFILES: Mapping[str, str] = {
    "BERT-96 (seq 512)": "harmony-bert-96",
    "BERT-Large": "harmony-bert-large",
    "GPT2-XL": "harmony-gpt2-xl",
    "ResNet-1026": "harmony-resnet-1026",
}
MODES: Mapping[str, str] = {
    "Harmony vDP (top-1 schedule)": "data-parallel",
    "Harmony vPP (top-1 schedule)": "pipeline",
}
METRICS: Mapping[str, tuple[str, float]] = {
    "iteration time predicted by Harmony own event simulator": ("iteration_time", 1.0),
    # its MB are 2^20 bytes
    "peak GPU memory predicted by Harmony own event simulator": ("reserved_memory", 1.0 / 2**20),
}


def claim(row: Any) -> Claim:
    """Return what a row of ``seed_claims/offload.csv`` claims.

    Raises
    ------
    MemroofError
        For a maximum over configurations that are not stated, and for what is not modelled.
    """
    if row.model not in PROFILES:
        raise MemroofError("Harmony: a maximum over configurations that are not stated")
    if row.metric not in METRICS or row.strategy not in MODES:
        raise MemroofError("Harmony: no such figure is modelled")
    name, scale = METRICS[row.metric]
    return Claim(float(row.value), (content(PROFILES[row.model], MODES[row.strategy]),), figure(name, scale))


def content(layers: str, mode: str) -> dict[str, Any]:
    """Return the scenario that Harmony's simulator ran.

    Two GPUs, minibatch 32, packs of 10 GiB at most, nothing fetched ahead, equal parts of the uplink. The schedule of
    BERT-Large came from all of its ways of packing, the others from packs balanced by time.
    """
    every = ["balanced-time", "balanced-memory", "greedy"]
    return {
        "kind": "offload",
        "hardware": "server-2x1080ti",
        "layers": layers,
        "workload": {"minibatch": 32},
        "strategy": {
            "method": "task-packs",
            "mode": mode,
            "packing": every if layers == "harmony-bert-large" else every[:1],
            "memory_limit": "10 GiB",
            "context_memory": "400 MB",
            "prefetch": False,
            **({"link_sharing": "even"} if mode == "pipeline" else {}),
            "rates": {"swap": "11.5 GiB/s", "peer": "8.2 GiB/s", "message": "16 GiB/s"},
        },
    }
