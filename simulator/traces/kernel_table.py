"""Condensed traces as CSV: every kernel (``start_us, dur_us, stream, category, kernel_short``) or sums by category."""

from __future__ import annotations

from pathlib import Path

from simulator.traces.trace import Kernel, Trace, fault, number, read_rows, whole

KERNELS = ("start_us", "dur_us", "stream", "category", "kernel_short")
CATEGORIES = ("category", "calls", "total_us")
_MICRO = 1e-6


def matches(head: str) -> bool:
    """Whether the header of either table is there."""
    first = {cell.strip().lower() for cell in head.lstrip().partition("\n")[0].split(",")}
    return set(KERNELS) <= first or set(CATEGORIES) <= first


def read(file: Path) -> Trace:
    """Read either table."""
    kernels = []
    for line, row in read_rows(file, ("category",)):
        if "dur_us" in row and "start_us" in row:
            start, duration = (number(row[key], file, key, line) * _MICRO for key in ("start_us", "dur_us"))
            name = row.get("kernel_short", row["category"])
            kernels.append(Kernel(name, duration, start, row.get("stream", ""), row["category"]))
        elif "total_us" in row and "calls" in row:
            calls = whole(row["calls"], file, "calls", line)
            duration = number(row["total_us"], file, "total_us", line) * _MICRO
            kernels.append(Kernel(row["category"], duration, category=row["category"], count=max(1, calls)))
        else:
            raise fault(file, "needs the columns start_us and dur_us, or calls and total_us")
    if not kernels:
        raise fault(file, "holds no kernels")
    return Trace(str(file), "kernel-table", tuple(kernels))
