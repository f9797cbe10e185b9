"""What a run of some program says: memory at its peaks, where the time went, what each link carried."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from simulator.engine import Timeline
from simulator.offload.columns import BOTTLENECKS, COLUMNS, Rows
from simulator.offload.emit import Emitter
from simulator.specs import OPERATOR_CLASSES, OperatorClass
from simulator.strategy import Bottleneck, Holding, MemoryUse


def critical(emit: Emitter, timeline: Timeline) -> Rows:
    """Return the seconds of the critical path by :data:`~simulator.offload.columns.COLUMNS`; shape (columns,).

    They sum to the makespan twice over: by what binds them and by class of operator. Time in which the path waits
    (for memory to be freed) is bound by ``waiting``.
    """
    path = timeline.critical_path().tasks
    seconds = timeline.end[path] - timeline.start[path]
    row: Rows = seconds @ np.array([emit.shares[task] for task in path.tolist()])
    idle = timeline.makespan - float(seconds.sum())
    if idle > 1e-9 * timeline.makespan:
        row[COLUMNS.index("waiting")] += idle
    return row


def bound_by(row: Rows) -> dict[Bottleneck, float]:
    """Return the first half of a row: seconds by what binds them, those of none left out."""
    return {name: float(value) for name, value in zip(BOTTLENECKS, row, strict=False) if value}


def by_class(row: Rows) -> dict[OperatorClass, float]:
    """Return the second half of a row: seconds by class of operator, those of none left out."""
    values = row[len(BOTTLENECKS) :].tolist()
    return {name: value for name, value in zip(OPERATOR_CLASSES, values, strict=True) if value}


def memory_uses(emit: Emitter, timeline: Timeline) -> tuple[MemoryUse, ...]:
    """Return each memory at its peak, by category, with its largest holders."""
    uses = []
    for pool in emit.pools.values():
        peak = timeline.ledger.peak(pool.name)
        largest = tuple(Holding(name, size) for name, size in peak.holders)
        uses.append(
            MemoryUse(
                pool.name,
                pool.stores[0].tier,
                pool.capacity,
                peak.bytes,
                peak.time,
                peak.by_category,
                largest,
            )
        )
    return tuple(uses)


def link_table(emit: Emitter, total: float) -> Mapping[str, Any]:
    """Return the bytes over each link that copies crossed, and what share of its bandwidth they took over ``total`` seconds."""
    sums: dict[tuple[str, float], float] = {}
    for channel in dict.fromkeys(emit.channels):
        carried = emit.moved.get(channel, 0.0)
        for link in channel.links if carried else ():
            sums[link] = sums.get(link, 0.0) + carried
    size = np.array(list(sums.values()))
    bandwidth = np.array([link[1] for link in sums])
    return {
        "link": [name for name, _ in sums], "bytes": size, "bandwidth": bandwidth, "achieved_bandwidth": size / total,
        "share_of_bandwidth": size / total / bandwidth,
    }  # fmt: skip
