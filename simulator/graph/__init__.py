"""The model graph: operators with their work, parameters and saved tensors; no hardware."""

from simulator.graph.build import build
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
from simulator.graph.routing import Routed, active_experts, dropped_share, routed
from simulator.graph.work import (
    Attention,
    Axis,
    Collective,
    Elementwise,
    Gather,
    Matmul,
    Numeric,
    Route,
    Work,
)

__all__ = [
    "FORMAT_BYTES",
    "Attention",
    "Axis",
    "Block",
    "Collective",
    "Elementwise",
    "Gather",
    "Matmul",
    "ModelGraph",
    "Numeric",
    "Numerics",
    "Operator",
    "Partition",
    "Phase",
    "Route",
    "Routed",
    "Shape",
    "Tensor",
    "Work",
    "active_experts",
    "build",
    "dropped_share",
    "routed",
]  # fmt: skip
