"""Generation with weights and KV cache over GPU memory, DRAM and flash, by FlexGen's zig-zag block schedule."""

from simulator.offload.zigzag.remedies import remedies
from simulator.offload.zigzag.run import simulate

__all__ = ["remedies", "simulate"]
