"""Formats of what is computed and of what is stored: group-wise quantised weights and caches are expanded before use."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.graph import FORMAT_BYTES, Elementwise, Numerics
from simulator.graph.work import Numeric
from simulator.specs.zigzag_scenario import ZigzagStrategy

SCALE_BYTES = 4.0
"""Of one group: a scale and a minimum in fp16 (Sheng et al. 2023, section 5, asymmetric min-max quantisation)."""
EXPANSION_BYTES = 19.0
"""Traffic of a value that PyTorch operators expand from a packed byte of two (FlexGen, compression.py).

Each half of the byte is cut out (0.5 read, 0.5 written) and laid into every other place of the output (0.5 read; every sector
of 32 bytes is touched for half of its bytes, which memory with ECC reads and writes whole: 2, 2); then all is divided by the
scale and added to the minimum (2, 2 each).
"""
EXPANSION_KERNELS = 6
NARROWING_BYTES = 25.5
"""Traffic of a value that they narrow (the same file): minimum and maximum (2 read each), difference, product, clamp and rounding
(2, 2 each), conversion (2, 1), and two halves joined in a byte (0.5, 0.5, then 1, 0.5)."""
NARROWING_KERNELS = 9


@dataclass(frozen=True, slots=True)
class Formats:
    """Formats of products, and bytes of weights and cache as they lie in memory, scales counted.

    Attributes
    ----------
    numerics : Numerics
        What kernels see: of weights or caches in groups, their expanded copies.
    weight_bytes, kv_bytes : float
        Of a stored value, with its part of the group's scale [B].
    expands_weights, expands_cache : bool
        Whether a kernel expands them before use.
    passes : bool
        Whether that is several element-wise passes.
    """

    numerics: Numerics
    weight_bytes: float
    kv_bytes: float
    expands_weights: bool = False
    expands_cache: bool = False
    passes: bool = False

    @staticmethod
    def of(strategy: ZigzagStrategy) -> Formats:
        """Read the formats of a strategy."""
        grouped = strategy.weight_group is not None, strategy.kv_group is not None
        numerics = Numerics.of(
            strategy.precision,
            None if grouped[0] else strategy.weight_precision,
            None if grouped[1] else strategy.kv_precision,
        )
        return Formats(
            numerics,
            stored_bytes(strategy.weight_precision, strategy.weight_group, numerics.weight_bytes),
            stored_bytes(strategy.kv_precision, strategy.kv_group, numerics.kv_bytes),
            *grouped, strategy.expansion == "passes",
        )  # fmt: skip

    def expand_weights(self, values: float) -> list[Elementwise]:
        """Return the work of expanding a unit's weights."""
        return self._expand(values, self.weight_bytes) if self.expands_weights else []

    def expand_cache(self, values: Numeric) -> list[Elementwise]:
        """Return the work of expanding the keys and values that a batch attends to."""
        return self._expand(values, self.kv_bytes) if self.expands_cache else []

    def narrow_cache(self, values: float) -> list[Elementwise]:
        """Return the work of narrowing new keys and values."""
        if not self.expands_cache or not values:
            return []
        if self.passes:
            return [Elementwise(NARROWING_BYTES * values, 0.0, kernels=NARROWING_KERNELS)]
        return [Elementwise(self.numerics.activation_bytes * values, self.kv_bytes * values)]

    def expanded_weights(self, values: float) -> float:
        """Bytes of the expanded copy of a unit's weights."""
        return values * self.numerics.weight_bytes if self.expands_weights else 0.0

    def expanded_cache(self, values: float) -> float:
        """Bytes of the expanded copy of a batch's cache."""
        return values * self.numerics.kv_bytes if self.expands_cache else 0.0

    def _expand(self, values: Numeric, stored: float) -> list[Elementwise]:
        if self.passes:
            return [Elementwise(EXPANSION_BYTES * values, 0.0, kernels=EXPANSION_KERNELS)]
        return [Elementwise(stored * values, self.numerics.activation_bytes * values)]


def stored_bytes(format: str | None, group: int | None, wide: float) -> float:
    """Return the bytes of a stored value: of its format, and its part of the scale and minimum of its group."""
    if format is None:
        return wide
    return FORMAT_BYTES[format] + (SCALE_BYTES / group if group else 0.0)
