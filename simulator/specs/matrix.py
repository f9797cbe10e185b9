"""Measured bandwidth and latency between pairs, from the cluster's file or a CSV file beside it."""

from __future__ import annotations

from pathlib import Path

from simulator import units
from simulator.specs.errors import Problem, SpecError
from simulator.specs.hardware import BandwidthMatrix, Matrix
from simulator.specs.network import PairRates
from simulator.specs.source import Document

Rows = tuple[tuple[float, ...], ...]


def pair_rates(matrix: BandwidthMatrix, size: int, document: Document) -> PairRates:
    """Return what was measured between pairs in SI units.

    Parameters
    ----------
    matrix : BandwidthMatrix
    size : int
        Rows and columns that it must have: groups, nodes or accelerators of the cluster.
    document : Document
        The cluster's file; a CSV file lies beside it, and faults are shown in it.

    Raises
    ------
    SpecError
        If a table is not square of that size, or a bandwidth between two different ones is 0.
    """
    bandwidth = _table(matrix.bandwidth, "bandwidth", "bytes/s", size, document)
    for i, row in enumerate(bandwidth):
        for j, entry in enumerate(row):
            if entry <= 0.0 and (i != j or matrix.between == "groups"):
                place = ("bandwidth_matrix", "bandwidth", "rows")
                raise SpecError([document.problem(place, f"needs more than 0 in row {i}, column {j}")])
    latency = _table(matrix.latency, "latency", "seconds", size, document) if matrix.latency else None
    between = "parts" if matrix.between == "groups" else matrix.between
    return PairRates(between, bandwidth, latency, matrix.source)


def _table(matrix: Matrix, key: str, dimension: str, size: int, document: Document) -> Rows:
    try:
        unit = units.parse(f"1 {matrix.unit}", dimension)
    except units.UnitError as error:
        raise SpecError([document.problem(("bandwidth_matrix", key, "unit"), str(error))]) from None
    rows = matrix.rows if matrix.rows is not None else _numbers(Path(document.file).parent / str(matrix.file))
    if len(rows) != size or any(len(row) != size for row in rows):
        columns = "/".join(map(str, sorted({len(row) for row in rows}))) or "0"
        place = ("bandwidth_matrix", key, "file" if matrix.rows is None else "rows")
        raise SpecError(
            [document.problem(place, f"found {len(rows)} x {columns} numbers, expected {size} x {size}")]
        )
    return tuple(tuple(entry * unit for entry in row) for row in rows)


def _numbers(file: Path) -> list[list[float]]:
    """Read a CSV file of numbers that are not negative."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError([Problem(str(file), 0, 0, "", f"cannot be read: {error}")]) from None
    rows: list[list[float]] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = [float(entry) for entry in line.split(",")]
        except ValueError:
            row = [-1.0]
        if not all(0.0 <= entry < float("inf") for entry in row):
            raise SpecError(
                [Problem(str(file), number, 1, "", f"found {line!r}, expected numbers of 0 and above")]
            )
        rows.append(row)
    return rows
