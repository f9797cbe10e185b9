"""The model graph: operators with their work, parameters and saved tensors; no hardware."""

from simulator.graph.build import build
from simulator.graph.experts import active_experts
from simulator.graph.graph import (
    FORMAT_BYTES,
    Block,
    ModelGraph,
    Numerics,
    Operator,
    Partition,
    Phase,
    Shape,
    Tensor,
)
from simulator.graph.work import (
    Attention,
    Axis,
    Collective,
    Elementwise,
    Gather,
    Matmul,
    Numeric,
    Work,
)

__all__ = [
    "FORMAT_BYTES", "Attention", "Axis", "Block", "Collective", "Elementwise", "Gather", "Matmul", "ModelGraph", "Numeric",
    "Numerics", "Operator", "Partition", "Phase", "Shape", "Tensor", "Work", "active_experts", "build",
]  # fmt: skip
