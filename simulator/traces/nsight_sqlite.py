"""Nsight Systems SQLite exports: the tables of kernels, copies and memsets, and the table of their names."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from simulator.traces.trace import Kernel, Trace, fault, number

KERNELS = "CUPTI_ACTIVITY_KIND_KERNEL"
COPIES = {1: "Memcpy HtoD", 2: "Memcpy DtoH", 8: "Memcpy DtoD", 10: "Memcpy PtoP"}
"""Values of copyKind (CUPTI, CUpti_ActivityMemcpyKind)."""
_NANO = 1e-9


def matches(head: str) -> bool:
    """Whether the file begins as SQLite does."""
    return head.startswith("SQLite format 3\0")


def read(file: Path) -> Trace:
    """Read the kernels, copies and memsets of the lowest device."""
    if not file.is_file():
        raise fault(file, "cannot be read: no such file")
    try:
        with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)) as base:
            tables = {name for (name,) in base.execute("SELECT name FROM sqlite_master")}
            if KERNELS not in tables or "StringIds" not in tables:
                raise fault(file, f"has no tables {KERNELS} and StringIds: export a trace of CUDA with nsys")
            devices = [
                d for (d,) in base.execute(f"SELECT DISTINCT deviceId FROM {KERNELS} ORDER BY deviceId")
            ]
            if not devices:
                raise fault(file, "holds no GPU kernels")
            kernels = list(_kernels(base, devices[0], file))
            kernels += _memory(base, tables, devices[0], file)
    except sqlite3.Error as error:
        raise fault(file, f"cannot be read as an Nsight Systems export: {error}") from None
    kernels.sort(key=lambda kernel: (kernel.start or 0.0, kernel.stream))
    notes = (f"of {len(devices)} devices, device {devices[0]} was read",) if len(devices) > 1 else ()
    return Trace(str(file), "nsight-sqlite", tuple(kernels), notes=notes)


def _kernels(base: sqlite3.Connection, device: int, file: Path) -> Iterator[Kernel]:
    columns = {row[1] for row in base.execute(f"PRAGMA table_info({KERNELS})")}
    name = "demangledName" if "demangledName" in columns else "shortName"
    query = (
        f"SELECT k.start, k.end, k.streamId, k.correlationId, s.value FROM {KERNELS} k "
        f"LEFT JOIN StringIds s ON s.id = k.{name} WHERE k.deviceId = ? ORDER BY k.start, k.streamId"
    )
    for start, end, stream, correlation, text in base.execute(query, (device,)):
        yield Kernel(
            text or "(no name)",
            _lasting(start, end, file),
            start * _NANO,
            str(stream),
            correlation=correlation,
        )


def _memory(base: sqlite3.Connection, tables: set[str], device: int, file: Path) -> Iterator[Kernel]:
    for table, kind in (("CUPTI_ACTIVITY_KIND_MEMCPY", "copyKind"), ("CUPTI_ACTIVITY_KIND_MEMSET", "0")):
        if table in tables:
            query = f"SELECT start, end, streamId, correlationId, {kind} FROM {table} WHERE deviceId = ? ORDER BY start"
            for start, end, stream, correlation, copy in base.execute(query, (device,)):
                name = COPIES.get(copy, "Memcpy") if kind == "copyKind" else "Memset"
                yield Kernel(
                    name, _lasting(start, end, file), start * _NANO, str(stream), correlation=correlation
                )


def _lasting(start: object, end: object, file: Path) -> float:
    first = number(start, file, "start of a kernel", least=float("-inf"))
    return number(number(end, file, "end of a kernel") - first, file, "duration of a kernel") * _NANO
