"""A small resident model drafts, a large one read from flash verifies: LLMCad, speculative decoding, and the target alone."""

from simulator.offload.draft_verify.remedies import remedies
from simulator.offload.draft_verify.run import simulate

__all__ = ["remedies", "simulate"]
