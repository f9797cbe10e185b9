"""Plain CSV with the columns ``operator, shape, device, time``: what a user measured by hand.

A shape is ``4096x4096x1024`` (m, n, k of a product) or empty; a time is ``1.2 ms`` or a bare number of seconds. A column
``count`` says how many such operators a step has; 1 if absent.
"""

from __future__ import annotations

import re
from pathlib import Path

from simulator import units
from simulator.traces.trace import Kernel, Trace, fault, number, read_rows, whole

COLUMNS = ("operator", "shape", "device", "time")
_SIZES = re.compile(r"\d+(\s*[x×*,]\s*\d+)*")


def matches(head: str) -> bool:
    """Whether the header has the four columns."""
    first = {cell.strip().strip('"').lower() for cell in head.lstrip().partition("\n")[0].split(",")}
    return set(COLUMNS) <= first


def read(file: Path) -> Trace:
    """Read the table; of several devices the first."""
    rows: list[tuple[str, Kernel]] = []
    for line, row in read_rows(file, COLUMNS):
        count = max(1, whole(row["count"], file, "count", line)) if row.get("count") else 1
        kernel = Kernel(
            row["operator"], _seconds(row["time"], file, line) * count, operator=row["operator"],
            shape=_shape(row["shape"], file, line), count=count,
        )  # fmt: skip
        rows.append((row["device"], kernel))
    if not rows:
        raise fault(file, "holds no operators")
    devices = list(dict.fromkeys(device for device, _ in rows))
    notes = (f"of {len(devices)} devices, {devices[0]} was read",) if len(devices) > 1 else ()
    chosen = tuple(kernel for device, kernel in rows if device == devices[0])
    return Trace(str(file), "operators", chosen, notes=notes)


def _seconds(text: str, file: Path, line: int) -> float:
    try:
        return (
            number(text, file, "time", line)
            if re.fullmatch(r"[\d.eE+-]+", text)
            else units.parse(text, "seconds")
        )
    except units.UnitError as error:
        raise fault(file, f"time: {error}", line) from None


def _shape(text: str, file: Path, line: int) -> tuple[int, ...]:
    if not text.strip("()[] "):
        return ()
    plain = text.strip("()[] ")
    if not _SIZES.fullmatch(plain):
        raise fault(file, f"shape {text!r}: write it like 4096x4096x1024", line)
    return tuple(int(size) for size in re.findall(r"\d+", plain))
