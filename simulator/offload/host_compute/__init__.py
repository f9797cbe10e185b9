"""Generation where weights are computed on where they lie: accelerators beside CPUs (KTransformers, llama.cpp)."""

from simulator.offload.host_compute.remedies import remedies
from simulator.offload.host_compute.run import simulate

__all__ = ["remedies", "simulate"]
