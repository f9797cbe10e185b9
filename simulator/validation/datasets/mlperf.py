"""Training steps of MLPerf Training v4.1: GPT-3 pre-training, and LoRA of Llama 2 70B."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from simulator.specs import Catalog, MemroofError, TrainingStrategy
from simulator.validation.dataset import Part, TableDataSet, keep
from simulator.validation.datasets.steps import (
    Case,
    Quantity,
    fastest,
    least_recomputed,
    rate,
    seconds,
    step_parts,
)

if TYPE_CHECKING:
    import pandas as pd

NODES: Mapping[tuple[str, int], str] = {
    ("H100", 8): "dgx-h100", ("H100", 4): "hgx-h100-4gpu", ("H200", 8): "dgx-h200", ("B200", 8): "dgx-b200",
}  # fmt: skip
"""Nodes by what an accelerator's name holds and how many of it a node has."""
DEGREES = (1, 2, 4, 8)
FP8: Mapping[str, Any] = {
    "precision": "fp8", "fp8_recipe": "delayed", "gradient_precision": "bf16", "cuda_graphs": True,
}  # fmt: skip
LORA = {"method": "lora", "rank": 16, "targets": ("attention.qkv", "attention.output"), "dropout": 0.1}
"""Adapters of the benchmark's reference: rank 16 on attention."""
PACKED = 8192
"""Tokens of a packed sequence of the LoRA benchmark."""
SYSTEM = [
    "submitter",
    "system",
    "benchmark",
    "n_nodes",
    "accel_per_node",
    "accelerator",
    "global_batch_size",
    "grad_accum",
]
"""Columns that tell systems and their settings apart."""


def _case(catalog: Catalog, row: Any) -> Case:
    """Megatron-Core in fp8 with delayed scales: of all layouts with the row's accumulation, the one predicted fastest.

    Layouts are not in the table; submitters have tuned them. Everything overlaps, passes are captured, gradients are in
    bf16. GPT-3: distributed optimizer, interleaving with as many chunks, up to six, as divide a stage's layers, nothing
    recomputed. LoRA: the frozen weights in fp8 alone, micro-batches of one, tensor and context parallelism, the least
    recomputation that fits.
    """
    node = next(
        (node for (key, count), node in NODES.items() if key in row.accelerator and count == row.accel_per_node), None
    )  # fmt: skip
    if node is None:
        raise MemroofError("system is not in the catalog")
    layouts = _lora_layouts if "lora" in row.benchmark else _gpt3_layouts
    return fastest(list(layouts(catalog, node, row)), catalog)


def _gpt3_layouts(catalog: Catalog, node: str, row: Any) -> Iterator[Case]:
    model = catalog.model("gpt3-175b").model_copy(update={"vocab_size": 51_200, "dropout": False})
    gpus, batch = int(row.n_nodes * row.accel_per_node), int(row.global_batch_size)
    for micro in (1, 2):
        replicas = batch // (int(row.grad_accum) * micro)
        for tensor in DEGREES:
            stages, left = divmod(gpus, replicas * tensor) if replicas else (0, 1)
            if left or not stages or model.num_hidden_layers % stages:
                continue
            share = model.num_hidden_layers // stages
            chunks = max(count for count in range(1, 7) if share % count == 0)
            options: dict[str, Any] = {
                "zero_stage": 1,
                "overlap_parameter_gather": True,
                "overlap_gradient_reduction": True,
            }
            if stages > 1 and chunks > 1:
                options |= {"schedule": "1f1b-interleaved", "virtual_stages": chunks}
            if tensor > 1:
                options |= {"sequence_parallel": True, "overlap_tensor_parallel": "chunked"}
            strategy = TrainingStrategy(
                tensor_parallel=tensor, pipeline_parallel=stages, data_parallel=replicas, micro_batch=micro, **options,
                **FP8,
            )  # fmt: skip
            yield Case(node, int(row.n_nodes), model, batch, 2048, strategy)


def _lora_layouts(catalog: Catalog, node: str, row: Any) -> Iterator[Case]:
    model = catalog.model("llama2-70b")
    gpus, batch = int(row.n_nodes * row.accel_per_node), int(row.global_batch_size)
    replicas = batch // int(row.grad_accum)
    for tensor in DEGREES:
        context, left = divmod(gpus, replicas * tensor)
        if left or not context:
            continue
        options: dict[str, Any] = {"overlap_gradient_reduction": True}
        if tensor > 1:
            options |= {"sequence_parallel": True, "overlap_tensor_parallel": "chunked"}
        if context > 1:
            options |= {"context_exchange": "ring"}
        strategy = TrainingStrategy.model_validate(
            {
                "tensor_parallel": tensor, "context_parallel": context, "data_parallel": replicas,
                "trainable": LORA, "zero_stage": 1, "parameter_precision": "fp8", **options, **FP8,
            }
        )  # fmt: skip
        yield least_recomputed(Case(node, int(row.n_nodes), model, batch, PACKED, strategy), catalog)


def _runs(
    frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str], *, benchmark: str, column: str
) -> Sequence[Part]:
    frame = keep(frame, frame["benchmark"] == benchmark, "another benchmark: a data set of its own", skipped)
    frame = keep(frame, frame[column].notna(), "no time of a step", skipped)
    frame = keep(frame, ~frame["system"].str.endswith("-POWER"), "a copy of another system's runs", skipped)
    # runs of one system are repeats: their mean is one row
    mean = frame.groupby(SYSTEM, sort=False)[column].transform("mean")
    frame = frame.assign(**{column: mean})
    frame = keep(frame, ~frame.duplicated(SYSTEM), "repeat, averaged into its first run", skipped)

    def quantity(rows: pd.DataFrame, cases: Sequence[Case]) -> Quantity:
        if column == "median_train_step_s":
            return seconds
        return rate(rows["global_batch_size"].to_numpy(float))

    return step_parts(
        frame, catalog, skipped, case=partial(_case, catalog),
        measured=lambda rows: rows[column].to_numpy(float), quantity=quantity, groups=("system",),
    )  # fmt: skip


DATASETS = (
    TableDataSet(
        "mlperf-training-v4.1/llm_runs.csv#gpt3",
        partial(_runs, benchmark="gpt3", column="median_train_step_s"),
    ),
    TableDataSet(
        "mlperf-training-v4.1/llm_runs.csv#lora",
        partial(_runs, benchmark="llama2_70b_lora", column="median_throughput_samples_s"),
    ),
)
