"""What a second of offloaded work is divided by: what binds it, and its class of operator."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulator.specs import OPERATOR_CLASSES, OperatorClass
from simulator.strategy import Bottleneck

BOTTLENECKS: tuple[Bottleneck, ...] = (
    "compute",
    "memory",
    "latency",
    "host link",
    "storage",
    "host",
    "network",
    "waiting",
)
COLUMNS: tuple[Bottleneck | OperatorClass, ...] = (*BOTTLENECKS, *OPERATOR_CLASSES)
"""What seconds are divided by, twice over: by what binds them, and by operator class."""
Rows = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Price:
    """Seconds of some work, divided over :data:`COLUMNS`; shape (steps, columns)."""

    rows: Rows

    def __add__(self, other: Price) -> Price:
        return Price(self.rows + other.rows)

    def time(self, step: int) -> float:
        """Seconds in a step."""
        return float(self.rows[step, : len(BOTTLENECKS)].sum())

    def shares(self, step: int) -> Rows:
        """Division of one second of it."""
        shares: Rows = self.rows[step] / (self.time(step) or 1.0)
        return shares
