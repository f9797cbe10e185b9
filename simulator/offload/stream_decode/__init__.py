"""Generation of one sequence on an accelerator that streams compressed weights past activations on its chip (FlightLLM)."""

from simulator.offload.stream_decode.run import remedies, simulate

__all__ = ["remedies", "simulate"]
