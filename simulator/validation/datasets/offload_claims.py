"""Published figures of offload systems: one module a family of systems turns a row into scenarios and a figure of theirs."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from simulator.cost import CostModel
from simulator.specs import Catalog, MemroofError
from simulator.validation.dataset import FloatArray, Part, TableDataSet, labels
from simulator.validation.datasets.claim import Claim
from simulator.validation.datasets.runs import Case, metrics_of

if TYPE_CHECKING:
    import pandas as pd

SYSTEMS: Mapping[str, str] = {
    "Harmony": "harmony",
    "KTransformers": "host_compute_claims",
    "llama.cpp": "host_compute_claims",
    "MoE-Lens": "mixed_stream_claims",
    "Intel LLM runtime (Neural Speed)": "host_compute_claims",
    "ProMoE": "moe_offload_claims",
    "MoNDE": "moe_offload_claims",
    "eMoE": "moe_offload_claims",
    **dict.fromkeys(
        (
            "CXL-aware allocator",
            "Fuyou",
            "Ratel",
            "SSDTrain",
            "ZeRO-3 Offload",
            "ZeRO-Infinity",
            "ZeRO-Offload",
        ),
        "tiered_step_claims",
    ),
    "LLM in a flash": "on_device_claims",
    "PowerInfer-2": "on_device_claims",
    "LLMCad": "on_device_claims",
    "FuseMax": "fusemax",
    "PyTorch-Direct (VLDB)": "shipped_claims",
    "Data Tiering": "shipped_claims",
    "InfLLM": "shipped_claims",
    "FlightLLM": "shipped_claims",
    "FlexGen": "streaming_claims",
    "ZeRO-Inference": "streaming_claims",
}
"""By the name of the system in the file, the module of this package whose ``claim`` reads its rows."""
UNKNOWN = "system has no scenarios yet"


class _Claimed:
    def __init__(self, claims: Sequence[Claim], cases: Sequence[Sequence[Case]]) -> None:
        self._claims, self._cases = claims, cases

    def predict(self, cost: CostModel) -> FloatArray:
        return self._column(cost, 0)

    def errors(self, cost: CostModel) -> FloatArray:
        return self._column(cost, 1)

    def _column(self, cost: CostModel, which: int) -> FloatArray:
        pairs = zip(self._claims, self._cases, strict=True)
        return np.array([claim.value(metrics_of(cases, cost))[which] for claim, cases in pairs], float)


def _split(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str]) -> Sequence[Part]:
    found: dict[str, list[tuple[int, Claim, list[Case]]]] = {}
    for position, row in enumerate(frame.itertuples(index=False)):
        try:
            claim = _claim(row)
            cases = [Case.of(content, catalog) for content in claim.contents]
        except MemroofError as error:
            skipped[str(error).splitlines()[0]] += 1
            continue
        found.setdefault(cases[0].setup.hardware.devices[0].name, []).append((position, claim, cases))
    parts = []
    for device, chosen in found.items():
        rows = frame.iloc[[position for position, _, _ in chosen]]
        model = _Claimed([claim for _, claim, _ in chosen], [cases for _, _, cases in chosen])
        measured = np.array([claim.measured for _, claim, _ in chosen], float)
        parts.append(
            Part(
                device, measured, model.predict, labels(rows, ("system", "model")), rows["line"].to_numpy(np.int64),
                rows, None, model.errors, fitted=False,
            )
        )  # fmt: skip
    return parts


def _claim(row: object) -> Claim:
    module = SYSTEMS.get(str(getattr(row, "system", "")))
    if module is None:
        raise MemroofError(UNKNOWN)
    claim: Claim = importlib.import_module(f"simulator.validation.datasets.{module}").claim(row)
    return claim


DATASETS = (TableDataSet("seed_claims/offload.csv", _split),)
