"""Measured times in place of predicted ones, shape by shape, where a scenario asks for it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from simulator.cost.breakdown import Cost
from simulator.graph.work import Matmul
from simulator.specs.measured import MeasuredTable


def with_measured(cost: Cost, work: Matmul, table: MeasuredTable) -> Cost:
    """Return the cost of a product with its measured time where the table holds the very shape, else as predicted.

    The parts are scaled with the time, so that what binds stays as predicted.
    """
    if np.ndim(work.n) or np.ndim(work.k) or np.ndim(work.count):
        return cost
    key = (work.format, float(work.n), float(work.k), float(work.count))
    times = table.times(key, np.atleast_1d(np.asarray(work.m, float)))
    if np.isnan(times).all():
        return cost
    predicted = np.broadcast_to(np.atleast_1d(np.asarray(cost.time, float)), times.shape)
    ratio = np.where(np.isnan(times), predicted, times) / predicted
    factor = ratio if np.ndim(cost.time) else float(ratio[0])
    parts = {name: getattr(cost, name) * factor for name in ("time", "compute", "memory", "link", "latency")}
    return replace(cost, **parts)
