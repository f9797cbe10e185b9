"""Linear layers and other operators as other software ran them: vidur, DeepGEMM, InferSim, LLMServingSim, LLMCompass.

Nothing is fitted on these rows but what :mod:`simulator.validation.datasets.elementwise` says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from simulator.cost import CostModel
from simulator.graph.work import Elementwise, Matmul, Work
from simulator.specs import Catalog, OperatorClass
from simulator.validation.dataset import FloatArray, Part, TableDataSet, keep, labels
from simulator.validation.datasets.devices import PLAIN
from simulator.validation.datasets.elementwise import INDEX_WORK

if TYPE_CHECKING:
    import pandas as pd


class Dimensions(NamedTuple):
    """Dimensions of a model, as its published configuration has them."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int


MODELS: Mapping[str, Dimensions] = {
    "meta-llama/Llama-3.1-8B": Dimensions(4096, 32, 8, 128, 14336, 128256),
    "Qwen/Qwen3-32B": Dimensions(5120, 64, 8, 128, 25600, 151936),
    "Qwen/Qwen3-30B-A3B-Instruct-2507": Dimensions(2048, 32, 4, 128, 6144, 151936),
}
ONE_WAVE = 256
"""Rows up to which the tiles of a product run in one wave."""
NORM_KERNELS, NORM_BYTES = 8, 36.0
"""A norm of PyTorch operators in fp32: to fp32 (2 + 4 bytes an element), square (8), mean (4), scale (8), to 16 bits (6), times
the weight (4); with the addition and the root of the mean eight kernels."""
ROTARY_KERNELS, ROTARY_BYTES = 12, 36.0
"""The rotary embedding of PyTorch operators: for queries and for keys negate, concatenate, two products, addition, in 16 bits,
and the sines and cosines of the positions."""


OTHER_RELEASE = 1.3
"""Spread of rows of other releases of a library over that of the rows that constants are fitted on: kernels and the rules that
choose them differ (vidur's and LLMServingSim's H100 rows are of the first cuBLAS for Hopper)."""


HARNESS = 1.7
"""The same of products called from Python."""
SEARCHED = 2.3
"""The same of the best product that a search found, which is none of the ordinary ones, on devices of all vendors."""


def doubt(
    cost: CostModel, rows: int, operator_class: OperatorClass, factor: float = OTHER_RELEASE
) -> FloatArray:
    """Return the relative error of kernels of another release, for each row."""
    return np.full(rows, min(cost.calibration.error[operator_class] * factor, 1.0))


def priced(works: Sequence[Work], cost: CostModel) -> FloatArray:
    """Return the sum of kernels that run one after the other [s]."""
    return np.asarray(sum(cost.price(work).time for work in works))


def loaded(works: Sequence[Work], cost: CostModel) -> FloatArray:
    """Return the same at the clock that a device holds under minutes of load [s]."""
    return priced(works, CostModel(cost.device, cost.calibration, cost.memory_bandwidth, sustained=True))


def _linear(rows: pd.DataFrame, column: str) -> Matmul:
    """Return a linear layer of vidur's table; its profiler goes round in one decoder layer for minutes."""
    tokens, width, cut = (
        rows[c].to_numpy(float) for c in ("num_tokens", "n_embd", "num_tensor_parallel_workers")
    )
    heads, kv_heads, wide = (rows[c].to_numpy(float) for c in ("n_head", "n_kv_head", "n_expanded_embd"))
    gates = 1.0 + rows["use_gated_mlp"].astype(bool).to_numpy(float)
    joint = width / heads * (heads / cut + 2.0 * np.maximum(kv_heads / cut, 1.0))
    shapes = {
        "attn_pre_proj_median_ms": (joint, width), "attn_post_proj_median_ms": (width, width / cut),
        "mlp_up_proj_median_ms": (gates * wide / cut, width), "mlp_down_proj_median_ms": (width, wide / cut),
    }  # fmt: skip
    n, k = shapes[column]
    layer = 2.0 * sum(n * k for n, k in shapes.values())
    return Matmul(tokens, n, k, format="fp16", reuse_distance=layer)


def _vidur(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str], *, column: str) -> Sequence[Part]:
    frame = keep(frame, frame[column].notna() & (frame[column] > 0), "no time above 0", skipped)
    frame = keep(frame, frame["gpu"].isin(list(PLAIN)), "device is not in the catalog", skipped)
    return [
        Part(
            PLAIN[str(gpu)], rows[column].to_numpy(float) * 1e-3, partial(loaded, [_linear(rows, column)]),
            labels(rows, ["model"]), rows["line"].to_numpy(np.int64), rows, "matmul",
            errors=partial(doubt, rows=len(rows), operator_class="matmul"),
        )
        for gpu, rows in frame.groupby("gpu", sort=True)
    ]  # fmt: skip


def _deepgemm(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str]) -> Sequence[Part]:
    frame = keep(frame, frame["layout"] == "dense", "grouped products belong to MoE", skipped)
    m, n, k = (frame[name].to_numpy(float) for name in ("m_per_group", "n", "k"))
    return _scaled_part(frame, "h800-sxm", m, n, k, frame["derived_time_us"].to_numpy(float) * 1e-6)


def _infersim(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str]) -> Sequence[Part]:
    frame = keep(frame, frame["gpu"].str.lower().isin(list(PLAIN)), "device is not in the catalog", skipped)
    parts: list[Part] = []
    for gpu, rows in frame.groupby("gpu", sort=True):
        m, n, k = (rows[name].to_numpy(float) for name in ("m", "n", "k"))
        parts += _scaled_part(
            rows, PLAIN[str(gpu).lower()], m, n, k, rows["latency_us"].to_numpy(float) * 1e-6
        )
    return parts


def _scaled_part(
    rows: pd.DataFrame, device: str, m: FloatArray, n: FloatArray, k: FloatArray, seconds: FloatArray
) -> list[Part]:
    """fp8 products with a scale for each block, operands quantised beforehand."""
    work = Matmul(m, n, k, 1, "fp8", 1.0, 1.0, scaled=True)
    return [
        Part(
            device, seconds, partial(priced, [work]), labels(rows, ["n", "k"]), rows["line"].to_numpy(np.int64), rows,
            "matmul",
        )
    ]  # fmt: skip


def _vllm_works(layer: str, t: FloatArray, d: Dimensions, tp: float) -> Sequence[Work] | None:
    """Works of an operator of vLLM 0.19 for ``t`` tokens, or None where it is not modelled."""
    heads, kv = d.heads / tp, max(d.kv_heads / tp, 1.0)
    products = {
        "qkv_proj": ((heads + 2.0 * kv) * d.head_dim, d.hidden), "o_proj": (d.hidden, heads * d.head_dim),
        "gate_up_proj": (2.0 * d.intermediate / tp, d.hidden), "down_proj": (d.hidden, d.intermediate / tp),
        "lm_head": (d.vocabulary / tp, d.hidden),
    }  # fmt: skip
    if layer in products:
        n, k = products[layer]
        return [Matmul(t, n, k)]

    def stream(read: Any, written: Any, product: str = "") -> list[Work]:
        # tiles of one wave are written last; of several, the product before draws its weights through the cache meanwhile
        weights = 2.0 * products[product][0] * products[product][1] if product else 0.0
        return [
            Elementwise(read, written, reuse_distance=read + written + np.where(t > ONE_WAVE, weights, 0.0))
        ]

    width, rotated, wide = t * d.hidden, t * (heads + kv) * d.head_dim, t * d.intermediate / tp
    works = {
        "layernorm": (2.0 * width, 2.0 * width, "down_proj"), "final_layernorm": (2.0 * width, 2.0 * width, "down_proj"),
        "qk_norm": (2.0 * rotated, 2.0 * rotated, "qkv_proj"), "rotary_emb": (2.0 * rotated, 2.0 * rotated, "qkv_proj"),
        "act_fn": (4.0 * wide, 2.0 * wide, "gate_up_proj"), "embedding": (2.0 * width, 2.0 * width, ""),
    }  # fmt: skip
    return stream(*works[layer]) if layer in works else None


def _torch_works(layer: str, t: FloatArray, d: Dimensions, tp: float) -> Sequence[Work] | None:
    """Works of an operator of eager PyTorch for ``t`` tokens, or None where it is not modelled."""
    heads, kv = d.heads / tp, max(d.kv_heads / tp, 1.0)
    products = {
        "q_proj": (heads * d.head_dim, d.hidden), "k_proj": (kv * d.head_dim, d.hidden), "v_proj": (kv * d.head_dim, d.hidden),
        "o_proj": (d.hidden, heads * d.head_dim), "gate_proj": (d.intermediate / tp, d.hidden),
        "up_proj": (d.intermediate / tp, d.hidden), "down_proj": (d.hidden, d.intermediate / tp),
        "lm_head": (d.vocabulary / tp, d.hidden),
    }  # fmt: skip
    if layer in products:
        n, k = products[layer]
        return [Matmul(t, n, k)]
    width, rotated, wide = t * d.hidden, t * (heads + kv) * d.head_dim, t * d.intermediate / tp
    norm = [Elementwise(NORM_BYTES * width, 0.0, kernels=NORM_KERNELS)]
    return {
        "input_layernorm": norm, "post_layernorm": norm, "final_layernorm": norm,
        "rope": [Elementwise(ROTARY_BYTES * rotated, 0.0, kernels=ROTARY_KERNELS)],
        "act_fn": [Elementwise(6.0 * wide, 4.0 * wide, kernels=2)],
        "embedding": [Elementwise(2.0 * width, 2.0 * width, scalar=INDEX_WORK * width)],
    }.get(layer)  # fmt: skip


def _serving_layers(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str]) -> Sequence[Part]:
    frame = keep(frame, frame["gpu"].str.lower().isin(list(PLAIN)), "device is not in the catalog", skipped)
    frame = keep(frame, frame["model"].isin(list(MODELS)), "model's dimensions are not known", skipped)
    frame = keep(frame, frame["time_us"] > 0, "no time above 0", skipped)
    parts = []
    for (gpu, model, tp, layer), rows in frame.groupby(["gpu", "model", "tp", "layer"], sort=True):
        tokens = rows["tokens"].fillna(rows["sequences"]).to_numpy(float)
        works = _vllm_works(str(layer), tokens, MODELS[str(model)], float(str(tp).removeprefix("tp")))
        if works is None:
            skipped[f"{layer} is not modelled as one kernel"] += len(rows)
            continue
        parts.append(
            _layer_part(PLAIN[str(gpu).lower()], rows, rows["time_us"].to_numpy(float) * 1e-6, works)
        )
    return parts


def _torch_layers(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str]) -> Sequence[Part]:
    frame = keep(frame, frame["layer_name"] != "attn", "attention is not among these operators", skipped)
    frame = keep(frame, frame["latency(ns)"] > 0, "no time above 0", skipped)
    frame = frame.assign(model="meta-llama/Llama-3.1-8B", layer=frame["layer_name"], tp=frame["tp_size"])
    parts = []
    for (layer, tp), rows in frame.groupby(["layer_name", "tp_size"], sort=True):
        works = _torch_works(
            str(layer), rows["input"].to_numpy(float), MODELS["meta-llama/Llama-3.1-8B"], float(str(tp))
        )
        if works is None:
            skipped[f"{layer} is not modelled"] += len(rows)
            continue
        seconds = rows["latency(ns)"].to_numpy(float) * 1e-9
        parts.append(_layer_part("h100-sxm", rows, seconds, works, other_release=True))
    return parts


def _layer_part(
    device: str,
    rows: pd.DataFrame,
    seconds: FloatArray,
    works: Sequence[Work],
    *,
    other_release: bool = False,
) -> Part:
    name: OperatorClass = "matmul" if isinstance(works[0], Matmul) else "elementwise"
    return Part(
        device, seconds, partial(priced, works), labels(rows, ["model", "tp", "layer"]), rows["line"].to_numpy(np.int64),
        rows, name, errors=partial(doubt, rows=len(rows), operator_class=name) if other_release else None,
    )  # fmt: skip


def _llmcompass(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str]) -> Sequence[Part]:
    frame = keep(
        frame, frame["op"] == "matmul", "priced in llmcompass/kernel_measurements.csv#elementwise", skipped
    )
    frame = keep(frame, frame["gpu"].str.lower().isin(list(PLAIN)), "device is not in the catalog", skipped)
    parts = []
    for gpu, rows in frame.groupby("gpu", sort=True):
        m, n, k = (rows[name].to_numpy(float) for name in ("dim0", "dim1", "dim2"))
        work = Matmul(m, n, k, format="fp16", reuse_distance=2.0 * (m * k + n * k + m * n))
        parts.append(
            Part(
                PLAIN[str(gpu).lower()], rows["time_ms"].to_numpy(float) * 1e-3, partial(priced, [work]),
                labels(rows, ["dim1", "dim2"]), rows["line"].to_numpy(np.int64), rows, "matmul",
                errors=partial(doubt, rows=len(rows), operator_class="matmul", factor=HARNESS),
            )
        )  # fmt: skip
    return parts


BEST: Mapping[str, str] = {
    "NVIDIA A100 SXM": "a100-80gb-sxm", "NVIDIA A100 PCIe": "a100-80gb-pcie", "NVIDIA H100 SXM": "h100-sxm",
    "NVIDIA H200 SXM": "h200-sxm", "NVIDIA B200 SXM": "b200", "NVIDIA B300 SXM": "b300", "NVIDIA GB200 SXM": "gb200",
    "NVIDIA GH200 SXM": "gh200-96gb", "AMD MI300X": "mi300x", "AMD MI325X": "mi325x", "AMD MI355X": "mi355x",
    "Intel Gaudi 2": "gaudi-2", "Intel Gaudi 3": "gaudi-3",
}  # fmt: skip


def _best(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str]) -> Sequence[Part]:
    """The best product that a search of minutes found, in FLOP/s: in a burst that power did not limit yet."""
    frame = keep(frame, frame["accelerator"].isin(list(BEST)), "device is not in the catalog", skipped)
    parts = []
    for (accelerator, dtype), rows in frame.groupby(["accelerator", "dtype"], sort=True):
        m, n, k = (rows[f"best_{name}"].to_numpy(float) for name in "mnk")
        width = 1.0 if dtype == "fp8" else 2.0
        work = Matmul(m, n, k, 1, str(dtype), width, width)

        def predict(cost: CostModel, work: Any = work) -> FloatArray:
            return np.asarray(work.flops / cost.price(work).time)

        parts.append(
            Part(
                BEST[str(accelerator)], rows["measured_tflops"].to_numpy(float) * 1e12, predict,
                labels(rows, ["accelerator"]), rows["line"].to_numpy(np.int64), rows, "matmul",
                errors=partial(doubt, rows=len(rows), operator_class="matmul", factor=SEARCHED),
            )
        )  # fmt: skip
    return parts


VIDUR = (
    "attn_pre_proj_median_ms", "attn_post_proj_median_ms", "mlp_up_proj_median_ms", "mlp_down_proj_median_ms",
)  # fmt: skip

DATASETS = (
    *(
        TableDataSet(
            "vidur/linear_ops_median.csv#" + column.removesuffix("_median_ms"), partial(_vidur, column=column)
        )
        for column in VIDUR
    ),
    TableDataSet("deepgemm/fp8_gemm_h800.csv", _deepgemm),
    TableDataSet("infersim/gemm_us.csv", _infersim),
    TableDataSet("llmservingsim/layer_us.csv", _serving_layers),
    TableDataSet("llmservingsim/h100_llama31_8b_tp1_layers_ns.csv", _torch_layers),
    TableDataSet("llmcompass/kernel_measurements.csv#matmul", _llmcompass),
    TableDataSet("ml-engineering/max_achievable_matmul_tflops.csv", _best),
)
