"""Mini-batch training of graph networks whose node features lie in host memory: gathered by the CPU, or read by the GPU."""

from simulator.offload.feature_gather.run import remedies, simulate

__all__ = ["remedies", "simulate"]
