"""Training steps of fully sharded data parallelism in PyTorch: llm-foundry's MPT tables and torchtitan's Llama tables."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from simulator.specs import Catalog, MemroofError, TrainingStrategy
from simulator.strategy import Outcome
from simulator.validation.dataset import Part, TableDataSet, keep
from simulator.validation.datasets.steps import Case, Quantity, eight_to_a_node, rate, step_parts

if TYPE_CHECKING:
    import pandas as pd

GIB = 2.0**30

# --- llm-foundry ----------------------------------------------------------------------------------------------------

FOUNDRY_NODES: Mapping[str, str] = {
    "a100_40gb": "oci-bm.gpu4.8", "a100_80gb": "oci-bm.gpu.a100-v2.8", "h100_80gb": "oci-bm.gpu.h100.8",
}  # fmt: skip
"""Nodes of 1,600 Gb/s of RoCE, as the tables of A100 state; of 3,200 for H100, which state none."""


def _foundry_case(catalog: Catalog, row: Any) -> Case:
    """Composer's FSDP: fp32 parameters cut over all GPUs, gathered in bf16 block by block, one block ahead.

    ``SHARD_GRAD_OP`` keeps what is gathered until the backward pass is through with it. Gradients are reduced once a
    micro-batch, in fp32 under the mixed precision ``DEFAULT`` and in bf16 under ``PURE``. ``act_ckpt`` recomputes whole
    blocks. FlashAttention of 2022 (in Triton: the tables are of spring and summer 2023), a fused cross entropy, eager PyTorch,
    Adam; fp8 by Transformer Engine with delayed scales.
    """
    if row.act_cpu_offload:
        raise MemroofError("activations offloaded to the CPU: not a field of a training scenario")
    fp8 = "fp8" in row.precision
    strategy = TrainingStrategy(
        data_parallel=row.n_gpus, micro_batch=row.micro_batch, zero_stage=3,
        reshard_after_forward=row.fsdp_sharding == "FULL_SHARD", recompute="full" if row.act_ckpt else "none",
        precision="fp8" if fp8 else "bf16", parameter_precision="fp32",
        gradient_precision="bf16" if row.mp_mode == "PURE" else "fp32", attention_kernel="flash-1",
        **({"fp8_recipe": "delayed"} if fp8 else {}),
    )  # fmt: skip
    model = catalog.model(f"mpt-{row.model}-learned")
    model = model.model_copy(update={"max_position_embeddings": row.seq_len})
    return Case(
        FOUNDRY_NODES[row.gpu], eight_to_a_node(row.n_gpus), model, row.global_batch, row.seq_len, strategy
    )


def _foundry(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str]) -> Sequence[Part]:
    known = frame["gpu"].isin(list(FOUNDRY_NODES))
    frame = keep(frame, known, "device is not in the catalog", skipped)
    return step_parts(
        frame, catalog, skipped, case=partial(_foundry_case, catalog),
        measured=lambda rows: rows["tokens_per_s_per_gpu"].to_numpy(float), quantity=_tokens_a_gpu,
        groups=("gpu", "model", "seq_len"),
    )  # fmt: skip


def _tokens_a_gpu(rows: pd.DataFrame, cases: Sequence[Case]) -> Quantity:
    gpus = rows["n_gpus"].to_numpy(float)
    return rate([case.tokens for case in cases] / gpus)


# --- torchtitan -----------------------------------------------------------------------------------------------------

TITAN_MODELS: Mapping[str, str] = {
    "Llama3.1-8B": "llama3.1-8b", "Llama3.1-70B": "llama3.1-70b", "Llama3.1-405B": "llama3.1-405b",
}  # fmt: skip
TITAN_AGAIN = (
    "attention.norm", "attention.qkv.k_proj", "attention.rotary", "attention.output", "attention.residual", "mlp.norm",
    "mlp.up.up_proj", "mlp.activation", "mlp.residual",
)  # fmt: skip
"""What per-operator checkpointing computes again of a layer: all but attention and every other product, of seven."""


def _titan_case(catalog: Catalog, row: Any) -> Case:
    """FSDP2 with fp32 parameters, gathered in bf16 (in fp8 where float8 is on), gradients reduced in fp32, Adam.

    Tensor parallelism with sequence parallelism; its collectives follow the tiles of products under AsyncTP. Contexts are
    gathered (all-gather of keys and values). A pipeline gathers parameters and reduces gradients once a step, as ZeRO-1 does; it
    has as many micro-batches as stages and, where the row says so, is interleaved with two chunks a stage. PyTorch's own
    attention is FlashAttention-2. Blocks are compiled; the loss in the rows of H200 alone (2025), in those of 2024 it runs
    as several kernels. Selective recomputation is that of single operators, the recipes' default.
    """
    words = str(row.techniques)
    tensor, stages, context, replicas = (int(getattr(row, name)) for name in ("tp", "pp", "cp", "fsdp"))
    local = int(row.local_batch)
    fp8 = "float8" in words
    options: dict[str, Any] = {"zero_stage": 3}
    if stages > 1:
        options = {"zero_stage": 1, "overlap_gradient_reduction": True, "overlap_parameter_gather": True}
        interleaved = "nterleaved" in words
        options |= (
            {"schedule": "1f1b-interleaved", "virtual_stages": 2} if interleaved else {"schedule": "1f1b"}
        )
    if fp8:
        options["fp8_recipe"] = "tensor"
    if tensor > 1:
        options |= {
            "sequence_parallel": True,
            "overlap_tensor_parallel": "chunked" if "AsyncTP" in words else "none",
        }
    strategy = TrainingStrategy(
        tensor_parallel=tensor, pipeline_parallel=stages, context_parallel=context, data_parallel=replicas,
        micro_batch=max(1, local // stages),
        precision="fp8" if fp8 else "bf16", parameter_precision="fp32", attention_kernel="flash-2",
        fused_loss=row.hardware.startswith("H200"), wide_loss=not row.hardware.startswith("H200"), joined_projections=False,
        **_titan_recompute(str(row.recompute)), **options,
    )  # fmt: skip
    node = "dgx-h200" if row.hardware.startswith("H200") else "hgx-h100-96gb-hbm2e"
    model = catalog.model(TITAN_MODELS[row.model])
    return Case(node, eight_to_a_node(row.n_gpus), model, local * replicas, int(row.seq_len), strategy)


def _titan_recompute(text: str) -> dict[str, Any]:
    if text.startswith("full"):
        return {"recompute": "full"}
    if re.search("none|no AC", text):
        return {}
    return {"recompute_operators": TITAN_AGAIN}


def _titan(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str], *, memory: bool) -> Sequence[Part]:
    rowwise = frame["techniques"].astype(str).str.contains("rowwise")
    frame = keep(
        frame,
        ~rowwise,
        "fp8 with a scale for each row of an operand: no recipe of a training scenario",
        skipped,
    )
    frame = keep(frame, frame["model"].isin(list(TITAN_MODELS)), "model is not in the catalog", skipped)
    column = "peak_memory_gib" if memory else "tokens_per_s_per_gpu"
    frame = keep(frame, frame[column].notna(), "not measured", skipped)
    unit = GIB if memory else 1.0

    def quantity(rows: pd.DataFrame, cases: Sequence[Case]) -> Quantity:
        return _reserved if memory else _tokens_a_gpu(rows, cases)

    return step_parts(
        frame, catalog, skipped, case=partial(_titan_case, catalog),
        measured=lambda rows: rows[column].to_numpy(float) * unit, quantity=quantity, certain=memory,
        groups=("model", "hardware", "tp", "seq_len"),
    )  # fmt: skip


def _reserved(outcome: Outcome, row: int) -> float:
    """Return what PyTorch's allocator holds of the fullest GPU."""
    if outcome.further is None:
        raise MemroofError("the step has no figure for what the allocator reserves")
    return outcome.further()["reserved_memory"].value


DATASETS = (
    TableDataSet("torchtitan/training_tps_memory.csv#tps", partial(_titan, memory=False)),
    TableDataSet("torchtitan/training_tps_memory.csv#memory", partial(_titan, memory=True)),
    TableDataSet("llm-foundry/mpt_training_mfu.csv", _foundry),
)
