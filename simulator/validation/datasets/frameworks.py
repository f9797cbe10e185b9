"""Training steps that NVIDIA's frameworks and their users publish: SimuMax's B200 node, Megatron-Bridge, Automodel."""

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
    Case,
    Quantity,
    eight_to_a_node,
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
    """Return a model of fewer layers; Llama 3 405B with 16 key and value heads, as its first published configuration had.

    Bytes of the rows, which do not depend on how layers are timed, tell that of the two.
    """
    if model.name == "llama3.1-405b":
        model = model.model_copy(update={"num_key_value_heads": 16})
    moe = model.moe
    if moe is not None and moe.first_dense_layers:
        moe = moe.model_copy(update={"first_dense_layers": min(SIMUMAX_DENSE_LAYERS, moe.first_dense_layers)})
    return model.model_copy(
        update={"name": f"{model.name}-{layers}-layers", "num_hidden_layers": layers, "moe": moe}
    )


def _simumax_case(catalog: Catalog, row: Any) -> Case:
    """Megatron-Core on Transformer Engine: distributed optimizer, sequence parallelism, fused loss, 1F1B, contexts as a ring.

    Nothing is recomputed.
    """
    options = {"context_exchange": "ring"} if row.cp > 1 else {}
    strategy = TrainingStrategy(
        tensor_parallel=row.tp, pipeline_parallel=row.pp, context_parallel=row.cp, data_parallel=row.dp,
        expert_parallel=row.ep, sequence_parallel=row.tp > 1, micro_batch=row.micro_batch_size, zero_stage=1,
        transformer_engine=True, **options,
    )  # fmt: skip
    model = _truncated(catalog.model(SIMUMAX_MODELS[row.model]), row.layers)
    batch = row.dp * row.micro_batches * row.micro_batch_size
    return Case("dgx-b200", 1, model, batch, row.seq_len, strategy)


def _allocated(outcome: Outcome, row: int) -> float:
    """Return the bytes that PyTorch's tensors of the fullest GPU take: all but the context and NCCL's buffers."""
    fullest = max(outcome.memory, key=lambda use: use.peak)
    return fullest.peak - sum(
        fullest.by_category.get(name, 0.0) for name in ("context", "communication buffers")
    )


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
    "BF16": ("bf16", "tensor"), "FP8": ("fp8", "tensor"), "MXFP8": ("fp8", "mxfp8"), "NVFP4": ("fp4", "tensor"),
}  # fmt: skip
"""Format of products and recipe of scales, by precision; FP8 alone is taken as current scaling of whole tensors."""
DEEPSEEK_NODES = 4
"""Groups of experts that DeepSeek-V3 routes a token to, placed as nodes (DeepSeek-AI 2024, section 2.1.2)."""
HYBRID = "layers of Mamba-2: no operator yet"


BRIDGE_LORA = {"method": "lora", "rank": 16, "targets": ("attention.qkv",)}
"""Adapters of rows in LoRA, which state none: those of NVIDIA's performance recipes."""


def _bridge_case(catalog: Catalog, row: Any) -> Case:
    """Megatron-Core's performance recipes: what a row does not state is the same for all rows of a generation.

    Transformer Engine's modules, captured as graphs on Blackwell, whose kernels outrun the CPU.
    Distributed optimizer with overlapped reduction and gather (or FSDP where the row gives its degree), gradients in bf16,
    parameters of fp8 rows kept and gathered in fp8,
    tensor-parallel collectives that follow the tiles of products, context parallelism as a ring, experts not cut, equally
    loaded (as the source says) and reached with one copy of a token for each node (DeepEP, HybridEP). Interleaving where the
    row gives virtual stages; embedding and loss count as a layer of the pipeline where that makes chunks even. Recomputation is
    the least that fits. DeepSeek-V3 has one layer more for its multi-token prediction (published FLOP a token say so), without
    its second pass through the head.
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
    chunks = int(row.vp) if row.vp > 1 else 1
    if chunks > 1:
        options |= {"schedule": "1f1b-interleaved", "virtual_stages": chunks}
    options |= _ends_counted(model.num_hidden_layers, stages * chunks)
    if tensor > 1:
        options |= {"sequence_parallel": True, "overlap_tensor_parallel": "chunked"}
    if context > 1:
        options |= {"context_exchange": "ring"}
    if model.moe is not None:
        options |= {
            "expert_parallel": int(row.ep),
            "expert_tensor_parallel": 1,
            **_one_copy_a_node(model, int(row.ep), gpus),
        }
    if row.task.startswith("LoRA"):
        options |= {"trainable": BRIDGE_LORA}
    if precision == "fp8":
        options |= {"parameter_precision": "fp8", "fp8_recipe": recipe}
    strategy = TrainingStrategy.model_validate(
        {
            "tensor_parallel": tensor, "pipeline_parallel": stages, "context_parallel": context,
            "data_parallel": row.n_gpus // (tensor * stages * context), "micro_batch": int(row.mbs),
            "precision": precision, "gradient_precision": "bf16", "transformer_engine": True,
            "cuda_graphs": row.system != "DGX-H100", **options,
        }
    )  # fmt: skip
    case = Case(node, -(-row.n_gpus // gpus), model, int(row.gbs), int(row.seq_len), strategy)
    return least_recomputed(case, catalog)


def _ends_counted(layers: int, places: int) -> dict[str, Any]:
    """Return the split of layers in which embedding and loss stand for one each, where chunks come out even."""
    each, left = divmod(layers + 2, places)
    if places == 1 or left or not layers % places:
        return {}
    return {"layer_split": (each - 1, *(each for _ in range(places - 2)), each - 1)}


def _one_copy_a_node(model: Model, experts: int, gpus: int) -> dict[str, Any]:
    """Return the limit of nodes of a token: those that its experts may lie in."""
    nodes = -(-experts // gpus)
    moe = model.moe
    if moe is None or nodes == 1:
        return {}
    allowed = DEEPSEEK_NODES if model.name.startswith("deepseek-v3") else nodes
    return {"expert_nodes": min(allowed, nodes, moe.num_experts_per_tok)}


def _bridge(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str]) -> Sequence[Part]:
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
    "GPT-OSS 20B": "gpt-oss-20b", "GPT-OSS 120B": "gpt-oss-120b", "Llama3 8B": "llama3-8b", "Llama3 70B": "llama3-70b",
    "Qwen2.5 7B": "qwen2.5-7b", "Qwen2.5 32B": "qwen2.5-32b",
}  # fmt: skip
AUTOMODEL_LORA = {"method": "lora", "rank": 16}
"""Adapters of rows in LoRA, which state none: rank 16 on all linear layers."""


def _automodel_case(catalog: Catalog, row: Any) -> Case:
    """PyTorch's FSDP2 on DGX H100, reductions beside the backward pass; bf16 with gradients and moments in bf16.

    Without a pipeline, parameters are cut over all replicas. A pipeline gathers them and reduces their gradients once (as
    ZeRO-1 does) and is run once for each accumulation of ``lbs`` sequences: the step is one of a batch cut by
    ``grad_accum``. Experts are spread over the ranks that the row states, else over as many GPUs as there are and divide
    them, with one copy of a token for each node (DeepEP, as the rows say). Contexts are gathered; all layers
    are recomputed where nothing else fits, as the software's switch does.
    """
    model = catalog.model(AUTOMODEL_MODELS[_plain(row.model)])
    tensor, stages, context = int(row.tp), int(row.pp), int(row.cp)
    options: dict[str, Any] = (
        {"zero_stage": 3} if stages == 1 else {"zero_stage": 1, "overlap_parameter_gather": True}
    )
    if model.moe is not None:
        stated = str(row.ep).strip()
        experts = int(float(stated)) if stated[:1].isdigit() else math.gcd(row.n_gpus, model.moe.num_experts)
        options |= {
            "expert_parallel": experts,
            "expert_tensor_parallel": 1,
            **_one_copy_a_node(model, experts, 8),
        }
    chunks = str(row.vp).strip()
    if stages > 1 and chunks[:1].isdigit() and float(chunks) > 1:
        options |= {"schedule": "1f1b-interleaved", "virtual_stages": int(float(chunks))}
    if tensor > 1:
        options |= {"sequence_parallel": True}
    if row.task == "LoRA":
        options |= {"trainable": AUTOMODEL_LORA}
    strategy = TrainingStrategy.model_validate(
        {
            "tensor_parallel": tensor, "pipeline_parallel": stages, "context_parallel": context,
            "data_parallel": row.n_gpus // (tensor * stages * context), "micro_batch": int(row.mbs),
            "gradient_precision": "bf16", "moment_precision": "bf16", "overlap_gradient_reduction": True,
            "transformer_engine": True, **options,
        }
    )  # fmt: skip
    batch = int(row.gbs) // _flushes(row)
    case = Case("dgx-h100", eight_to_a_node(row.n_gpus), model, batch, int(row.seq_len), strategy)
    return least_recomputed(case, catalog, in_parts=False)


def _plain(name: str) -> str:
    """Return a model's name without the count of nodes that some rows add."""
    return name.removesuffix(" 2-node")


def _flushes(row: Any) -> int:
    """Times that a step fills and drains its pipeline."""
    return int(row.grad_accum) if row.pp > 1 else 1


def _automodel(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str]) -> Sequence[Part]:
    frame = keep(frame, ~frame["model"].str.startswith("Nemotron"), HYBRID, skipped)
    known = frame["model"].map(_plain).isin(list(AUTOMODEL_MODELS))
    frame = keep(frame, known, "model is not in the catalog", skipped)

    def quantity(rows: pd.DataFrame, cases: Sequence[Case]) -> Quantity:
        flushes = [_flushes(row) for row in rows.itertuples(index=False)]
        return lambda outcome, row: float(outcome.metrics["step_time"].value) * flushes[row]

    return step_parts(
        frame, catalog, skipped, case=partial(_automodel_case, catalog),
        measured=lambda rows: rows["step_time_s"].to_numpy(float), quantity=quantity, groups=("model",),
    )  # fmt: skip


FITS = (
    Fit(
        "step",
        (
            # nothing depends on it where power limits no clock
            Constant("training", "flop_energy", 5e-13, 2e-12, scan=23),
            Constant("attention", "flash_1", 0.15, 1.0),
        ),
        (
            "training_published/megatron_sc21_table1.csv",
            "training_published/megatron_sc21_table2_zero3_vs_ptdp.csv",
            "training_published/megascale_175b.csv",
            "training_published/llama3_405b_table4.csv",
            "training_published/megatron_core_h100_weak_scaling.csv",
            "simumax/b200_step_time_memory.csv#time",
        ),
        "model and layout; other clusters whole",
        whole=("llm-foundry/mpt_training_mfu.csv",),
        unseen=(
            "vtrain/multi_node_iteration_ms.csv",
            "training_published/bloom_176b_tuning_a100.csv",
            "megatron-bridge/training_throughput.csv",
        ),
    ),
)
"""The energy of a FLOP, which sets the clock of matrix units through hours of training, and how fast the first FlashAttention is,
from published steps, and what steps of other layouts, clusters and software are off by. Table 5 of Korthikanti et al. and
vTrain's single nodes are neither fitted on nor judge; Megatron-Bridge's rows only judge, since what their mixtures of experts
wait for would pass for energy. Devices without other rows inherit the energy of their architecture: what differs is their power
limit."""

DATASETS = (
    TableDataSet("simumax/b200_step_time_memory.csv#time", partial(_simumax, memory=False)),
    TableDataSet("simumax/b200_step_time_memory.csv#memory", partial(_simumax, memory=True)),
    TableDataSet("megatron-bridge/training_throughput.csv", _bridge),
    TableDataSet("nemo-automodel/training_step_time_h100.csv", _automodel),
)
