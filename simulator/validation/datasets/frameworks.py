"""Training steps that frameworks publish: SimuMax's B200 node, Megatron-Bridge, Automodel, torchtitan, llm-foundry, MLPerf."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from simulator.specs import Catalog, MemroofError, Model, TrainingStrategy
from simulator.strategy import Outcome
from simulator.validation.dataset import Part, TableDataSet, keep
from simulator.validation.datasets.steps import (
    CONTEXT,
    FSDP,
    LAYOUT,
    NARROW,
    SUBSETS,
    Case,
    Quantity,
    rate,
    step_parts,
)
from simulator.validation.fit import Constant, Fit

if TYPE_CHECKING:
    import pandas as pd

GIB = 2.0**30

# --- SimuMax --------------------------------------------------------------------------------------------------------

SIMUMAX_MODELS: Mapping[str, str] = {
    "llama3-70b": "llama3-70b", "llama3-405b": "llama3.1-405b", "deepseekv2": "deepseek-v2", "deepseekv3": "deepseek-v3",
}  # fmt: skip
SIMUMAX_DENSE_LAYERS = 1
"""Dense layers of the truncated MoE models, of four: the upstream models' shares of 60 and 61 layers would be below one."""


def _truncated(model: Model, layers: int) -> Model:
    """Return a model of fewer layers."""
    moe = model.moe
    if moe is not None and moe.first_dense_layers:
        moe = moe.model_copy(update={"first_dense_layers": min(SIMUMAX_DENSE_LAYERS, moe.first_dense_layers)})
    return model.model_copy(
        update={"name": f"{model.name}-{layers}-layers", "num_hidden_layers": layers, "moe": moe}
    )


def _simumax_case(catalog: Catalog, row: Any) -> Case:
    """Megatron-Core: distributed optimizer, sequence parallelism, fused loss (``cef``), nothing recomputed, 1F1B."""
    if row.cp > 1:
        raise MemroofError(CONTEXT)
    strategy = TrainingStrategy(
        tensor_parallel=row.tp, pipeline_parallel=row.pp, data_parallel=row.dp, expert_parallel=row.ep,
        sequence_parallel=row.tp > 1, micro_batch=row.micro_batch_size, zero_stage=1,
    )  # fmt: skip
    model = _truncated(catalog.model(SIMUMAX_MODELS[row.model]), row.layers)
    batch = row.dp * row.micro_batches * row.micro_batch_size
    return Case("dgx-b200", 1, model, batch, row.seq_len, strategy)


def _allocated(outcome: Outcome, row: int) -> float:
    """Return the bytes that tensors of the fullest GPU take: all but the context."""
    fullest = max(outcome.memory, key=lambda use: use.peak)
    return fullest.peak - fullest.by_category.get("context", 0.0)


def _simumax(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str], *, memory: bool) -> Sequence[Part]:
    frame = keep(frame, frame["model"].isin(list(SIMUMAX_MODELS)), "model is not in the catalog", skipped)
    column, unit = ("measured_peak_alloc_gib", GIB) if memory else ("measured_step_ms", 1e-3)
    extra: dict[str, Any] = {"quantity": lambda rows, cases: _allocated, "certain": True} if memory else {}
    return step_parts(
        frame, catalog, skipped, case=partial(_simumax_case, catalog),
        measured=lambda rows: rows[column].to_numpy(float) * unit, groups=("model", "tp", "pp", "ep"), **extra,
    )  # fmt: skip


# --- Megatron-Bridge ------------------------------------------------------------------------------------------------

BRIDGE_NODES: Mapping[str, tuple[str, int]] = {
    "DGX-H100": ("dgx-h100", 8), "DGX-B200": ("dgx-b200", 8), "DGX-GB200": ("gb200-nvl72", 72),
}  # fmt: skip
"""Node of the catalog and its GPUs, by system."""
BRIDGE_MODELS: Mapping[str, str] = {"GPT OSS 120B": "gpt-oss-120b"}
"""Models of rows in 16 bits."""


def _bridge_case(catalog: Catalog, row: Any) -> Case:
    """Distributed optimizer, overlapped gradient reduction, nothing recomputed; experts equally loaded, as the source says."""
    node, gpus = BRIDGE_NODES[row.system]
    tensor, stages = int(row.tp), int(row.pp)
    strategy = TrainingStrategy(
        tensor_parallel=tensor, pipeline_parallel=stages, data_parallel=row.n_gpus // (tensor * stages),
        expert_parallel=int(row.ep), sequence_parallel=tensor > 1, micro_batch=int(row.mbs), zero_stage=1,
        overlap_gradient_reduction=True,
    )  # fmt: skip
    model = catalog.model(BRIDGE_MODELS[row.model])
    return Case(node, -(-row.n_gpus // gpus), model, int(row.gbs), int(row.seq_len), strategy)


def _bridge(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str]) -> Sequence[Part]:
    frame = keep(frame, frame["task"].str.startswith("Pre-Training"), SUBSETS, skipped)
    frame = keep(frame, frame["precision"] == "BF16", NARROW, skipped)
    frame = keep(frame, ~(frame["fsdp"] > 0), FSDP, skipped)
    frame = keep(frame, frame["cp"] == 1, CONTEXT, skipped)
    known = frame["model"].isin(list(BRIDGE_MODELS)) & frame["system"].isin(list(BRIDGE_NODES))
    frame = keep(frame, known, "model or system is not in the catalog", skipped)
    return step_parts(
        frame, catalog, skipped, case=partial(_bridge_case, catalog),
        measured=lambda rows: rows["tokens_per_s_per_gpu"].to_numpy(float), quantity=_tokens_a_gpu,
        groups=("model", "system"),
    )  # fmt: skip


def _tokens_a_gpu(rows: pd.DataFrame, cases: Sequence[Case]) -> Quantity:
    tokens = rows["gbs"].to_numpy(float) * rows["seq_len"].to_numpy(float)
    return rate(tokens / rows["n_gpus"].to_numpy(float))


# --- sources whose strategies are still to come ----------------------------------------------------------------------


Reason = Callable[["pd.Series[Any]"], str]


def _not_yet(
    frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str], *, reason: Reason
) -> Sequence[Part]:
    skipped.update(reason(row) for _, row in frame.iterrows())
    return ()


def _automodel_reason(row: pd.Series[Any]) -> str:
    if row["task"] == "LoRA":
        return SUBSETS
    return CONTEXT if row["cp"] > 1 else FSDP


def _titan_reason(row: pd.Series[Any]) -> str:
    if row["cp"] > 1:
        return CONTEXT
    return NARROW if "float8" in str(row["techniques"]) else FSDP


def _foundry_reason(row: pd.Series[Any]) -> str:
    return NARROW if "fp8" in str(row["precision"]) else FSDP


def _mlperf_reason(row: pd.Series[Any]) -> str:
    return SUBSETS if "lora" in row["benchmark"] else LAYOUT


FITS = (
    Fit(
        "step",
        (Constant("training", "sustained_clock", 0.4, 1.0),),
        (
            "training_published/megatron_sc21_table1.csv",
            "training_published/megatron_sc21_table2_zero3_vs_ptdp.csv",
            "training_published/megascale_175b.csv",
            "training_published/llama3_405b_table4.csv",
            "training_published/megatron_core_h100_weak_scaling.csv",
            "simumax/b200_step_time_memory.csv#time",
        ),
        "model and layout; other clusters whole",
        unseen=("vtrain/multi_node_iteration_ms.csv", "training_published/bloom_176b_tuning_a100.csv"),
    ),
)
"""The clock that matrix units hold through hours of training, from published steps, and what steps of other layouts, clusters and
software are off by. Table 5 of Korthikanti et al. and vTrain's single nodes are neither fitted on nor judge."""

DATASETS = (
    TableDataSet("simumax/b200_step_time_memory.csv#time", partial(_simumax, memory=False)),
    TableDataSet("simumax/b200_step_time_memory.csv#memory", partial(_simumax, memory=True)),
    TableDataSet("megatron-bridge/training_throughput.csv", _bridge),
    TableDataSet("nemo-automodel/training_step_time_h100.csv", partial(_not_yet, reason=_automodel_reason)),
    TableDataSet("torchtitan/training_tps_memory.csv#tps", partial(_not_yet, reason=_titan_reason)),
    TableDataSet("torchtitan/training_tps_memory.csv#memory", partial(_not_yet, reason=_titan_reason)),
    TableDataSet("llm-foundry/mpt_training_mfu.csv", partial(_not_yet, reason=_foundry_reason)),
    TableDataSet("mlperf-training-v4.1/llm_runs.csv", partial(_not_yet, reason=_mlperf_reason)),
)
