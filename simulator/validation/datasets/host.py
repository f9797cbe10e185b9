"""What the CPU adds to an iteration of a serving engine that hides nothing: vidur's profiles of vLLM in 2023."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from simulator.cost import CostModel
from simulator.specs import Catalog
from simulator.validation.dataset import FloatArray, Part, TableDataSet, keep, labels
from simulator.validation.fit import Constant, Fit

if TYPE_CHECKING:
    import pandas as pd

DEVICES: Mapping[str, str] = {"a100": "a100-80gb-sxm", "a40": "a40"}
STEPS = (
    "schedule_median", "prepare_inputs_e2e_median", "sampler_e2e_median", "process_model_outputs_median",
    "ray_comm_time_mean",
)  # fmt: skip
"""What runs one after the other on the CPU; launching the model runs beside the kernels and isn't counted."""


def _split(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str]) -> Sequence[Part]:
    frame = keep(frame, frame["gpu"].isin(list(DEVICES)), "device is not in the catalog", skipped)
    total = sum(frame[name] for name in STEPS)
    frame = keep(frame.assign(total=total), total > 0.0, "a time is missing or not positive", skipped)
    parts = []
    for (gpu, workers), rows in frame.groupby(["gpu", "tensor_parallel_degree"], sort=True):
        sequences = rows["batch_size"].to_numpy(float)

        def predict(
            cost: CostModel, sequences: FloatArray = sequences, workers: int = int(str(workers))
        ) -> FloatArray:
            return np.asarray(cost.host_iteration(sequences, workers).time)

        parts.append(
            Part(DEVICES[str(gpu)], rows["total"].to_numpy(float) * 1e-3, predict,
                 labels(rows, ["model_name", "tensor_parallel_degree"]), rows["line"].to_numpy(np.int64), rows, "host")
        )  # fmt: skip
    return parts


NAMES = tuple(f"vidur/cpu_overheads_{gpu}.csv" for gpu in DEVICES)
DATASETS = tuple(TableDataSet(name, _split) for name in NAMES)

FITS = (
    Fit(
        "host",
        (
            Constant("host", "iteration", 1e-4, 1e-2),
            Constant("host", "per_sequence", 1e-6, 1e-3),
            Constant("host", "workers", 1e-4, 5e-2),
        ),
        NAMES,
        "model and tensor-parallel degree",
    ),
)
