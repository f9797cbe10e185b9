"""Logits of all positions of prompts, where a framework returns them though only the last is sampled from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulator.cost import CostModel
from simulator.graph import Elementwise, Matmul, Numerics, Work
from simulator.serving.accounts import SIZE
from simulator.serving.extras import charge
from simulator.serving.workload import Floats, Integers
from simulator.specs import Model

WIDE_BYTES = 4.0
"""Of a logit in fp32, which Hugging Face models convert theirs to."""


@dataclass(frozen=True)
class WholeLogits:
    """The head's product for every position of a prompt, and its conversion to fp32.

    An :class:`~simulator.serving.extras.Extra` of one rank.
    """

    model: Model
    tensor: int
    numerics: Numerics
    cost: CostModel

    def decode(self, contexts: Integers, steps: int, queries: int) -> tuple[tuple[int, Floats], ...]:
        """Nothing: decodes sample from all that they compute."""
        return ()

    def mixed(self, new: Integers, cached: Integers, contexts: Integers, seconds: float) -> Floats:
        """Of all positions of prompts but those that are sampled from anyway."""
        positions = float(new.sum()) - len(new)
        if positions <= 0.0:
            return np.zeros(SIZE)
        columns, width = self._columns, self.numerics.activation_bytes
        product = Matmul(
            positions, columns, float(self.model.hidden_size), 1, self.numerics.compute, width, self.numerics.weight_bytes, width
        )  # fmt: skip
        widened = Elementwise(positions * columns * width, positions * columns * WIDE_BYTES)
        works: list[tuple[Work, float]] = [(product, 1.0), (widened, 1.0)]
        return charge(self.cost, works)

    def resident_bytes(self, tokens: int) -> float:
        """Logits of a chunk of ``tokens`` in both formats at once [B]."""
        return tokens * self._columns * (self.numerics.activation_bytes + WIDE_BYTES)

    @property
    def _columns(self) -> float:
        return float(self.model.vocab_size) / self.tensor
