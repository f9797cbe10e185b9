"""Generation that streams all weights in every iteration, with prompts and decode steps mixed and attention on CPUs."""

from simulator.offload.mixed_stream.remedies import remedies
from simulator.offload.mixed_stream.run import simulate

__all__ = ["remedies", "simulate"]
