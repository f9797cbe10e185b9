"""Matrix products: aiconfigurator's linear layers as the serving frameworks run them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.cost import CostModel
from simulator.graph.work import Elementwise, Matmul
from simulator.specs import Catalog
from simulator.validation.dataset import FloatArray, Part, TableDataSet, keep, labels
from simulator.validation.datasets.devices import AICONFIGURATOR
from simulator.validation.datasets.elementwise import largest_time
from simulator.validation.fit import Constant, Fit

if TYPE_CHECKING:
    import pandas as pd

MAIN = ("bfloat16", "fp8")
"""Formats of the first data set; the others are kernels of their own, in the second."""
OTHERS = ("fp8_block", "sq", "int8_wo", "int4_wo", "nvfp4")
COPIES = 6.0
"""Layers that a run goes round in. On L40S weights of 15.7 MB stream faster than its memory and those of 16.8 MB do not: six
of them fit in 96 MiB of cache, or do not."""
TRITON_STEPS = 4.0
"""Steps and promotions of a block of k in vLLM's Triton kernel for block-scaled products for one of DeepGEMM's: 350 to 450 ns
against about 120 ns on H100."""
PLUGINS = ("sq", "int8_wo", "int4_wo")
PLUGIN_LATENCY = 7e-6
"""Of a TensorRT plugin, over the product in it: these rows are whole engine runs, in steps of 1.024 us [s]."""
SECTOR = 32.0
"""Bytes of memory that an uncoalesced load of one element moves: a sector of the cache (NVIDIA, CUDA C++ Best Practices
Guide, section 9.2.1)."""
OTHER_KERNELS = 2.9
"""Spread of the other formats' kernels over that of the first data set's."""
STRANGE_KERNELS = 2.4
"""The same of fp8 on L40S, whose rows hold an uncoalesced quantisation and are not fitted on."""
Quantise = Callable[[CostModel, FloatArray, FloatArray], Any]


def product(m: Any, n: Any, k: Any, dtype: str, framework: str = "") -> Matmul:
    """Return the product of a linear layer of a number format, as a benchmark that goes round in six layers runs it.

    vLLM multiplies fp8 with CUTLASS kernels that do not split k and whose tile follows from m alone.
    """
    formats = {
        "bfloat16": ("bf16", 2.0, 2.0), "fp8": ("fp8", 1.0, 1.0), "fp8_block": ("fp8", 1.0, 1.0), "sq": ("int8", 1.0, 1.0),
        "int8_wo": ("bf16", 2.0, 1.0), "int4_wo": ("bf16", 2.0, 0.5), "nvfp4": ("fp4", 0.5625, 0.5625),
    }  # fmt: skip
    form, left, right = formats[dtype]
    distance = COPIES * n * k * right + m * k * left + 2.0 * m * n
    scaled = 0.0 if dtype != "fp8_block" else TRITON_STEPS if framework.endswith("vllm") else 1.0
    cutlass = dtype == "fp8" and framework.endswith("vllm")
    tile = RULES[framework](m) if cutlass and framework in RULES else None
    split = not cutlass and dtype not in PLUGINS
    return Matmul(
        m, n, k, 1, form, left, right, scaled=scaled, kernel="engine" if cutlass else "vendor", split_k=split, tile=tile,
        reuse_distance=distance,
    )  # fmt: skip


def hopper_rule(m: Any) -> tuple[Any, Any]:
    """Return the tile of vLLM's fp8 kernels for Hopper: 64 columns up to 64 rows, then 128; 16, 64 or 128 rows."""
    return np.where(m > 128, 128.0, np.where(m > 16, 64.0, 16.0)), np.where(m > 64, 128.0, 64.0)


RULES: Mapping[str, Callable[[Any], tuple[Any, Any]]] = {
    "h100_sxm/vllm": hopper_rule, "h200_sxm/vllm": hopper_rule,
}  # fmt: skip


def one_kernel(cost: CostModel, m: FloatArray, k: FloatArray) -> Any:
    """Price a quantisation kernel that reads 16 bits and stores 8, one element a thread."""
    return cost.price(Elementwise(2.0 * m * k, m * k, scalar=m * k, rows=m, chained=True)).time


def two_passes(cost: CostModel, m: FloatArray, k: FloatArray) -> Any:
    """Price what PyTorch operators do: two kernels find the largest element, one makes it a scale, one applies that."""
    scale = cost.price(Elementwise(4.0, 4.0, chained=True)).time
    return largest_time(cost, m, k) + scale + cost.price(Elementwise(2.0 * m * k, m * k, chained=True)).time


def uncoalesced(cost: CostModel, m: FloatArray, k: FloatArray) -> Any:
    """Price quantisation across the rows of a transposed matrix: every element moves a sector; three kernels."""
    return cost.price(Elementwise(SECTOR * m * k, 2.0 * m * k, kernels=3, chained=True)).time


QUANTISE: Mapping[str, Quantise] = {
    "l40s/vllm": uncoalesced, "h100_sxm/trtllm": two_passes,
}  # fmt: skip
"""How a framework quantises activations on a device, where not with one kernel: vLLM 0.14 on L40S needs 36 bytes of memory
traffic an element at 24 elements a nanosecond."""


def linear_time(
    cost: CostModel, m: FloatArray, n: FloatArray, k: FloatArray, dtype: str, framework: str
) -> FloatArray:
    """Return the time of a linear layer with the quantisation of its input [s]."""
    time: Any = cost.price(product(m, n, k, dtype, framework)).time
    if dtype in PLUGINS:
        time = time + PLUGIN_LATENCY
    if dtype in ("fp8", "fp8_block", "nvfp4"):
        quantise = one_kernel if dtype != "fp8" else QUANTISE.get(framework, one_kernel)
        time = time + quantise(cost, m, k)
    return np.asarray(time)


def class_errors(cost: CostModel, rows: int, factor: float) -> FloatArray:
    """Return the relative error of products times a factor, for each row."""
    return np.full(rows, cost.calibration.error["matmul"] * factor)


def _split(
    frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str], *, dtypes: Sequence[str], reason: str
) -> Sequence[Part]:
    known = frame["gemm_dtype"].isin([*MAIN, *OTHERS])
    frame = keep(frame, known, "number format is not modelled", skipped)
    frame = keep(frame, frame["gemm_dtype"].isin(dtypes), reason, skipped)
    frame = keep(frame, frame["latency_ms"] > 0, "no time above 0", skipped)
    device = frame["src"].str.split("/").str[0].map(AICONFIGURATOR)
    frame = keep(frame, device.notna(), "device is not in the catalog", skipped)
    parts = []
    for (source, dtype), rows in frame.groupby(["src", "gemm_dtype"], sort=True):
        m, n, k = (rows[name].to_numpy(float) for name in ("m", "n", "k"))
        framework = "/".join(str(source).split("/")[:2])
        wider = 1.0 if dtype in MAIN else OTHER_KERNELS
        strange = dtype == "fp8" and QUANTISE.get(framework) is uncoalesced
        parts.append(
            Part(
                AICONFIGURATOR[str(source).split("/")[0]], rows["latency_ms"].to_numpy(float) * 1e-3,
                partial(linear_time, m=m, n=n, k=k, dtype=str(dtype), framework=framework),
                labels(rows, ["n", "k"]), rows["line"].to_numpy(np.int64), rows, "matmul",
                errors=partial(class_errors, rows=len(rows), factor=STRANGE_KERNELS if strange else wider),
                fitted=not strange,
            )
        )  # fmt: skip
    return parts


DATASETS = (
    TableDataSet(
        "aiconfigurator/gemm.csv",
        partial(_split, dtypes=MAIN, reason="priced in aiconfigurator/gemm.csv#other-formats"),
    ),
    TableDataSet(
        "aiconfigurator/gemm.csv#other-formats",
        partial(_split, dtypes=OTHERS, reason="priced in aiconfigurator/gemm.csv"),
    ),
)

FITS = (
    Fit(
        "matmul",
        (
            Constant("matmul", "peak_efficiency", 0.4, 1.0),
            Constant("matmul", "narrow_efficiency", 0.3, 1.25),
            Constant("matmul", "engine_efficiency", 0.3, 1.25),
            Constant("matmul", "quarter_efficiency", 0.3, 1.25),
            Constant("matmul", "step_latency", 3e-8, 1e-6),
            Constant("matmul", "promotion_rate", 1e10, 1e13),
            Constant("matmul", "memory_efficiency", 0.4, 1.0),
            Constant("matmul", "cache_bandwidth", 1.0, 10.0),
            Constant("matmul", "cache_share", 0.2, 1.2),
            Constant("matmul", "tile_edge", 0.2, 60.0),
            Constant("matmul", "epilogue_rate", 1e9, 1e12),
            Constant("matmul", "wave_tail", 0.1, 1.0),
            Constant("matmul", "split_latency", 1e-7, 1e-5),
            Constant("matmul", "unit_bandwidth", 1e10, 1e12),
            Constant("matmul", "fill", 0.02, 1.0),
            Constant("elementwise", "chained_latency", 3e-7, 1e-5),
            Constant("host", "launch", 5e-7, 2e-5),
        ),
        ("aiconfigurator/gemm.csv", "aiconfigurator/gemm.csv#other-formats"),
        "weight shape (n, k)",
        weights={"aiconfigurator/gemm.csv#other-formats": 0.5},
        judged=("aiconfigurator/gemm.csv",),
        whole=("ml-engineering/max_achievable_matmul_tflops.csv",),
    ),
)
