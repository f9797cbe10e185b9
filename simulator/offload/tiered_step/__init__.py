"""One training step over GPU memory, DRAM, CXL and flash: parameters, gradients, optimizer states and activations in tiers.

ZeRO-Offload, ZeRO-3 Offload, ZeRO-Infinity, SSDTrain, Fuyou and Ratel, and CXL-aware allocation are settings of one schedule.
"""

from simulator.offload.tiered_step.remedies import remedies
from simulator.offload.tiered_step.run import simulate

__all__ = ["remedies", "simulate"]
