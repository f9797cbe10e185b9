"""Matrix products: aiconfigurator's linear layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from simulator.cost import CostModel
from simulator.graph import Matmul
from simulator.specs import Catalog
from simulator.validation.dataset import FloatArray, Part, TableDataSet, keep, labels
from simulator.validation.datasets.devices import AICONFIGURATOR
from simulator.validation.fit import Constant, Fit

if TYPE_CHECKING:
    import pandas as pd

FORMATS = {"bfloat16": "bf16"}


def _split(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str]) -> Sequence[Part]:
    frame = keep(frame, frame["gemm_dtype"].isin(list(FORMATS)), "number format is not modelled", skipped)
    device = frame["src"].str.split("/").str[0].map(AICONFIGURATOR)
    frame = keep(frame, device.notna(), "device is not in the catalog", skipped)
    parts = []
    for (source, dtype), rows in frame.groupby(["src", "gemm_dtype"], sort=True):
        form = FORMATS[str(dtype)]
        m, n, k = (rows[name].to_numpy(float) for name in ("m", "n", "k"))

        def predict(
            cost: CostModel, m: FloatArray = m, n: FloatArray = n, k: FloatArray = k, form: str = form
        ) -> FloatArray:
            return np.asarray(cost.price(Matmul(m, n, k, format=form)).time)

        parts.append(
            Part(
                AICONFIGURATOR[str(source).split("/")[0]], rows["latency_ms"].to_numpy(float) * 1e-3, predict,
                labels(rows, ["n", "k"]), rows["line"].to_numpy(np.int64), rows, "matmul",
            )
        )  # fmt: skip
    return parts


DATASETS = (TableDataSet("aiconfigurator/gemm.csv", _split),)

FITS = (
    Fit(
        "matmul",
        (
            Constant("matmul", "peak_efficiency", 0.5, 1.0),
            Constant("matmul", "memory_efficiency", 0.4, 1.0),
            Constant("matmul", "tile_edge", 0.5, 60.0),
            Constant("matmul", "prologue_k", 8.0, 1000.0),
            Constant("matmul", "fill", 0.05, 1.0),
            Constant("host", "launch", 5e-7, 2e-5),
        ),
        ("aiconfigurator/gemm.csv",),
        "weight shape (n, k)",
    ),
)
