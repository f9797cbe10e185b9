"""Training by task swapping: layers in packs, each swapped in once for all micro-batches, updates on the CPU (Harmony)."""

from simulator.offload.task_packs.remedies import remedies
from simulator.offload.task_packs.run import simulate

__all__ = ["remedies", "simulate"]
