"""A user's table of measured products, which may replace predicted times where a scenario asks for it.

A CSV file with the columns ``device, format, m, n, k, time`` and optionally ``count``; a time carries its unit (``12.3 us``).
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from simulator import units
from simulator.specs.errors import Problem, SpecError, did_you_mean

COLUMNS = ("device", "format", "m", "n", "k", "time")
Key = tuple[str, float, float, float]
Rows = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]


@dataclass(frozen=True)
class MeasuredTable:
    """Measured times of products on one device.

    Attributes
    ----------
    file : str
        Where they come from.
    rows : mapping
        (format, n, k, count) to the measured m, ascending, and their times [s].
    """

    file: str
    rows: Mapping[Key, Rows] = field(repr=False)

    @property
    def size(self) -> int:
        """Measured shapes."""
        return sum(len(m) for m, _ in self.rows.values())

    def times(self, key: Key, m: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the measured times [s] of products with ``m`` rows; NaN where a shape was not measured."""
        found = np.full(m.shape, np.nan)
        if key in self.rows:
            known, seconds = self.rows[key]
            place = np.minimum(np.searchsorted(known, m), len(known) - 1)
            hit = known[place] == m
            found[hit] = seconds[place[hit]]
        return found


def read_measured(path: Path, device: str) -> MeasuredTable:
    """Read the rows of a device from a CSV file.

    Raises
    ------
    SpecError
        With every faulty line: a missing column, a number that is none, a time without unit; or no row of the device.
    """
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            header = reader.fieldnames or []
            missing = [name for name in COLUMNS if name not in header]
            if missing:
                hints = "; ".join(f"no column {name!r}{did_you_mean(name, header)}" for name in missing)
                raise SpecError([Problem(str(path), 1, 1, "", hints)])
            lines = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise SpecError([Problem(str(path), 0, 0, "", f"cannot be read: {reason}")]) from None
    problems: list[Problem] = []
    collected: dict[Key, dict[float, float]] = {}
    for line, row in lines:
        if row["device"] != device:
            continue
        try:
            shape = [_whole(row[name]) for name in ("n", "k")]
            key = (row["format"], shape[0], shape[1], _whole(row.get("count") or "1"))
            collected.setdefault(key, {})[_whole(row["m"])] = units.parse(row["time"] or "", "seconds")
        except ValueError as error:
            problems.append(Problem(str(path), line, 1, "", str(error)))
    if problems:
        raise SpecError(problems)
    if not collected:
        known = sorted({row["device"] for _, row in lines if row["device"]})
        raise SpecError(
            [Problem(str(path), 0, 0, "", f"no row of device {device!r}{did_you_mean(device, known)}")]
        )
    rows = {
        key: tuple(np.array(column) for column in zip(*sorted(table.items()), strict=True))
        for key, table in collected.items()
    }
    return MeasuredTable(str(path), {key: (m, seconds) for key, (m, seconds) in rows.items()})


def _whole(text: str | None) -> float:
    value = (text or "").strip()
    if not value.isdecimal() or int(value) < 1:
        raise ValueError(f"{value!r} is not a whole number above 0")
    return float(value)
