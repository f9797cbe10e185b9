"""memroof: an analytical memory and throughput simulator for AI systems."""
