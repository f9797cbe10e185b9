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
from simulator.validation.fit import Constant, Fit

if TYPE_CHECKING:
    import pandas as pd

MAIN = ("bfloat16", "fp8")
"""Formats of the first data set; the others are kernels of their own, in the second."""
OTHERS = ("fp8_block", "sq", "int8_wo", "int4_wo", "nvfp4")
COPIES = 6.0
"""Layers that a run goes round in. On L40S weights of 15.7 MB stream faster than its memory and those of 16.8 MB do not: six
of them fit in 96 MiB of cache, or do not."""
SECTOR = 32.0
"""Bytes of memory that an uncoalesced load of one element moves: a sector of the cache (NVIDIA, CUDA C++ Best Practices
Guide, section 9.2.1)."""
Quantise = Callable[[CostModel, FloatArray, FloatArray], Any]


def product(m: Any, n: Any, k: Any, dtype: str) -> Matmul:
    """Return the product of a linear layer of a number format, as a benchmark that goes round in six layers runs it."""
    formats = {
        "bfloat16": ("bf16", 2.0, 2.0), "fp8": ("fp8", 1.0, 1.0), "fp8_block": ("fp8", 1.0, 1.0), "sq": ("int8", 1.0, 1.0),
        "int8_wo": ("bf16", 2.0, 1.0), "int4_wo": ("bf16", 2.0, 0.5), "nvfp4": ("fp4", 0.5625, 0.5625),
    }  # fmt: skip
    form, left, right = formats[dtype]
    distance = COPIES * n * k * right + m * k * left + 2.0 * m * n
    scaled = dtype in ("fp8_block", "int8_wo", "int4_wo")
    return Matmul(m, n, k, 1, form, left, right, scaled=scaled, reuse_distance=distance)


def one_kernel(cost: CostModel, m: FloatArray, k: FloatArray) -> Any:
    """Price a quantisation kernel that reads 16 bits, writes 8, and handles one element a thread."""
    return cost.price(Elementwise(2.0 * m * k, m * k, scalar=m * k)).time


def two_passes(cost: CostModel, m: FloatArray, k: FloatArray) -> Any:
    """Price what PyTorch operators do: two kernels find the largest element, a third scales."""
    largest = cost.price(Elementwise(4.0 * m * k, 0.0, kernels=2)).time
    return largest + cost.price(Elementwise(2.0 * m * k, m * k)).time


def uncoalesced(cost: CostModel, m: FloatArray, k: FloatArray) -> Any:
    """Price quantisation across the rows of a transposed matrix: every element moves a sector; three kernels."""
    return cost.price(Elementwise(SECTOR * m * k, 2.0 * m * k, kernels=3)).time


QUANTISE: Mapping[str, Quantise] = {
    "l40s/vllm": uncoalesced, "h100_sxm/trtllm": two_passes,
}  # fmt: skip
"""How a framework quantises activations on a device, where not with one kernel: vLLM 0.14 on L40S needs 36 bytes of memory
traffic an element at 24 elements a nanosecond."""


def linear_time(
    cost: CostModel, m: FloatArray, n: FloatArray, k: FloatArray, dtype: str, framework: str
) -> FloatArray:
    """Return the time of a linear layer with the quantisation of its input [s]."""
    time: Any = cost.price(product(m, n, k, dtype)).time
    if dtype in ("fp8", "fp8_block", "nvfp4") or (dtype == "sq" and framework.endswith("trtllm")):
        quantise = one_kernel if dtype != "fp8" else QUANTISE.get(framework, one_kernel)
        time = time + quantise(cost, m, k)
    return np.asarray(time)


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
        parts.append(
            Part(
                AICONFIGURATOR[str(source).split("/")[0]], rows["latency_ms"].to_numpy(float) * 1e-3,
                partial(linear_time, m=m, n=n, k=k, dtype=str(dtype), framework=framework),
                labels(rows, ["n", "k"]), rows["line"].to_numpy(np.int64), rows, "matmul",
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
            Constant("matmul", "narrow_efficiency", 0.3, 1.0),
            Constant("matmul", "memory_efficiency", 0.4, 1.0),
            Constant("matmul", "cache_bandwidth", 1.0, 10.0),
            Constant("matmul", "cache_share", 0.2, 1.2),
            Constant("matmul", "tile_edge", 0.2, 60.0),
            Constant("matmul", "prologue_k", 8.0, 1000.0),
            Constant("matmul", "wave_tail", 0.1, 1.0),
            Constant("matmul", "split_latency", 1e-7, 1e-5),
            Constant("matmul", "unit_bandwidth", 1e10, 1e12),
            Constant("matmul", "fill", 0.02, 1.0),
            Constant("host", "launch", 5e-7, 2e-5),
        ),
        ("aiconfigurator/gemm.csv",),
        "weight shape (n, k)",
    ),
)
