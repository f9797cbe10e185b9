"""What a graph network computes on one mini-batch: sums over sampled neighbours and dense products, forward and backward."""

from __future__ import annotations

from typing import Any

import numpy as np

from simulator.cost import ALONE, CostModel
from simulator.graph import Elementwise, Matmul, Work
from simulator.offload.columns import COLUMNS, Price
from simulator.offload.feature_gather.access import MiniBatch
from simulator.specs import Graph
from simulator.specs.feature_gather_scenario import FeatureGatherWorkload

LAYER_OPERATORS = 30
"""Kernels of a layer as DGL's SAGEConv and GraphConv call them (from memory, unverified). Forward 12: rows of the targets,
message passing (degrees, cleared sums, sum, division), products with bias and their sum, activation, dropout. Backward 18: two
of each product, one of the others."""
UPDATE_OPERATORS = 9
"""Of each parameter tensor in each step: gradient cleared, and the eight of an Adam that is not fused (PyTorch 1.8: two
moments, two operators each; root, correction, epsilon, update)."""
OTHER_OPERATORS = 25
"""Loss and its gradient, labels, accuracy, and copies of the sampled blocks' index arrays."""


def train_price(
    batch: MiniBatch,
    graph: Graph,
    workload: FeatureGatherWorkload,
    format: str,
    element: float,
    cost: CostModel,
    lent: float = 0.0,
) -> Price:
    """Return the seconds that one mini-batch computes on the accelerator; shape of the price (1, columns).

    Kernels take their time on the device or that of their launches from Python, whichever is longer in sum.

    Parameters
    ----------
    batch : MiniBatch
        Nodes and edges by layer.
    graph, workload : Graph, FeatureGatherWorkload
        Widths of the network.
    format : str
        Of products.
    element : float
        Bytes of an activation.
    cost : CostModel
        Of the accelerator.
    lent : float
        Share of its units that does something else meanwhile; kernels slow down by it, launches do not.
    """
    total = cost.total(works(batch, graph, workload, format, element), ALONE) * (1.0 / (1.0 - lent))
    rows = np.zeros((1, len(COLUMNS)))
    parts: dict[Any, Any] = {**total.by_bound, **total.by_class}
    for name, seconds in parts.items():
        rows[:, COLUMNS.index(name)] = seconds
    tensors = 3 if workload.network == "graphsage" else 2
    layer = LAYER_OPERATORS + UPDATE_OPERATORS * tensors
    operators = layer * len(workload.fan_outs) + OTHER_OPERATORS
    launches = operators * (cost.calibration.training.eager_operator or 0.0)
    waited = max(0.0, launches - float(np.asarray(total.time)))
    rows[:, COLUMNS.index("latency")] += waited
    rows[:, len(COLUMNS) - 1 - COLUMNS[::-1].index("host")] += waited
    return Price(rows)


def works(
    batch: MiniBatch, graph: Graph, workload: FeatureGatherWorkload, format: str, element: float
) -> list[Work]:
    """Return the works of one mini-batch, forward and backward.

    Layer l takes the nodes of hop l + 1 to those of hop l (GraphSAGE, algorithm 2): the outermost first, from features.
    A sum over neighbours reads a row for each edge; its gradient, but for features, adds one for each. GraphSAGE has a
    product for the node and one for its neighbours, GCN one for their sum (Kipf and Welling 2017, equation 2).
    """
    layers = len(workload.fan_outs)
    products = 2 if workload.network == "graphsage" else 1
    found: list[Work] = []
    for hop in reversed(range(layers)):
        first, last = hop == layers - 1, hop == 0
        width = graph.features if first else workload.hidden
        out = graph.classes if last else workload.hidden
        targets, edges = batch.nodes[hop], batch.edges[hop]
        row = width * element
        aggregate = Elementwise(edges * row, targets * row, edges * width, reuse_distance=np.inf)
        product = Matmul(
            targets, out, width, format=format, left_bytes=element, right_bytes=element, out_bytes=element
        )
        weight = Matmul(
            width, out, targets, format=format, left_bytes=element, right_bytes=element, out_bytes=element
        )
        found += [aggregate, *[product] * products, *[weight] * products]
        found.append(Elementwise(2 * targets * out * element, 2 * targets * out * element))
        if not first:
            back = Matmul(
                targets, width, out, format=format, left_bytes=element, right_bytes=element, out_bytes=element
            )
            scatter = Elementwise(
                edges * row, edges * row + batch.nodes[hop + 1] * row, edges * width, reuse_distance=np.inf
            )
            found += [*[back] * products, scatter]
    return found


def activation_bytes(
    batch: MiniBatch, graph: Graph, workload: FeatureGatherWorkload, element: float
) -> float:
    """Return the bytes that training keeps of one mini-batch beside its features [B].

    Sums over neighbours, outputs and what activations save of each layer, their gradients, and the sampled edges.
    """
    kept = 0.0
    layers = len(workload.fan_outs)
    for hop in range(layers):
        width = graph.features if hop == layers - 1 else workload.hidden
        kept += batch.nodes[hop] * (width + 2 * workload.hidden) * element
    return 2.0 * kept + 16.0 * sum(batch.edges)
