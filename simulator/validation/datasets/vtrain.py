"""Iteration times of Megatron-LM on A100 over grids of layouts: vTrain's measurements."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from simulator.specs import Catalog, TrainingStrategy
from simulator.validation.dataset import Part, TableDataSet
from simulator.validation.datasets.steps import Case, eight_to_a_node, gpt, step_parts

if TYPE_CHECKING:
    import pandas as pd

RAILS = 4
"""800 Gb/s of InfiniBand a node of eight A100, as the multi-node table's README says: four HDR NICs."""


def _case(row: Any) -> Case:
    """1F1B with full recomputation in fp16, attention as separate kernels (Megatron-LM of 2022).

    Tensor-parallel collectives are exposed, and gradients are reduced after the last backward pass: that software's own data
    parallelism knows no overlap before 2023, and the time that replicas add is the same for small and large micro-batches.
    """
    strategy = TrainingStrategy(
        tensor_parallel=row.tp, pipeline_parallel=row.pp, data_parallel=row.dp, micro_batch=row.micro_batch,
        recompute="full", fused_attention=False, fused_loss=False, precision="fp16",
        fused_accumulation=False, overlap_tensor_parallel="none",
    )  # fmt: skip
    model = gpt(row.hidden, row.layers, row.heads, sequence=row.seq_len)
    nodes = eight_to_a_node(row.n_gpus)
    return Case("dgx-a100-80gb", nodes, model, row.global_batch, row.seq_len, strategy, RAILS)


def _split(frame: pd.DataFrame, catalog: Catalog, skipped: Counter[str]) -> Sequence[Part]:
    return step_parts(
        frame, catalog, skipped, case=_case, measured=lambda rows: rows["iteration_ms"].to_numpy(float) * 1e-3,
        groups=("hidden", "layers", "tp", "pp", "dp"),
    )  # fmt: skip


DATASETS = (
    TableDataSet("vtrain/single_node_iteration_ms.csv", _split),
    TableDataSet("vtrain/multi_node_iteration_ms.csv", _split),
)
