"""Element-wise kernels: quantisation, norms, rotary embedding, activations, additions, softmax, embedding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.cost import CostModel
from simulator.graph.work import Elementwise
from simulator.specs import Catalog
from simulator.validation.dataset import FloatArray, Part, TableDataSet, keep, labels
from simulator.validation.datasets.devices import AICONFIGURATOR, PLAIN
from simulator.validation.fit import Constant, Fit

if TYPE_CHECKING:
    import pandas as pd

INDEX_WORK = 6.5
"""Loads and stores that one element of PyTorch's embedding kernel is worth: it computes 64-bit indices for each."""
REDUCTION_TAIL = 0.35e-6
"""Of a reduction over all blocks: a counter and the partial results go through the last-level cache and back [s]."""
SPREAD: Mapping[str, float] = {
    "compute_scale": 0.9, "scale_matrix": 0.4, "input_layernorm_median_ms": 1.35, "post_attention_layernorm_median_ms": 1.1,
    "attn_rope_median_ms": 1.15, "mlp_act_median_ms": 0.95, "add_median_ms": 1.05, "emb_median_ms": 0.6, "eager": 3.0,
}  # fmt: skip
"""Spread of an operator's rows over that of its class: two lines of arithmetic are surer than a norm, and calls from Python less
sure than kernels."""
Work = Callable[[Any], Elementwise]


def priced(works: Sequence[Elementwise], cost: CostModel) -> FloatArray:
    """Return the sum of kernels that run one after the other [s]."""
    return np.asarray(sum(cost.price(work).time for work in works))


def doubt(cost: CostModel, rows: int, name: str) -> FloatArray:
    """Return the relative error of an operator's kernels, for each row."""
    return np.full(rows, min(cost.calibration.error["elementwise"] * SPREAD[name], 1.0))


def largest(m: Any, k: Any) -> Elementwise:
    """Two kernels of PyTorch that find the largest magnitude of a matrix: both read it."""
    return Elementwise(4.0 * m * k, 0.0, kernels=2)


def largest_time(cost: CostModel, m: FloatArray, k: FloatArray) -> FloatArray:
    """Return the time of these kernels; each ends when its last block has added up what the others found [s]."""
    return np.asarray(cost.price(largest(m, k)).time) + 2.0 * REDUCTION_TAIL


def scaling_time(cost: CostModel, m: FloatArray, k: FloatArray) -> FloatArray:
    """Return the time of a kernel that reads 16 bits and writes 8 [s]."""
    return np.asarray(cost.price(Elementwise(2.0 * m * k, m * k)).time)


QUANTISE: Mapping[str, Callable[..., FloatArray]] = {
    "compute_scale": largest_time, "scale_matrix": scaling_time,
}  # fmt: skip


def _quantise(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str], *, name: str) -> Sequence[Part]:
    other = next(other for other in QUANTISE if other != name)
    frame = keep(
        frame, frame["op_name"] == name, f"priced in aiconfigurator/elementwise_quantize.csv#{other}", skipped
    )
    frame = keep(frame, frame["latency_ms"] > 0, "no time above 0", skipped)
    device = frame["src"].str.split("/").str[0].map(AICONFIGURATOR)
    frame = keep(frame, device.notna(), "device is not in the catalog", skipped)
    parts = []
    for source, rows in frame.groupby("src", sort=True):
        m, k = rows["m"].to_numpy(float), rows["k"].to_numpy(float)
        parts.append(
            Part(
                AICONFIGURATOR[str(source).split("/")[0]], rows["latency_ms"].to_numpy(float) * 1e-3,
                partial(QUANTISE[name], m=m, k=k), labels(rows, ["m"]), rows["line"].to_numpy(np.int64), rows,
                "elementwise", errors=partial(doubt, rows=len(rows), name=name),
            )
        )  # fmt: skip
    return parts


def norm(elements: Any, rows: Any) -> Elementwise:
    """An RMSNorm of vLLM 0.2: reads twice and writes once, one element a thread and a row a block."""
    return Elementwise(4.0 * elements, 2.0 * elements, scalar=3.0 * elements, rows=rows)


def rotary(elements: Any, rows: Any) -> Elementwise:
    """Queries and keys rotated in place; a pair of elements shares a sine and a cosine, most of them still in registers."""
    return Elementwise(2.0 * elements, 2.0 * elements, scalar=2.3 * elements, rows=rows)


def activation(elements: Any, rows: Any, inputs: Any) -> Elementwise:
    """SiLU of the gate times the other half, or GELU of the only input."""
    return Elementwise(2.0 * inputs * elements, 2.0 * elements, scalar=(inputs + 1.0) * elements, rows=rows)


def residual(elements: Any, rows: Any) -> Elementwise:
    """PyTorch's addition, in place."""
    return Elementwise(4.0 * elements, 2.0 * elements)


def embedding(elements: Any, rows: Any) -> Elementwise:
    """PyTorch's embedding kernel."""
    return Elementwise(2.0 * elements, 2.0 * elements, scalar=INDEX_WORK * elements)


def _vidur(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str], *, column: str) -> Sequence[Part]:
    frame = keep(frame, frame[column].notna(), "the model has no such operator", skipped)
    frame = keep(frame, frame[column] > 0, "no time above 0", skipped)
    frame = keep(frame, frame["gpu"].isin(list(PLAIN)), "device is not in the catalog", skipped)
    parts = []
    for gpu, rows in frame.groupby("gpu", sort=True):
        works = {
            "input_layernorm_median_ms": norm, "post_attention_layernorm_median_ms": norm, "attn_rope_median_ms": rotary,
            "mlp_act_median_ms": None, "add_median_ms": residual, "emb_median_ms": embedding,
        }  # fmt: skip
        work = works[column]
        elements, tokens = _elements(rows, column), rows["num_tokens"].to_numpy(float)
        one = (
            work(elements, tokens)
            if work is not None
            else activation(elements, tokens, 1.0 + rows["use_gated_mlp"].astype(bool).to_numpy(float))
        )
        parts.append(
            Part(
                PLAIN[str(gpu)], rows[column].to_numpy(float) * 1e-3, partial(priced, [one]), labels(rows, ["model"]),
                rows["line"].to_numpy(np.int64), rows, "elementwise",
                errors=partial(doubt, rows=len(rows), name=column),
            )
        )  # fmt: skip
    return parts


def _elements(rows: pd.DataFrame, column: str) -> FloatArray:
    """Elements that the operator writes: activations and rotary embedding are cut by tensor parallelism, norms are not."""
    tokens, width = rows["num_tokens"].to_numpy(float), rows["n_embd"].to_numpy(float)
    cut = rows["num_tensor_parallel_workers"].to_numpy(float)
    if column == "mlp_act_median_ms":
        width = rows["n_expanded_embd"].to_numpy(float) / cut
    elif column == "attn_rope_median_ms":
        heads, kv_heads = rows["n_head"].to_numpy(float), rows["n_kv_head"].to_numpy(float)
        width = width / heads * (heads / cut + np.maximum(kv_heads / cut, 1.0))
    return np.asarray(tokens * width)


def _llmcompass(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str]) -> Sequence[Part]:
    frame = keep(
        frame, frame["op"] != "matmul", "priced in llmcompass/kernel_measurements.csv#matmul", skipped
    )
    frame = keep(frame, frame["gpu"].str.lower().isin(list(PLAIN)), "device is not in the catalog", skipped)
    parts = []
    for (gpu, _), rows in frame.groupby(["gpu", "op"], sort=True):
        elements = rows["dim0"].to_numpy(float) * rows["dim1"].fillna(1.0).to_numpy(float)
        seconds = elements / (rows["value"].to_numpy(float) * 1e9)
        # the smallest tensor measures the call from Python, which the others contain too
        call = float(seconds[elements.argmin()])
        rows = keep(rows, elements > elements.min(), "taken as the cost of the Python call", skipped)
        kept = elements > elements.min()

        def predict(cost: CostModel, elements: FloatArray = elements[kept], call: float = call) -> FloatArray:
            work = Elementwise(2.0 * elements, 2.0 * elements)
            return (
                np.asarray(cost.price(work).time)
                + call
                - float(np.asarray(cost.price(Elementwise(0.0, 0.0)).time))
            )

        parts.append(
            Part(
                PLAIN[str(gpu).lower()], seconds[kept], predict, labels(rows, ["op"]), rows["line"].to_numpy(np.int64),
                rows, "elementwise", errors=partial(doubt, rows=len(rows), name="eager"),
            )
        )  # fmt: skip
    return parts


VIDUR = (
    "input_layernorm_median_ms", "post_attention_layernorm_median_ms", "attn_rope_median_ms", "mlp_act_median_ms",
    "add_median_ms", "emb_median_ms",
)  # fmt: skip


def _vidur_name(column: str) -> str:
    return "vidur/linear_ops_median.csv#" + column.removesuffix("_median_ms")


DATASETS = (
    *(
        TableDataSet(f"aiconfigurator/elementwise_quantize.csv#{name}", partial(_quantise, name=name))
        for name in QUANTISE
    ),
    *(TableDataSet(_vidur_name(column), partial(_vidur, column=column)) for column in VIDUR),
    TableDataSet("llmcompass/kernel_measurements.csv#elementwise", _llmcompass),
)

FITS = (
    Fit(
        "elementwise",
        (
            Constant("elementwise", "memory_efficiency", 0.5, 1.0),
            Constant("elementwise", "cache_bandwidth", 1.0, 12.0),
            Constant("elementwise", "cache_share", 0.2, 1.2),
            Constant("elementwise", "base_latency", 5e-7, 2e-5),
            Constant("elementwise", "scalar_rate", 1e9, 3e10),
        ),
        tuple(dataset.name for dataset in DATASETS if "llmcompass" not in dataset.name),
        "rows of the matrix, or the model",
        # many rows in steps of 1 us
        weights={_vidur_name(column): 0.35 for column in VIDUR},
    ),
)
