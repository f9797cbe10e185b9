"""Published steps of Megatron-LM and its descendants: tables of papers and of project pages."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.specs import Catalog, MemroofError, TrainingStrategy
from simulator.validation.dataset import FloatArray, Part, TableDataSet, keep
from simulator.validation.datasets.steps import (
    LAYOUT,
    UNCHECKED,
    Case,
    Quantity,
    eight_to_a_node,
    fastest,
    gpt,
    rate,
    step_parts,
)

if TYPE_CHECKING:
    import pandas as pd

SC21_MICRO_BATCH: Mapping[float, int] = {
    1.7: 16, 3.6: 16, 7.5: 16, 18.4: 8, 39.1: 4, 76.1: 2, 145.6: 2, 310.1: 1, 529.6: 1, 1008.0: 1,
}  # fmt: skip
"""Sequences of a micro-batch by billions of parameters: what ``seed_claims/models.csv`` says of the same table (7.5B: as its
neighbours)."""
SEPARATE: Mapping[str, Any] = {
    "fused_attention": False, "fused_loss": False, "precision": "fp16",
}  # fmt: skip
"""Megatron-LM of May 2022: attention and loss as several kernels, fp16. Its fused weight gradients came that spring; whether
the runs of table 5 had them is not stated, and what the software does by default is taken: without them steps would be 4 to 8 %
longer and within 3 % of the measured ones."""
EARLIER: Mapping[str, Any] = {**SEPARATE, "fused_accumulation": False, "overlap_tensor_parallel": "none"}
"""Megatron-LM of 2021 and what branched off it (Megatron-DeepSpeed): gradients added by kernels of their own, no collective
beside a product."""


def interleaving(layers: int, stages: int, micro_batches: int, layers_a_chunk: int = 2) -> dict[str, Any]:
    """Return the schedule of Megatron-LM where a source says no more than that it interleaves.

    Chunks of ``layers_a_chunk`` layers (what Narayanan et al. 2021, figure 12, uses) or the next more that divide a stage;
    plain 1F1B where a stage is one chunk or the micro-batches are no multiple of the stages.
    """
    share = layers // stages
    chunk = next((size for size in range(layers_a_chunk, share) if share % size == 0), share)
    if stages == 1 or layers % stages or micro_batches % stages or chunk == share:
        return {"schedule": "1f1b"}
    return {"schedule": "1f1b-interleaved", "virtual_stages": share // chunk}


# --- Narayanan et al. 2021 ------------------------------------------------------------------------------------------


def sc21_flop(rows: pd.DataFrame, layers: FloatArray, hidden: FloatArray, batch: FloatArray) -> FloatArray:
    """FLOP of a step with full recomputation, of all GPUs (Narayanan et al. 2021, equation 3; vocabulary of 51,200)."""
    sequence = rows["seq_len"].to_numpy(float)
    share = 1.0 + sequence / (6.0 * hidden) + 51_200.0 / (16.0 * layers * hidden)
    work: FloatArray = 96.0 * batch * sequence * layers * hidden**2 * share
    return work


def _sc21_case(row: Any) -> Case:
    micro = SC21_MICRO_BATCH.get(row.params_b, 1)
    schedule = interleaving(row.layers, row.pp, row.batch_seqs // (row.dp * micro))
    strategy = TrainingStrategy(
        tensor_parallel=row.tp, pipeline_parallel=row.pp, data_parallel=row.dp, micro_batch=micro, recompute="full",
        **schedule, **EARLIER,
    )  # fmt: skip
    model = gpt(row.hidden, row.layers, row.heads, sequence=row.seq_len, vocabulary=row.vocab)
    return Case("dgx-a100-80gb", eight_to_a_node(row.gpus), model, row.batch_seqs, row.seq_len, strategy)


def _sc21_table1(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str]) -> Sequence[Part]:
    frame = keep(frame, frame["verified"] == "yes", UNCHECKED, skipped)

    def quantity(rows: pd.DataFrame, cases: Sequence[Case]) -> Quantity:
        layers, hidden, batch = (rows[name].to_numpy(float) for name in ("layers", "hidden", "batch_seqs"))
        return rate(sc21_flop(rows, layers, hidden, batch) / rows["gpus"].to_numpy(float))

    return step_parts(
        frame, catalog, skipped, case=_sc21_case, measured=lambda rows: rows["tflops_per_gpu"].to_numpy(float) * 1e12,
        quantity=quantity, groups=("params_b",),
    )  # fmt: skip


SC21_MODELS: Mapping[float, tuple[int, int, int]] = {174.6: (12_288, 96, 96), 529.6: (20_480, 105, 128)}
"""Hidden size, layers and heads of the models of table 2: GPT-3's and those of table 1."""


def _ptdp_case(row: Any) -> Case:
    """PTD-P in tensor-parallel groups of a node, interleaved; DeepSpeed's ZeRO-3 of 2021 over all GPUs.

    That gathers and reduces tensor by tensor, and beside nothing (``overlap_comm`` is off unless asked for).
    """
    hidden, layers, heads = SC21_MODELS[row.params_b]
    stages = row.model_parallel_size // 8
    replicas = row.gpus // row.model_parallel_size
    layout: dict[str, Any] = {"zero_stage": 3, "gather_unit": "tensor", "prefetch": 0}
    if row.scheme != "ZeRO-3":
        schedule = interleaving(layers, stages, row.batch_seqs // (replicas * row.micro_batch))
        layout = {"tensor_parallel": 8, "pipeline_parallel": stages, **schedule}
    strategy = TrainingStrategy(
        data_parallel=replicas, micro_batch=row.micro_batch, recompute="full", **layout, **EARLIER,
    )  # fmt: skip
    model = gpt(hidden, layers, heads, sequence=row.seq_len)
    return Case("dgx-a100-80gb", eight_to_a_node(row.gpus), model, row.batch_seqs, row.seq_len, strategy)


def _sc21_table2(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str]) -> Sequence[Part]:
    frame = keep(frame, frame["params_b"].isin(list(SC21_MODELS)), "model is not in the table", skipped)

    def quantity(rows: pd.DataFrame, cases: Sequence[Case]) -> Quantity:
        sizes = [SC21_MODELS[value] for value in rows["params_b"]]
        hidden, layers = (np.array([size[i] for size in sizes], float) for i in (0, 1))
        work = sc21_flop(rows, layers, hidden, rows["batch_seqs"].to_numpy(float))
        return rate(work / rows["gpus"].to_numpy(float))

    return step_parts(
        frame, catalog, skipped, case=_ptdp_case, measured=lambda rows: rows["tflops_per_gpu"].to_numpy(float) * 1e12,
        quantity=quantity, groups=("params_b",),
    )  # fmt: skip


# --- Korthikanti et al. 2022 ----------------------------------------------------------------------------------------


def _korthikanti_case(row: Any, *, mode: str, sequence: int) -> Case:
    selective = "selective" in mode
    schedule: dict[str, Any] = {"schedule": "1f1b"}
    if row.interleave > 1:
        schedule = {"schedule": "1f1b-interleaved", "virtual_stages": row.interleave}
    layers = int(getattr(row, "layers", 0) or row.blocks)
    strategy = TrainingStrategy(
        tensor_parallel=row.tp, pipeline_parallel=row.pp, data_parallel=row.dp, micro_batch=row.micro_batch,
        sequence_parallel=selective, recompute="selective" if selective else "full", **schedule, **SEPARATE,
    )  # fmt: skip
    model = gpt(row.hidden, layers, row.heads, sequence=sequence)
    gpus = row.tp * row.pp * row.dp
    return Case("dgx-a100-80gb", eight_to_a_node(gpus), model, row.global_batch, sequence, strategy)


def _table5(
    frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str], *, mode: str, sequence: str
) -> Sequence[Part]:
    def case(row: Any) -> Case:
        return _korthikanti_case(row, mode=getattr(row, mode), sequence=int(getattr(row, sequence)))

    return step_parts(
        frame, catalog, skipped, case=case, measured=lambda rows: rows["iteration_s"].to_numpy(float),
        groups=("model",),
    )  # fmt: skip


# --- MegaScale, Llama 3, Megatron-Core, single runs -----------------------------------------------------------------


MEGASCALE: Mapping[str, Any] = {
    "fused_attention": True, "overlap_tensor_parallel": "chunked", "zero_stage": 1, "overlap_gradient_reduction": True,
    "overlap_parameter_gather": True,
}  # fmt: skip
"""What MegaScale adds (Jiang et al. 2024, sections 3.1 to 3.4): FlashAttention-2, chunked tensor-parallel collectives, overlapped
reductions and gathers; its blocks are parallel ones. Its sliding window is not stated (attention over all is assumed: 1 % of its
own ablation), nor is it how it recomputes: nothing, as fused attention keeps no scores."""


def _megascale_case(row: Any) -> Case:
    """Korthikanti's Megatron-LM with interleaving of six chunks (Jiang et al. 2024, section 6.1), A100 and eight HDR NICs."""
    own = row.system != "Megatron-LM"
    options = MEGASCALE if own else {"fused_attention": False, "fused_loss": False, "recompute": "selective"}
    strategy = TrainingStrategy(
        tensor_parallel=8, pipeline_parallel=8, micro_batch=1, schedule="1f1b-interleaved", virtual_stages=6,
        sequence_parallel=True, **options,
    )  # fmt: skip
    model = gpt(12_288, 96, 128, sequence=2048)
    if own:
        model = model.model_copy(update={"name": "megascale-175b", "parallel_block": True})
    return Case("dgx-a100-80gb", eight_to_a_node(row.gpus), model, row.global_batch, 2048, strategy)


def _megascale(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str]) -> Sequence[Part]:
    return step_parts(
        frame, catalog, skipped, case=_megascale_case, measured=lambda rows: rows["iteration_s"].to_numpy(float),
        groups=("global_batch",),
    )  # fmt: skip


def _llama3(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str]) -> Sequence[Part]:
    model = catalog.model("llama3.1-405b")

    def case(row: Any) -> Case:
        # two layers a chunk, one in the first and the last; keys and values gathered over contexts; ranks in the order of
        # section 3.3.2 (Llama team 2024)
        strategy = TrainingStrategy(
            tensor_parallel=row.tp, pipeline_parallel=row.pp, context_parallel=row.cp, data_parallel=row.dp, micro_batch=1,
            schedule="1f1b-interleaved", virtual_stages=4, sequence_parallel=True, zero_stage=1,
            overlap_gradient_reduction=True, rank_order="tp-cp-pp-dp",
        )  # fmt: skip
        batch = row.batch_per_dp * row.dp
        return Case("grand-teton-h100", eight_to_a_node(row.gpus), model, batch, row.seq_len, strategy)

    return step_parts(
        frame, catalog, skipped, case=case, measured=lambda rows: rows["tflops_per_gpu"].to_numpy(float) * 1e12,
        quantity=lambda rows, cases: _model_rate, groups=("gpus",),
    )  # fmt: skip


def _model_rate(outcome: Any, row: int) -> float:
    return float(outcome.metrics["model_flops_per_second_per_gpu"].value)


def _megatron_core_case(catalog: Catalog, row: Any) -> Case:
    """Sequence parallelism, distributed optimizer, no recomputation; 4,096 tokens, untied 131,072 words.

    Reductions, gathers and tensor-parallel collectives overlap (the project's README names the three switches). The depth and
    widths with this vocabulary give the sizes that the table prints. Micro-batches are not stated: of one, two and four
    sequences those that are predicted to be the fastest.
    """
    return fastest([_megatron_core_layout(row, micro) for micro in (1, 2, 4)], catalog)


def _megatron_core_layout(row: Any, micro: int) -> Case:
    schedule = interleaving(row.layers, row.pp, row.batch_seqs // (row.dp * micro))
    strategy = TrainingStrategy(
        tensor_parallel=row.tp, pipeline_parallel=row.pp, data_parallel=row.dp, sequence_parallel=row.tp > 1,
        micro_batch=micro, zero_stage=1, overlap_gradient_reduction=True, overlap_parameter_gather=True, transformer_engine=True,
        overlap_tensor_parallel="chunked" if row.tp > 1 else "backward", **schedule,
    )  # fmt: skip
    model = gpt(row.hidden, row.layers, row.heads, sequence=4096, vocabulary=131_072, tied=False)
    model = model.model_copy(update={"dropout": False})
    return Case("dgx-h100", eight_to_a_node(row.gpus), model, row.batch_seqs, 4096, strategy)


def _megatron_core(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str]) -> Sequence[Part]:
    return step_parts(
        frame, catalog, skipped, case=partial(_megatron_core_case, catalog),
        measured=lambda rows: rows["tflops_per_gpu"].to_numpy(float) * 1e12,
        quantity=lambda rows, cases: _model_rate, groups=("model",),
    )  # fmt: skip


def _single_runs(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str]) -> Sequence[Part]:
    frame = keep(frame, frame["verified"] == "yes", UNCHECKED, skipped)
    frame = keep(
        frame, ~frame["hardware"].str.startswith("TPU"), "layouts of TPU slices: no strategy yet", skipped
    )
    frame = keep(frame, frame["run"].isin(["MT-NLG 530B", "DeepSeek-V3"]), LAYOUT, skipped)
    whole = "hours of a whole run, its long contexts and restarts included"
    frame = keep(frame, frame["quantity"] != "total_gpu_hours", whole, skipped)

    def case(row: Any) -> Case:
        if row.run == "DeepSeek-V3":
            return _deepseek_case(catalog)
        # 530B of table 1 of Narayanan et al. 2021 in micro-batches of one, 1F1B (Smith et al. 2022, section 3.2)
        strategy = TrainingStrategy(
            tensor_parallel=8, pipeline_parallel=35, data_parallel=8, recompute="full", **EARLIER,
        )  # fmt: skip
        return Case("dgx-a100-80gb", 280, gpt(20_480, 105, 128, sequence=2048), 1920, 2048, strategy)

    def measured(rows: pd.DataFrame) -> FloatArray:
        return np.array([_tokens_a_second(row) for row in rows.itertuples(index=False)])

    return step_parts(
        frame, catalog, skipped, case=case, measured=measured,
        quantity=lambda rows, cases: lambda outcome, row: float(outcome.metrics["tokens_per_second"].value),
        groups=("run",),
    )  # fmt: skip


def _tokens_a_second(row: Any) -> float:
    """Tokens a second of all GPUs, from them or from the GPU hours of 10^12 tokens."""
    if row.quantity == "tokens_per_s":
        return float(row.value)
    return 1e12 / (float(row.value) * 3600.0 / float(row.accelerators))


DEEPSEEK_AGAIN = (
    "attention.norm",
    "mlp.norm",
    "attention.q_norm",
    "attention.kv_norm",
    "attention.q_b",
    "attention.kv_b",
)
"""What DeepSeek-V3 computes again: norms and the up-projections of latent attention (section 3.2.3)."""


def _deepseek_case(catalog: Catalog) -> Case:
    """DeepSeek-V3 as its report trains it (DeepSeek-AI 2024, sections 3.2, 3.3 and 4.2).

    2,048 H800 of 256 nodes: 16 stages in DualPipe, 128 replicas, experts over 64 GPUs of 8 nodes, four nodes a token,
    ZeRO-1, fp8 in blocks, bf16 moments, norms and up-projections of latent attention recomputed; a batch of 15,360
    sequences of 4,096 tokens in micro-batches of one. The multi-token prediction is one layer more, without its second
    pass through the head. The report does not state how all-to-alls hide beyond DualPipe's pairs.
    """
    strategy = TrainingStrategy(
        pipeline_parallel=16, data_parallel=128, expert_parallel=64, expert_nodes=4, zero_stage=1, micro_batch=1,
        schedule="dualpipe", precision="fp8", fp8_recipe="block", moment_precision="bf16", overlap_expert_parallel=True,
        overlap_gradient_reduction=True,
        recompute_operators=DEEPSEEK_AGAIN,
    )  # fmt: skip
    model = catalog.model("deepseek-v3")
    model = model.model_copy(
        update={"name": "deepseek-v3-mtp", "num_hidden_layers": model.num_hidden_layers + 1}
    )
    return Case("h800-node", 256, model, 15_360, 4096, strategy)


# --- BigScience -----------------------------------------------------------------------------------------------------

BLOOM_WORDS = 250_880
BLOOM_WIDTH = 14_336
"""Hidden size of the final model, assumed where a row states none."""


def bloom_depth(size: float, hidden: int, stages: int) -> int:
    """Return the layers, a multiple of the stages, whose stack is nearest to a stated size of parameters."""
    layers = (size - BLOOM_WORDS * hidden) / (12.0 * hidden**2)
    return max(1, round(layers / stages)) * stages


def _bloom_size(text: Any) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)B", str(text))
    return float(found.group(1)) * 1e9 if found else 0.0


def _bloom_case(row: Any) -> Case:
    """Megatron-DeepSpeed: 1F1B, ZeRO-1, full recomputation; Jean Zay's four Omni-Path links of 100 Gb/s a node."""
    tensor, stages = int(row.tp), int(row.pp)
    replicas = int(row.gpus) // (tensor * stages)
    hidden = int(row.hidden) if row.hidden == row.hidden else BLOOM_WIDTH
    layers = bloom_depth(_bloom_size(row.size), hidden, stages)
    if row.layers == row.layers:
        raise MemroofError("cut models of one node whose size is that of the whole")
    heads = hidden // 128
    if heads % tensor:
        raise MemroofError(
            f"heads of 128 elements do not divide over tensor-parallel ranks at hidden size {hidden}"
        )
    strategy = TrainingStrategy(
        tensor_parallel=tensor, pipeline_parallel=stages, data_parallel=replicas, micro_batch=int(row.mbs),
        recompute="full", zero_stage=int(row.zero_stage), **EARLIER,
    )  # fmt: skip
    model = gpt(hidden, layers, heads, sequence=int(row.seq_len), vocabulary=BLOOM_WORDS)
    model = model.model_copy(update={"position": "alibi", "embedding_norm": True, "dropout": False})
    nodes = eight_to_a_node(row.gpus)
    return Case("dgx-a100-80gb", nodes, model, int(row.gbs), int(row.seq_len), strategy, 4, "infiniband-edr")


def _bloom(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str]) -> Sequence[Part]:
    stated = frame[["tp", "pp", "mbs", "gbs", "zero_stage", "sec_per_iter"]].notna().all(axis=1)
    frame = keep(frame, stated, "layout or time is not in the table", skipped)
    # that day's rows with a stated width are a quarter faster than those without: another width was tried
    open_width = frame["hidden"].isna() & frame["notes"].astype(str).str.startswith("02-20")
    frame = keep(frame, ~open_width, "width is not in the table, and was being changed", skipped)

    def quantity(rows: pd.DataFrame, cases: Sequence[Case]) -> Quantity:
        # depths are whole: the time goes with the size that is stated
        scale = [
            _bloom_size(size) / (12.0 * c.model.num_hidden_layers * c.model.hidden_size**2 + BLOOM_WORDS * c.model.hidden_size)
            for size, c in zip(rows["size"], cases, strict=True)
        ]  # fmt: skip
        return lambda outcome, row: float(outcome.metrics["step_time"].value) * scale[row]

    return step_parts(
        frame, catalog, skipped, case=_bloom_case, measured=lambda rows: rows["sec_per_iter"].to_numpy(float),
        quantity=quantity, groups=("size", "tp", "pp"),
    )  # fmt: skip


FOLDER = "training_published"

DATASETS = (
    TableDataSet(f"{FOLDER}/megatron_sc21_table1.csv", _sc21_table1),
    TableDataSet(f"{FOLDER}/megatron_sc21_table2_zero3_vs_ptdp.csv", _sc21_table2),
    TableDataSet(
        f"{FOLDER}/reducing_activation_recomputation_table5.csv",
        partial(_table5, mode="mode", sequence="seq_len"),
    ),
    TableDataSet(
        "megatron-paper-2205.05198/iteration_time.csv", partial(_table5, mode="recompute", sequence="seq")
    ),
    TableDataSet(f"{FOLDER}/megascale_175b.csv", _megascale),
    TableDataSet(f"{FOLDER}/llama3_405b_table4.csv", _llama3),
    TableDataSet(f"{FOLDER}/megatron_core_h100_weak_scaling.csv", _megatron_core),
    TableDataSet(f"{FOLDER}/bloom_176b_tuning_a100.csv", _bloom),
    TableDataSet(f"{FOLDER}/single_point_runs.csv", _single_runs),
)
