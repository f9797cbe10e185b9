"""Multi-head latent attention as serving frameworks run it: a module of kernels, each launched by the CPU.

A row times the module between its projections: absorption of the key up-projection (or expansion of the latent), the
kernel that stores the latent, attention, and the value up-projection (or the copies that attention asks for). The module
runs eagerly: where its kernels are short, the CPU's time is what is measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from simulator.cost import CostModel, overlap
from simulator.graph import Attention, Elementwise, Matmul, Work
from simulator.specs import Catalog
from simulator.validation.dataset import FloatArray, Part, TableDataSet, keep, labels
from simulator.validation.datasets.devices import AICONFIGURATOR
from simulator.validation.fit import Constant, Fit

if TYPE_CHECKING:
    import pandas as pd

LATENT, ROPE, NOPE, VALUE = 512.0, 64.0, 128.0, 128.0
"""Dimensions of DeepSeek-V2 and V3 (DeepSeek-AI 2024, section 2.1.2), whose module the rows time."""
KEY = NOPE + ROPE
WIDE = 2.0
CACHE_BYTES = {"bfloat16": 2.0, "fp8": 1.0}
ABSORBED_UP_TO = {"vllm_flash_attn_mla": 512.0, "vllm_flashmla": 128.0, "vllm_triton_mla": 1.0}
"""Longest query that the framework sends to the absorbed (decode) kernel, by kernel: read off the rows, whose time for the
same tokens jumps there."""
PADDED_VALUES = ("vllm_triton_mla",)
"""Kernels that need values as long as keys (FlashAttention-2)."""


def absorbed(
    batch: FloatArray, heads: FloatArray, queries: FloatArray, keys: FloatArray, cache: float
) -> list[Work]:
    """Works of the module on the latent cache, with the queries multiplied by the key up-projection."""
    rows = batch * queries
    width = LATENT + ROPE
    works: list[Work] = [
        Matmul(rows, LATENT, NOPE, heads),
        Elementwise(rows * heads * width * WIDE, rows * heads * width * WIDE),
        Attention(
            batch, heads, 1.0, queries, keys, width, LATENT, width, decode=True, kv_bytes=cache, stores=True
        ),
        Matmul(rows, VALUE, LATENT, heads),
    ]
    if cache < WIDE:
        works.insert(2, Elementwise(rows * heads * width * WIDE, rows * heads * width * cache))
    return works


def expanded(
    batch: FloatArray, heads: FloatArray, queries: FloatArray, keys: FloatArray, padded: bool
) -> list[Work]:
    """Works of the module on keys and values that are made of the latent for all heads."""
    tokens = batch * keys
    rows = batch * queries
    works: list[Work] = [
        Matmul(tokens, heads * (NOPE + VALUE), LATENT),
        Elementwise(tokens * (heads * NOPE + ROPE) * WIDE, tokens * heads * KEY * WIDE),
        # priced as a latent kernel: keys of 192 elements
        Attention(batch, heads, heads, queries, keys, KEY, VALUE, heads * (KEY + VALUE)),
    ]
    if padded:
        # filled with zeros, then copied into
        works.append(Elementwise(tokens * heads * VALUE * WIDE, tokens * heads * (KEY + VALUE) * WIDE))
        works.append(Elementwise(rows * heads * VALUE * WIDE, rows * heads * VALUE * WIDE))
    return works


def module_time(cost: CostModel, works: Sequence[Work], narrow: bool) -> FloatArray:
    """Return the time of the module: its kernels' or, where it is longer, the CPU's [s]."""
    constants = cost.calibration.latent_attention
    floor = float(constants.module_latency or 0.0) + narrow * float(constants.narrow_latency or 0.0)
    kernels = sum(np.asarray(cost.price(work).time) for work in works)
    return np.asarray(overlap(np.asarray(kernels, float), np.asarray(floor)))


def _split(op: str, other: str) -> Callable[[pd.DataFrame, Catalog, Counter[str]], Sequence[Part]]:
    def split(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str]) -> Sequence[Part]:
        frame = keep(frame, frame["op_name"] == op, f"{other}: another quantity of this file", skipped)
        device = frame["src"].str.split("/").str[0].map(AICONFIGURATOR)
        frame = keep(frame, device.notna(), "device is not in the catalog", skipped)
        known = frame["kv_cache_dtype"].isin(list(CACHE_BYTES)) & frame["kernel_source"].isin(
            list(ABSORBED_UP_TO)
        )
        frame = keep(frame, known, "number format or kernel is not modelled", skipped)
        frame = keep(frame, frame["latency_ms"] > 0.0, "latency is not positive", skipped)
        parts: list[Part] = []
        for key, rows in frame.groupby(["src", "kernel_source", "kv_cache_dtype"], sort=True):
            source, kernel, cache = (str(value) for value in key)
            short = (rows["isl"] <= ABSORBED_UP_TO[kernel]) | (op == "generation_mla")
            for absorbs in (True, False):
                chosen = rows[short == absorbs]
                if len(chosen):
                    parts.append(_part(chosen, AICONFIGURATOR[source.split("/")[0]], kernel, cache, absorbs))
        return parts

    return split


def _part(rows: pd.DataFrame, device: str, kernel: str, cache: str, absorbs: bool) -> Part:
    heads, batch, new, step = (
        rows[name].to_numpy(float) for name in ("num_heads", "batch_size", "isl", "step")
    )
    keys = new + step
    width = CACHE_BYTES[cache]
    works = (
        absorbed(batch, heads, new, keys, width)
        if absorbs
        else expanded(batch, heads, new, keys, kernel in PADDED_VALUES)
    )

    def predict(cost: CostModel) -> FloatArray:
        return module_time(cost, works, width < WIDE)

    return Part(
        device, rows["latency_ms"].to_numpy(float) * 1e-3, predict, labels(rows, ["num_heads", "batch_size"]),
        rows["line"].to_numpy(np.int64), rows, "latent-attention",
    )  # fmt: skip


DATASETS = (
    TableDataSet("aiconfigurator/mla.csv#context_mla", _split("context_mla", "generation_mla")),
    TableDataSet("aiconfigurator/mla.csv#generation_mla", _split("generation_mla", "context_mla")),
)

FITS = (
    Fit(
        "latent-attention",
        (
            Constant("latent_attention", "prefill_efficiency", 0.2, 1.5),
            Constant("latent_attention", "decode_efficiency", 0.01, 0.8),
            Constant("latent_attention", "memory_efficiency", 0.3, 1.0),
            Constant("latent_attention", "narrow_efficiency", 0.1, 2.0),
            Constant("latent_attention", "module_latency", 2e-5, 1e-3),
            Constant("latent_attention", "narrow_latency", 1e-6, 3e-4),
        ),
        ("aiconfigurator/mla.csv#context_mla", "aiconfigurator/mla.csv#generation_mla"),
        "heads, batch",
        # Triton's kernel takes 16 heads and 4 parts; FlashMLA and FlashAttention-3 all heads, and parts as they fit
        choices=(
            {("latent_attention", "row_tile"): 16.0, ("latent_attention", "split_parts"): 4.0},
            {("latent_attention", "row_tile"): 128.0, ("latent_attention", "split_parts"): 128.0},
        ),
    ),
)
