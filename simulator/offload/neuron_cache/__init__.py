"""Decode of a model that lies in flash, with a cache of its FFN neurons in DRAM, and plain ways of reading it beside that."""

from simulator.offload.neuron_cache.remedies import remedies
from simulator.offload.neuron_cache.run import simulate

__all__ = ["remedies", "simulate"]
