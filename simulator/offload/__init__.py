"""Offload: generation with weights and KV cache over GPU memory, DRAM and flash."""

from simulator.offload.remedies import remedies
from simulator.offload.run import simulate

__all__ = ["remedies", "simulate"]
