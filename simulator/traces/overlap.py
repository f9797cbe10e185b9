"""What ran beside what: communication that computation hides, and time in which nothing ran."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulator.traces.rules import UNMATCHED, group_classes, kernel_group
from simulator.traces.trace import Kernel

Intervals = npt.NDArray[np.float64]
"""Rows of start and end, disjoint and in order [s]."""


@dataclass(frozen=True, slots=True)
class Occupation:
    """How a device's time was spent [s].

    Attributes
    ----------
    span : float
        From the first start to the last end.
    busy : float
        With at least one kernel.
    compute : float
        With at least one kernel that does not communicate.
    communication : float
        With at least one collective.
    hidden : float
        Of ``communication``, beside computation.
    """

    span: float
    busy: float
    compute: float
    communication: float
    hidden: float

    @property
    def exposed(self) -> float:
        """Communication beside which nothing is computed [s]."""
        return self.communication - self.hidden

    @property
    def idle(self) -> float:
        """Nothing ran [s]."""
        return self.span - self.busy


def occupation(kernels: Iterable[Kernel]) -> Occupation | None:
    """Return how the time was spent; None where the trace has no starts."""
    timed = [(kernel, kernel.start) for kernel in kernels if kernel.start is not None]
    if not timed:
        return None
    classes = group_classes()
    apart: tuple[list[tuple[float, float]], list[tuple[float, float]]] = ([], [])
    for kernel, start in timed:
        group = kernel_group(kernel.name, kernel.category)
        communicates = group != UNMATCHED and classes[group] == "collective"
        apart[communicates].append((start, start + kernel.duration))
    compute, communication = (union(part) for part in apart)
    busy = union([*apart[0], *apart[1]])
    hidden = length(compute) + length(communication) - length(busy)
    return Occupation(
        float(busy[-1, 1] - busy[0, 0]),
        length(busy),
        length(compute),
        length(communication),
        max(0.0, hidden),
    )


def union(intervals: Iterable[tuple[float, float]]) -> Intervals:
    """Return the union of intervals as disjoint ones in order.

    Examples
    --------
    >>> union([(2.0, 3.0), (0.0, 1.0), (0.5, 1.5)]).tolist()
    [[0.0, 1.5], [2.0, 3.0]]
    """
    given = np.array(sorted(intervals), float).reshape(-1, 2)
    if not len(given):
        return given
    reach = np.maximum.accumulate(given[:, 1])
    first = np.concatenate(([True], given[1:, 0] > reach[:-1]))
    last = np.concatenate((first[1:], [True]))
    return np.column_stack((given[first, 0], reach[last]))


def length(intervals: Intervals) -> float:
    """Return the sum of the lengths of disjoint intervals [s]."""
    return float((intervals[:, 1] - intervals[:, 0]).sum())
