"""Generation of MoE models whose routed experts live outside GPU memory: cache, prefetch, computing at home."""

from simulator.offload.expert_cache.remedies import remedies
from simulator.offload.expert_cache.run import simulate

__all__ = ["remedies", "simulate"]
