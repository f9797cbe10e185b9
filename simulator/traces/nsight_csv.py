"""Nsight Systems CSV reports: ``cuda_gpu_trace`` (every kernel) and ``cuda_gpu_kern_sum`` (sums by name)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from simulator.traces.trace import Kernel, Trace, fault, number, read_rows, whole

UNITS = {"s": 1.0, "sec": 1.0, "ms": 1e-3, "us": 1e-6, "μs": 1e-6, "ns": 1e-9}
_COLUMN = re.compile(r"(.+?)\s*\((\w+)\)")
_TRACE = re.compile(r"^\"?start\s*\(\w+\)\"?,\"?duration\s*\(\w+\)", re.IGNORECASE | re.MULTILINE)
_SUM = re.compile(r"total time\s*\(\w+\)\"?,\"?instances", re.IGNORECASE)


def matches(head: str) -> bool:
    """Whether one of the reports' headers is there."""
    return bool(_TRACE.search(head) or _SUM.search(head))


def read(file: Path) -> Trace:
    """Read a report of either kind; of several devices the lowest."""
    kernels: list[tuple[str, Kernel]] = []
    for line, row in read_rows(file, ("name",)):
        times, device = _times(row), row.get("device", "")
        if "total time" in times:
            total, count = (
                _seconds(times["total time"], file, line),
                whole(row.get("instances"), file, "Instances", line),
            )
            kernels.append((device, Kernel(row["name"], total, count=max(1, count))))
        elif "duration" in times and "start" in times:
            start, duration = (_seconds(times[key], file, line) for key in ("start", "duration"))
            correlation = row.get("corrid", "")
            kernels.append(
                (device, Kernel(
                    _copy(row["name"]), duration, start, row.get("strm", ""),
                    correlation=int(correlation) if correlation.isdecimal() else None,
                ))
            )  # fmt: skip
        else:
            raise fault(file, "neither a cuda_gpu_trace nor a cuda_gpu_kern_sum report", line)
    if not kernels:
        raise fault(file, "holds no GPU kernels")
    devices = sorted({device for device, _ in kernels})
    notes = (f"of {len(devices)} devices, {devices[0]} was read",) if len(devices) > 1 else ()
    chosen = tuple(kernel for device, kernel in kernels if device == devices[0])
    return Trace(str(file), "nsight-csv", chosen, notes=notes)


def _times(row: Mapping[str, str]) -> dict[str, tuple[str, str, float]]:
    """Columns with a unit of time: name without unit to (column, value, seconds of the unit)."""
    found = {}
    for column, value in row.items():
        match = _COLUMN.fullmatch(column)
        if match and match[2] in UNITS:
            found[match[1]] = column, value, UNITS[match[2]]
    return found


def _seconds(cell: tuple[str, str, float], file: Path, line: int) -> float:
    column, value, unit = cell
    return number(value, file, column, line) * unit


def _copy(name: str) -> str:
    """``[CUDA memcpy Host-to-Device]`` as the other profilers print it."""
    match = re.fullmatch(r"\[CUDA (memcpy|memset)\s*(.*)\]", name)
    if not match:
        return name
    short = {"Host-to-Device": "HtoD", "Device-to-Host": "DtoH", "Device-to-Device": "DtoD"}
    return f"{match[1].capitalize()} {short.get(match[2], match[2])}".strip()
