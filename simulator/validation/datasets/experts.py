"""Layers of experts: fused ones as serving frameworks run them, and grouped products alone.

aiconfigurator times the fused layer (routing given): rows sorted by expert, the up product, the activation, the down
product, the sum over a token's experts. vLLM's Triton kernel takes its tile from a table where one is shipped for the
shape, else by a rule; TensorRT-LLM's CUTLASS kernels are tuned for each shape. What InferSim and DeepGEMM time is one
grouped product of DeepGEMM.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.cost import CostModel
from simulator.graph.routing import busiest_share, load_nodes, routed
from simulator.graph.work import Elementwise, Matmul, Route, Work
from simulator.specs import Catalog
from simulator.validation.dataset import FloatArray, Part, TableDataSet, keep, labels
from simulator.validation.datasets.devices import AICONFIGURATOR, PLAIN
from simulator.validation.fit import Constant, Fit

if TYPE_CHECKING:
    import pandas as pd

FORMATS: Mapping[str, tuple[str, float, float, float]] = {
    "bfloat16": ("bf16", 2.0, 2.0, 0.0), "fp8": ("fp8", 1.0, 1.0, 0.0), "fp8_block": ("fp8", 1.0, 1.0, 1.0),
    "int4_wo": ("bf16", 2.0, 0.53125, 0.0),
}  # fmt: skip
"""Format of the product, bytes of activations and weights (a scale of 16 bits for 128 weights of 4 bits), scales of blocks."""
KERNELS = ("vllm_fused_moe", "vllm_marlin_moe", "moe_torch_flow_cutlass", "moe_torch_flow_nongated")
SKEWS: Mapping[str, float] = {"balanced": 0.0, "power_law_1.01": 1.01, "power_law_1.2": 1.2}
SUM_KERNELS = 4.0
"""Experts a token up to which vLLM has a sum of its own; beyond them PyTorch's generic one."""
LOW_TILE = 64.0
"""Rows of DeepGEMM's lower tile (a warp group's matrix instruction on Hopper); the other has twice as many."""
RAGGED = 1.6
"""Spread of products with ragged groups over that of dense ones: how many rows each group has is not in the table."""
TIES = 16.0
"""Experts of equal (zero) load that keep their order where the benchmark's generator hands out what rounding left over: the
first of them all lie on the rank that it measures."""

TUNED: Mapping[tuple[str, str], Mapping[int, tuple[int, ...]]] = {
    ("a100-80gb-sxm", "bfloat16"): {
        1: (1792, 3584, 7168, 14336), 8: (1792, 2048, 3584, 4096, 7168), 16: (1344, 1792, 2688, 3584, 7168, 14336),
        64: (640, 1280), 128: (192,), 512: (64, 128),
    },
    ("h100-sxm", "bfloat16"): {
        1: (3072,), 8: (1792, 2048, 3584, 4096, 7168), 16: (1344, 1792, 2688), 62: (256, 512), 64: (320, 640, 1280),
        72: (384, 768), 128: (192, 512, 928, 1856), 256: (512,), 512: (128, 256, 512),
    },
    ("h100-sxm", "fp8"): {
        8: (2048, 3584, 4096, 7168, 8192, 14336), 16: (800, 3200, 6400), 64: (320, 640, 1280, 2560, 8960),
        128: (352, 704, 8960),
    },
    ("h100-sxm", "fp8_block"): {256: (128, 384), 512: (256,)},
    ("h200-sxm", "bfloat16"): {
        8: (1792, 2048, 3584, 4096, 7168, 14336), 16: (1024, 2048), 64: (320, 640, 1280, 2560),
        128: (192, 384, 768, 1024), 512: (64, 128, 256, 512),
    },
    ("h200-sxm", "fp8"): {
        8: (1792, 2048, 3584, 4096, 7168, 8192, 14336), 16: (1024, 2048), 64: (320, 640, 1280, 2560), 128: (512, 1024),
        160: (192,),
    },
    ("h200-sxm", "fp8_block"): {8: (2048,), 32: (2048,), 128: (384, 768), 256: (256,), 384: (128,)},
}  # fmt: skip
"""Shapes (experts of a rank, width of an expert) that vLLM 0.14 ships tuned tiles for, by device and format (Apache-2.0)."""


@dataclass(frozen=True)
class FusedLayer:
    """Rows of the fused layer: arrays of one length. Dimensions are of one rank: ``experts`` and ``width`` are shares."""

    tokens: FloatArray
    hidden: FloatArray
    width: FloatArray
    per_token: FloatArray
    experts: FloatArray
    copies: FloatArray
    active: FloatArray
    reach: FloatArray
    skew: float
    tuned: Any
    dtype: str
    vllm: bool
    gated: bool

    def works(self) -> list[Work]:
        """Return the kernels of the layer, the products apart."""
        form = FORMATS[self.dtype]
        # vLLM's kernels pass over all copies, also those of other ranks
        copies = self.tokens * self.per_token if self.vllm else self.copies
        gates = 2.0 if self.gated else 1.0
        outputs = copies * self.hidden
        generic = self.vllm & (self.per_token > SUM_KERNELS)
        works: list[Work] = [
            Route(self.tokens * self.per_token, np.where(generic, outputs, 0.0)),
            Elementwise(2.0 * gates * copies * self.width, 2.0 * copies * self.width),
            Elementwise(np.where(generic, 0.0, 2.0 * outputs), 2.0 * self.tokens * self.hidden),
        ]
        if form[0] == "fp8":
            works.append(
                Elementwise(2.0 * self.tokens * self.hidden, self.tokens * self.hidden, chained=True)
            )
            works.append(Elementwise(2.0 * copies * self.width, copies * self.width, chained=True))
        if not self.vllm:
            works.append(Elementwise(form[1] * outputs, form[1] * outputs, chained=True))
        return works

    def products(self, tuned: bool) -> tuple[Matmul, Matmul]:
        """Return the up and the down product with tuned tiles, or those of vLLM's rule."""
        form, left, right, scaled = FORMATS[self.dtype]
        rows = self.copies / self.active
        tile, loop = (None, None) if tuned else self._rule()

        def product(n: FloatArray, k: FloatArray, sharing: Any) -> Matmul:
            return Matmul(
                rows, n, k, self.active, form, left, right, grouped=True, scaled=scaled, tile=tile, loop=loop,
                skew=self.skew, reach=self.reach, sharing=sharing,
            )  # fmt: skip

        # up reads a token for each of its experts here
        sharing = np.maximum(self.copies / self.tokens, 1.0)
        gates = 2.0 if self.gated else 1.0
        return product(gates * self.width, self.hidden, sharing), product(self.hidden, self.width, 1.0)

    def _rule(self) -> tuple[tuple[Any, Any], Any]:
        """VLLM's default tile and step of the loop: small ones while experts outnumber tokens."""
        if self.dtype == "fp8_block":
            return (64.0, 128.0), 128.0
        few = self.tokens <= self.experts
        return (np.where(few, 16.0, 64.0), np.where(few, 32.0, 64.0)), np.where(few, 64.0, 32.0)

    def time(self, cost: CostModel) -> FloatArray:
        """Return the time of the layer [s]."""

        def priced(tuned: bool) -> Any:
            return sum(cost.price(work).time for work in self.products(tuned))

        around: Any = sum(cost.price(work).time for work in self.works())
        if not self.vllm or self.dtype == "int4_wo" or np.all(self.tuned):
            return np.asarray(around + priced(True))
        products = priced(False)
        if np.any(self.tuned):
            products = np.where(self.tuned, priced(True), products)
        return np.asarray(around + products)


def _fused(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str]) -> Sequence[Part]:
    frame = keep(frame, frame["kernel_source"].isin(KERNELS), "kernel is not modelled", skipped)
    frame = keep(frame, frame["moe_dtype"].isin(list(FORMATS)), "number format is not modelled", skipped)
    frame = keep(frame, frame["distribution"].isin(list(SKEWS)), "distribution is not modelled", skipped)
    frame = keep(frame, frame["latency_ms"] > 0, "no time above 0", skipped)
    device = frame["src"].str.split("/").str[0].map(AICONFIGURATOR)
    frame = keep(frame, device.notna(), "device is not in the catalog", skipped)
    return [
        Part(
            AICONFIGURATOR[str(key[0]).split("/")[0]], rows["latency_ms"].to_numpy(float) * 1e-3,
            _layer(rows, *map(str, key)).time,
            labels(rows, ["hidden_size", "inter_size", "num_experts", "topk"]), rows["line"].to_numpy(np.int64), rows,
            "grouped-matmul",
        )
        for key, rows in frame.groupby(["src", "kernel_source", "moe_dtype", "distribution"], sort=True)
    ]  # fmt: skip


def _layer(rows: pd.DataFrame, source: str, kernel: str, dtype: str, distribution: str) -> FusedLayer:
    tokens, hidden, inter, per_token, experts, tp, ep = (
        rows[name].to_numpy(float)
        for name in (
            "num_tokens",
            "hidden_size",
            "inter_size",
            "topk",
            "num_experts",
            "moe_tp_size",
            "moe_ep_size",
        )
    )
    skew = SKEWS[distribution]
    found = routed(tokens, experts, per_token, ep, skew=skew, even=not skew)
    copies, active = found.copies, found.active
    if skew:
        copies, active = _busiest(tokens, experts, per_token, ep, skew, found.reach)
    shapes = TUNED.get((AICONFIGURATOR[source.split("/")[0]], dtype), {})
    tuned = [int(w) in shapes.get(int(e), ()) for e, w in zip(experts / ep, inter / tp, strict=True)]
    return FusedLayer(
        tokens, hidden, inter / tp, per_token, experts / ep, np.asarray(copies, float), np.asarray(active, float),
        np.broadcast_to(np.asarray(found.reach, float), tokens.shape), skew, np.array(tuned), dtype,
        kernel.startswith("vllm"), not kernel.endswith("nongated"),
    )  # fmt: skip


def _busiest(
    tokens: FloatArray, experts: FloatArray, per_token: FloatArray, ranks: FloatArray, skew: float, reach: Any
) -> tuple[FloatArray, FloatArray]:
    """Copies and active experts of the busiest rank, as the benchmark's generator makes them.

    It rounds the loads and hands out what is then missing by descending load, of equal ones the first; with few tokens
    most loads round to nothing, and the first experts all lie on the rank that it measures.
    """
    local, copies = experts / ranks, tokens * per_token
    loads = load_nodes(skew, reach, 32) * (copies / experts)
    missing = np.maximum(copies - experts * np.round(loads).mean(axis=0), 0.0)
    first = np.minimum(np.minimum(missing, TIES), local)
    added = first + (missing - first) / ranks
    placed = (copies - missing) / ranks * busiest_share(experts, ranks, skew, reach)
    idle = np.exp(-load_nodes(skew, reach) * (placed / local)).mean(axis=0)
    active = local * (1.0 - idle) + np.minimum(added, local) * idle
    most = tokens * np.minimum(per_token, local)
    alone = routed(tokens, experts, per_token, 1, skew=skew)
    active = np.where(ranks > 1.0, np.maximum(active, 1e-3), alone.active)
    placed = np.where(ranks > 1.0, np.minimum(np.maximum(placed + added, active), most), copies)
    return placed, active


def _grouped_part(
    rows: pd.DataFrame, device: str, m: FloatArray, n: FloatArray, k: FloatArray, count: FloatArray, seconds: FloatArray,
    groups: Sequence[str],
) -> Part:  # fmt: skip
    """One grouped product of DeepGEMM: its dense kernel over the tiles of all groups, 64 or 128 rows high."""
    tile = (np.where(m <= LOW_TILE, LOW_TILE, 2.0 * LOW_TILE), 2.0 * LOW_TILE)
    work = Matmul(m, n, k, count, "fp8", 1.0, 1.0, scaled=1.0, tile=tile)
    return Part(
        device, seconds, partial(_priced, work), labels(rows, groups), rows["line"].to_numpy(np.int64), rows, "matmul",
        errors=partial(_doubt, rows=len(rows)),
    )  # fmt: skip


def _priced(work: Matmul, cost: CostModel) -> FloatArray:
    return np.asarray(cost.price(work).time)


def _doubt(cost: CostModel, rows: int) -> FloatArray:
    return np.full(rows, min(cost.calibration.error["matmul"] * RAGGED, 1.0))


def _infersim(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str], *, column: str) -> Sequence[Part]:
    frame = keep(frame, frame["gpu"].str.lower().isin(list(PLAIN)), "device is not in the catalog", skipped)
    frame = keep(frame, frame[column] > 0, "no time above 0", skipped)
    parts = []
    for gpu, rows in frame.groupby("gpu", sort=True):
        hidden, width, local, m = (
            rows[name].to_numpy(float)
            for name in ("hidden_size", "intermediate_size", "num_local_experts", "tokens_per_expert")
        )
        n, k = (2.0 * width, hidden) if column.startswith("up") else (hidden, width)
        # rows are drawn within 30 % of the mean and rounded down: of one row on average, half of the experts have none
        active = np.where((m == 1.0) & (rows["phase"] == "decode"), 0.5, 1.0) * local
        parts.append(
            _grouped_part(
                rows, PLAIN[str(gpu).lower()], m, n, k, np.maximum(active, 1.0), rows[column].to_numpy(float) * 1e-6,
                ["hidden_size", "intermediate_size", "num_experts", "topk"],
            )
        )  # fmt: skip
    return parts


def _deepgemm(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str]) -> Sequence[Part]:
    grouped = frame["layout"].str.startswith("grouped")
    frame = keep(frame, grouped, "dense products are priced in deepgemm/fp8_gemm_h800.csv", skipped)
    m, n, k, count = (frame[name].to_numpy(float) for name in ("m_per_group", "n", "k", "groups"))
    seconds = frame["derived_time_us"].to_numpy(float) * 1e-6
    return [_grouped_part(frame, "h800-sxm", m, n, k, count, seconds, ["n", "k"])]


DATASETS = (
    TableDataSet("aiconfigurator/moe.csv", _fused),
    TableDataSet("infersim/grouped_gemm_us.csv#up", partial(_infersim, column="up_proj_us")),
    TableDataSet("infersim/grouped_gemm_us.csv#down", partial(_infersim, column="down_proj_us")),
    TableDataSet("deepgemm/fp8_gemm_h800.csv#grouped", _deepgemm),
)

FITS = (
    Fit(
        "grouped-matmul",
        (
            Constant("grouped_matmul", "peak_efficiency", 0.2, 1.5),
            Constant("grouped_matmul", "memory_efficiency", 0.4, 1.0),
            Constant("grouped_matmul", "step_latency", 5e-9, 1e-6),
            Constant("grouped_matmul", "uncached_step", 1.0, 5.0),
            Constant("grouped_matmul", "exposed", 0.02, 1.0),
            Constant("grouped_matmul", "promotion_rate", 5e9, 1e12),
            Constant("grouped_matmul", "dequantised_efficiency", 0.1, 1.5),
            Constant("grouped_matmul", "layer_latency", 1e-6, 1e-4),
            Constant("grouped_matmul", "sort_rate", 2e7, 1e10),
            Constant("grouped_matmul", "sum_rate", 5e10, 5e12),
        ),
        ("aiconfigurator/moe.csv",),
        "hidden size, width, experts, top-k",
    ),
)
