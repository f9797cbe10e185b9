"""Training steps that NVIDIA's frameworks and their users publish: SimuMax's B200 node, Megatron-Bridge, Automodel, MLPerf."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from simulator.specs import Catalog, MemroofError, Model, TrainingStrategy
from simulator.strategy import Outcome
from simulator.validation.dataset import Part, TableDataSet, keep
from simulator.validation.datasets.steps import (
    SUBSETS,
    Case,
    Quantity,
    eight_to_a_node,
    fastest,
    least_recomputed,
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
    """Megatron-Core: distributed optimizer, sequence parallelism, fused loss (``cef``), 1F1B, contexts as a ring.

    Nothing is recomputed.
    """
    options = {"context_exchange": "ring"} if row.cp > 1 else {}
    strategy = TrainingStrategy(
        tensor_parallel=row.tp, pipeline_parallel=row.pp, context_parallel=row.cp, data_parallel=row.dp,
        expert_parallel=row.ep, sequence_parallel=row.tp > 1, micro_batch=row.micro_batch_size, zero_stage=1, **options,
    )  # fmt: skip
    model = _truncated(catalog.model(SIMUMAX_MODELS[row.model]), row.layers)
    batch = row.dp * row.micro_batches * row.micro_batch_size
    return Case("dgx-b200", 1, model, batch, row.seq_len, strategy)


def _allocated(outcome: Outcome, row: int) -> float:
    """Return the bytes that PyTorch's tensors of the fullest GPU take: all but the context and NCCL's buffers."""
    fullest = max(outcome.memory, key=lambda use: use.peak)
    return fullest.peak - sum(fullest.by_category.get(name, 0.0) for name in ("context", "communication buffers"))


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
    "DGX-H100": ("dgx-h100", 8), "DGX-H200": ("dgx-h200", 8), "DGX-B200": ("dgx-b200", 8), "DGX-B300": ("dgx-b300", 8),
    "DGX-GB200": ("gb200-nvl72", 72), "DGX-GB300": ("gb300-nvl72", 72),
}  # fmt: skip
"""Node of the catalog and its GPUs, by system."""
BRIDGE_MODELS: Mapping[str, str] = {
    "LLAMA3_8B": "llama3-8b", "LLAMA3_70B": "llama3-70b", "LLAMA3.1_405B": "llama3.1-405b",
    "GPT OSS 20B": "gpt-oss-20b", "GPT OSS 120B": "gpt-oss-120b", "Qwen3_30B_a3B": "qwen3-30b-a3b",
    "Qwen3_235B_a22B": "qwen3-235b-a22b", "DeepSeekV3": "deepseek-v3", "Kimi_K2": "kimi-k2",
}  # fmt: skip
BRIDGE_FORMATS: Mapping[str, tuple[str, str]] = {
    "BF16": ("bf16", "tensor"), "FP8": ("fp8", "tensor"), "MXFP8": ("fp8", "mxfp8"),
}  # fmt: skip
"""Format of products and recipe of scales, by precision; FP8 alone is taken as current scaling of whole tensors."""
HYBRID = "layers of Mamba-2: no operator yet"


def _bridge_case(catalog: Catalog, row: Any) -> Case:
    """Megatron-Core's performance recipes: what a row does not state is the same for all rows.

    Distributed optimizer with overlapped reduction and gather (or FSDP where the row gives its degree), gradients in bf16,
    tensor-parallel collectives that follow the tiles of products, context parallelism as a ring, experts not cut, equally
    loaded (as the source says), interleaving where the row gives virtual stages. Recomputation is the least that fits.
    DeepSeek-V3 has one layer more for its multi-token prediction (published FLOP a token say so), without its second pass
    through the head.
    """
    if row.precision not in BRIDGE_FORMATS:
        raise MemroofError(f"training in {row.precision}: no precision of a training scenario")
    node, gpus = BRIDGE_NODES[row.system]
    precision, recipe = BRIDGE_FORMATS[row.precision]
    tensor, stages, context = int(row.tp), int(row.pp), int(row.cp)
    model = catalog.model(BRIDGE_MODELS[row.model])
    if model.name == "deepseek-v3":
        model = model.model_copy(
            update={"name": "deepseek-v3-mtp", "num_hidden_layers": model.num_hidden_layers + 1}
        )
    options: dict[str, Any] = {"overlap_gradient_reduction": True}
    if row.fsdp > 0:
        options |= {"zero_stage": 3}
    else:
        options |= {"zero_stage": 1, "overlap_parameter_gather": True}
    if row.vp > 1:
        options |= {"schedule": "1f1b-interleaved", "virtual_stages": int(row.vp)}
    if tensor > 1:
        options |= {"sequence_parallel": True, "overlap_tensor_parallel": "chunked"}
    if context > 1:
        options |= {"context_exchange": "ring"}
    if model.moe is not None:
        options |= {"expert_parallel": int(row.ep), "expert_tensor_parallel": 1}
    strategy = TrainingStrategy(
        tensor_parallel=tensor, pipeline_parallel=stages, context_parallel=context,
        data_parallel=row.n_gpus // (tensor * stages * context), micro_batch=int(row.mbs), precision=precision,
        fp8_recipe=recipe, gradient_precision="bf16", **options,
    )  # fmt: skip
    case = Case(node, -(-row.n_gpus // gpus), model, int(row.gbs), int(row.seq_len), strategy)
    return least_recomputed(case, catalog)


def _bridge(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str]) -> Sequence[Part]:
    frame = keep(frame, ~frame["task"].str.startswith("LoRA"), SUBSETS, skipped)
    frame = keep(frame, ~frame["model"].str.startswith("Nemotron"), HYBRID, skipped)
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


# --- Automodel ------------------------------------------------------------------------------------------------------

AUTOMODEL_MODELS: Mapping[str, str] = {
    "DeepSeek V3 671B": "deepseek-v3", "Kimi K2": "kimi-k2", "Qwen3 MoE 30B": "qwen3-30b-a3b",
    "GPT-OSS 20B": "gpt-oss-20b", "GPT-OSS 120B": "gpt-oss-120b", "Llama3 70B": "llama3-70b",
}  # fmt: skip


def _automodel_case(catalog: Catalog, row: Any) -> Case:
    """PyTorch's FSDP2 on DGX H100: states cut over all replicas, reductions beside the backward pass, bf16.

    A pipeline keeps gathered parameters and is run once for each accumulation of ``lbs`` sequences: the step is one of a
    batch cut by ``grad_accum``. Experts are spread over the ranks that the row states, else over as many GPUs as there are
    and divide them. Contexts are gathered; recomputation is the least that fits.
    """
    model = catalog.model(AUTOMODEL_MODELS[row.model])
    tensor, stages, context = int(row.tp), int(row.pp), int(row.cp)
    options: dict[str, Any] = {}
    if model.moe is not None:
        stated = str(row.ep).strip()
        options["expert_parallel"] = (
            int(stated) if stated.isdigit() else math.gcd(row.n_gpus, model.moe.num_experts)
        )
    if stages > 1 and str(row.vp).strip().isdigit() and int(row.vp) > 1:
        options |= {"schedule": "1f1b-interleaved", "virtual_stages": int(row.vp)}
    if tensor > 1:
        options |= {"sequence_parallel": True}
    strategy = TrainingStrategy(
        tensor_parallel=tensor, pipeline_parallel=stages, context_parallel=context,
        data_parallel=row.n_gpus // (tensor * stages * context), micro_batch=int(row.mbs), zero_stage=3,
        reshard_after_forward=stages == 1, overlap_gradient_reduction=True, **options,
    )  # fmt: skip
    batch = int(row.gbs) // _flushes(row)
    case = Case("dgx-h100", eight_to_a_node(row.n_gpus), model, batch, int(row.seq_len), strategy)
    return least_recomputed(case, catalog)


def _flushes(row: Any) -> int:
    """Times that a step fills and drains its pipeline."""
    return int(row.grad_accum) if row.pp > 1 else 1


def _automodel(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str]) -> Sequence[Part]:
    frame = keep(frame, frame["task"] != "LoRA", SUBSETS, skipped)
    frame = keep(frame, ~frame["model"].str.startswith("Nemotron"), HYBRID, skipped)
    frame = keep(frame, frame["model"].isin(list(AUTOMODEL_MODELS)), "model is not in the catalog", skipped)

    def quantity(rows: pd.DataFrame, cases: Sequence[Case]) -> Quantity:
        flushes = [_flushes(row) for row in rows.itertuples(index=False)]
        return lambda outcome, row: float(outcome.metrics["step_time"].value) * flushes[row]

    return step_parts(
        frame, catalog, skipped, case=partial(_automodel_case, catalog),
        measured=lambda rows: rows["step_time_s"].to_numpy(float), quantity=quantity, groups=("model",),
    )  # fmt: skip


# --- MLPerf Training ------------------------------------------------------------------------------------------------

MLPERF_NODES: Mapping[str, str] = {"H100": "dgx-h100", "H200": "dgx-h200", "B200": "dgx-b200"}
"""Nodes of eight GPUs, by what an accelerator's name holds."""
MLPERF_DEGREES = (1, 2, 4, 8)


def _mlperf_case(catalog: Catalog, row: Any) -> Case:
    """GPT-3 in fp8 with delayed scales, Megatron-Core: of all layouts with the row's accumulation, the one predicted fastest.

    Layouts are not in the table; submitters have tuned them. Distributed optimizer, everything overlapped, gradients in
    bf16; interleaving with as many chunks as divide a stage's layers, up to six; nothing recomputed.
    """
    node = next((node for key, node in MLPERF_NODES.items() if key in row.accelerator), None)
    if node is None or row.accel_per_node != 8:
        raise MemroofError("system is not in the catalog")
    model = catalog.model("gpt3-175b").model_copy(update={"vocab_size": 51_200, "dropout": False})
    gpus, batch = int(row.n_nodes * row.accel_per_node), int(row.global_batch_size)
    cases = []
    for micro in (1, 2, 4):
        replicas = batch // (int(row.grad_accum) * micro)
        for tensor in MLPERF_DEGREES:
            stages, left = divmod(gpus, replicas * tensor) if replicas else (0, 1)
            if left or not stages or model.num_hidden_layers % stages:
                continue
            for chunks in _chunks(model.num_hidden_layers, stages):
                strategy = _mlperf_strategy(tensor, stages, replicas, micro, chunks)
                cases.append(Case(node, int(row.n_nodes), model, batch, 2048, strategy))
    return fastest(cases, catalog)


def _chunks(layers: int, stages: int) -> list[int]:
    """Counts of chunks of a stage that divide its layers: one, and the most up to six."""
    share = layers // stages
    most = max((count for count in range(1, 7) if share % count == 0), default=1)
    return [1] if stages == 1 else sorted({1, most})


def _mlperf_strategy(tensor: int, stages: int, replicas: int, micro: int, chunks: int) -> TrainingStrategy:
    options: dict[str, Any] = {"schedule": "1f1b-interleaved", "virtual_stages": chunks} if chunks > 1 else {}
    if tensor > 1:
        options |= {"sequence_parallel": True, "overlap_tensor_parallel": "chunked"}
    return TrainingStrategy(
        tensor_parallel=tensor, pipeline_parallel=stages, data_parallel=replicas, micro_batch=micro, zero_stage=1,
        precision="fp8", fp8_recipe="delayed", gradient_precision="bf16", overlap_gradient_reduction=True,
        overlap_parameter_gather=True, **options,
    )  # fmt: skip


def _mlperf(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str]) -> Sequence[Part]:
    frame = keep(frame, ~frame["benchmark"].str.contains("lora"), SUBSETS, skipped)
    frame = keep(frame, frame["median_train_step_s"].notna(), "no time of a step", skipped)
    # runs of one system are repeats: their mean is one row
    shape = [
        "submitter",
        "system",
        "benchmark",
        "n_nodes",
        "accel_per_node",
        "accelerator",
        "global_batch_size",
        "grad_accum",
    ]
    if len(frame):
        mean = frame.groupby(shape, sort=False)["median_train_step_s"].transform("mean")
        frame = frame.assign(median_train_step_s=mean)
        frame = keep(frame, ~frame.duplicated(shape), "repeat, averaged into its first run", skipped)
    return step_parts(
        frame, catalog, skipped, case=partial(_mlperf_case, catalog),
        measured=lambda rows: rows["median_train_step_s"].to_numpy(float), groups=("system",),
    )  # fmt: skip


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
    TableDataSet("nemo-automodel/training_step_time_h100.csv", _automodel),
    TableDataSet("mlperf-training-v4.1/llm_runs.csv", _mlperf),
)
