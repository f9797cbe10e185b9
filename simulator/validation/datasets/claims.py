"""Training steps among published systems' figures: Megatron-LM's plots (approximate readings) and tables."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.specs import Catalog, MemroofError, TrainingStrategy
from simulator.strategy import Outcome
from simulator.validation.dataset import Part, TableDataSet, keep, number_in
from simulator.validation.datasets.published import EARLIER, interleaving, sc21_flop
from simulator.validation.datasets.steps import ZERO_3, Case, Quantity, eight_to_a_node, gpt, step_parts

if TYPE_CHECKING:
    import pandas as pd

SEQUENCE = 2048
MODELS: Mapping[str, tuple[int, int, int]] = {
    "175B": (12_288, 96, 96), "174.6B": (12_288, 96, 96), "162.2B": (20_480, 32, 128), "5.9B": (3_840, 32, 32),
    "91B": (15_360, 32, 128), "145B": (12_288, 80, 96),
}  # fmt: skip
"""Hidden size, layers and heads of the models that the plots of Narayanan et al. 2021 name by size alone (section 5)."""
TERAFLOPS = "achieved throughput per GPU"


def _numbers(text: str) -> dict[str, int]:
    """Return what a text like ``TP8 PP12 GBS60 MBS1`` says."""
    return {name: int(value) for name, value in re.findall(r"\b(TP|PP|DP|GBS|MBS)(\d+)\b", text)}


def _shape(model: str, stages: int) -> tuple[int, int, int]:
    stated = re.search(r"\(L(\d+) h(\d+) a(\d+)\)", model)
    if stated:
        layers, hidden, heads = (int(group) for group in stated.groups())
        return hidden, layers, heads
    if model.startswith("GPT h20480 3 layers/stage"):
        return 20_480, 3 * stages, 128
    size = model.split()[1] if len(model.split()) > 1 else ""
    if size not in MODELS:
        raise MemroofError("claim without a model by its dimensions")
    return MODELS[size]


def _case(row: Any) -> Case:
    """Selene's nodes, full recomputation unless the claim says none; micro-batches of one where no other is stated.

    The plots compare plain 1F1B unless they say that the schedule interleaves; table 1 interleaves (section 5.1).
    """
    found = _numbers(f"{row.workload} {row.strategy}")
    if "GBS" not in found or not {"TP", "PP", "DP"} & set(found):
        raise MemroofError("claim without layout or batch")
    gpus = number_in(row.hardware, r"^(\d+)x")
    tensor, stages = found.get("TP", 1), found.get("PP", 1)
    replicas, micro = found.get("DP", gpus // (tensor * stages)), found.get("MBS", 1)
    hidden, layers, heads = _shape(row.model, stages)
    table1 = "full recompute" in row.strategy and "DP" in found
    interleaves = table1 or re.search(r"(?<!non-)interleaved", row.strategy)
    schedule = interleaving(layers, stages, found["GBS"] // (replicas * micro)) if interleaves else {}
    strategy = TrainingStrategy(
        tensor_parallel=tensor, pipeline_parallel=stages, data_parallel=replicas, micro_batch=micro,
        recompute="none" if "no recompute" in row.strategy else "full", **schedule, **EARLIER,
    )  # fmt: skip
    model = gpt(hidden, layers, heads, sequence=SEQUENCE)
    return Case("dgx-a100-80gb", eight_to_a_node(gpus), model, found["GBS"], SEQUENCE, strategy)


def _quantity(rows: pd.DataFrame, cases: Sequence[Case]) -> Quantity:
    """TFLOP/s a GPU as equation 3 counts them, or sequences a second."""
    sizes = np.array([[c.model.num_hidden_layers, c.model.hidden_size, c.batch] for c in cases], float)
    work = sc21_flop(rows.assign(seq_len=SEQUENCE), sizes[:, 0], sizes[:, 1], sizes[:, 2])
    gpus = np.array(
        [
            c.strategy.tensor_parallel * c.strategy.pipeline_parallel * (c.strategy.data_parallel or 1)
            for c in cases
        ]
    )
    per_gpu = (rows["unit"] == "TFLOP/s").to_numpy()
    numerator = np.where(per_gpu, work / gpus / 1e12, sizes[:, 2])

    def value(outcome: Outcome, row: int) -> float:
        return float(numerator[row]) / outcome.metrics["step_time"].value

    return value


def _split(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str]) -> Sequence[Part]:
    steps = frame["system"].eq("Megatron-LM PTD-P") & frame["metric"].isin([TERAFLOPS, "throughput"])
    frame = keep(
        frame,
        steps & frame["unit"].isin(["TFLOP/s", "seq/s"]),
        "no figure of a training step's speed",
        skipped,
    )
    frame = keep(frame, frame["strategy"] != "ZeRO-3", ZERO_3, skipped)
    return step_parts(
        frame, catalog, skipped, case=_case, measured=lambda rows: rows["value"].to_numpy(float), quantity=_quantity,
        groups=("model",),
    )  # fmt: skip


DATASETS = (TableDataSet("seed_claims/models.csv", _split),)
