"""Attention on a 2-D array with a vector unit beside it: which operator runs where, what waits for what, what crosses memory."""

from simulator.offload.waterfall.run import remedies, simulate

__all__ = ["remedies", "simulate"]
