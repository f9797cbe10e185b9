"""Activation memory under tensor and sequence parallelism and recomputation: figures 1 and 7 of Korthikanti et al. 2022."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.cost import CostModel
from simulator.graph.graph import Recompute
from simulator.specs import Catalog, TrainingStrategy
from simulator.training import make_plan
from simulator.training.recomputation import recomputed
from simulator.training.step import Step
from simulator.training.work import StageWork
from simulator.validation.dataset import FloatArray, Part, TableDataSet, keep, labels
from simulator.validation.datasets.steps import Case, gpt

if TYPE_CHECKING:
    import pandas as pd

GIB = 2.0**30

# hidden size, layers, heads, pipeline stages, chunks a stage, micro-batch, global batch (tables 3 and 5)
LAYOUTS: Mapping[str, tuple[int, int, int, int, int, int, int]] = {
    "22B": (6_144, 48, 64, 1, 1, 4, 4),
    "175B": (12_288, 96, 96, 8, 3, 1, 64),
    "530B": (20_480, 105, 128, 35, 3, 1, 280),
    "1T": (25_600, 128, 160, 64, 1, 1, 512),
}

# sequence parallelism and recomputation, by what the tables call the technique
TECHNIQUES: Mapping[str, tuple[bool, Recompute]] = {
    "-": (False, "none"),
    "none (TP only)": (False, "none"),
    "TP only": (False, "none"),
    "none": (False, "none"),
    "sequence parallel": (True, "none"),
    "seq": (True, "none"),
    "selective recompute": (False, "selective"),
    "sel": (False, "selective"),
    "both": (True, "selective"),
    "seqsel": (True, "selective"),
    "selective+sequence parallel": (True, "selective"),
    "full recompute": (False, "full"),
    "full": (False, "full"),
}


def held(stage: StageWork) -> float:
    """Return the most bytes of activations that a stage holds at once; what recomputation brings back apart."""
    now = most = 0.0
    for row in stage.schedule:
        now += float(stage.chunks[row.chunk].memory.saved) * (1.0 if row.part == "forward" else -1.0)
        most = max(most, now)
    return most


def _step(catalog: Catalog, model: str, technique: str) -> Step:
    hidden, layers, heads, stages, chunks, micro, batch = LAYOUTS[model]
    parallel, recompute = TECHNIQUES[technique]
    strategy = TrainingStrategy(
        tensor_parallel=8, pipeline_parallel=stages, data_parallel=1, micro_batch=micro, sequence_parallel=parallel,
        schedule="1f1b-interleaved" if chunks > 1 else "1f1b", virtual_stages=chunks, recompute=recompute,
        fused_attention=False, fused_loss=False, precision="fp16",
    )  # fmt: skip
    case = Case("dgx-a100-80gb", stages, gpt(hidden, layers, heads, sequence=2048), batch, 2048, strategy)
    setup = case.setup(catalog)
    scenario: Any = setup.scenario
    return Step(setup, scenario, make_plan(scenario, setup.model, setup.hardware))


def _layer(step: Step) -> float:
    """Bytes that one layer keeps of a micro-batch: what figure 7 compares, the paper's table 2."""
    block = step.graph.blocks[0]
    return float(block.saved_bytes(recomputed(block, step.strategy)))


def _states(step: Step) -> float:
    """Bytes of weights, gradients and optimizer states of a GPU, mean over the stages: what figure 1 shows."""
    stages = range(step.plan.pipeline)
    return sum(float(step.states(stage).total) for stage in stages) / len(stages)


def _part(
    frame: pd.DataFrame,
    catalog: Catalog,
    measured: FloatArray,
    quantities: Sequence[str],
    techniques: Sequence[str],
) -> Part:
    """Return the part of some rows; bytes rest on no constant, so that they are computed once and have no interval."""
    predicted: list[float] = []
    for model, quantity, technique in zip(frame["model_size"], quantities, techniques, strict=True):
        step = _step(catalog, model, technique)
        if "%" in quantity:
            predicted.append(100.0 * _layer(step) / _layer(_step(catalog, model, "TP only")))
        else:
            predicted.append((_states(step) if quantity.startswith("params") else held(step.stage(0))) / GIB)
    values = np.array(predicted)

    def predict(cost: CostModel) -> FloatArray:
        return values

    def certain(cost: CostModel) -> FloatArray:
        return np.zeros(len(values))

    return Part(
        "a100-80gb-sxm", measured, predict, labels(frame, ["model_size"]), frame["line"].to_numpy(np.int64), frame, None,
        certain,
    )  # fmt: skip


def _known(frame: pd.DataFrame, technique: str, skipped: Counter[str]) -> pd.DataFrame:
    frame = frame.assign(model_size=frame["model"].str.split("-").str[-1])
    known = frame["model_size"].isin(list(LAYOUTS)) & frame[technique].isin(list(TECHNIQUES))
    return keep(frame, known, "model or technique is not in the paper's tables", skipped)


def _figures(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str], *, figure: str) -> Sequence[Part]:
    frame = keep(frame, frame["figure"] == figure, "another figure: a data set of its own", skipped)
    frame = keep(frame, frame["technique"] != "TP only", "is 100 % by definition", skipped)
    frame = _known(frame, "technique", skipped)
    measured = frame["value"].to_numpy(float)
    return (_part(frame, catalog, measured, frame["quantity"].tolist(), frame["technique"].tolist()),)


def _shares(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str]) -> Sequence[Part]:
    frame = keep(frame, frame["mode"] != "none", "is 100 % by definition", skipped)
    frame = _known(frame, "mode", skipped)
    measured = frame["activation_memory_pct_of_tp_baseline"].to_numpy(float)
    return (_part(frame, catalog, measured, ["%"] * len(frame), frame["mode"].tolist()),)


MEMORY = "training_published/reducing_activation_recomputation_memory.csv"

DATASETS = (
    TableDataSet(f"{MEMORY}#gib", partial(_figures, figure="fig1")),
    TableDataSet(f"{MEMORY}#share", partial(_figures, figure="fig7")),
    TableDataSet("megatron-paper-2205.05198/activation_memory_pct.csv", _shares),
)
