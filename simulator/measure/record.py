"""The record of a campaign: one CSV file of all devices that were measured, and a README that says on what and how."""

from __future__ import annotations

import csv
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from simulator.measure.campaign import Case
from simulator.measure.run import Campaign, Facts, Timing
from simulator.specs import MemroofError

MEASUREMENTS = "memroof-measure/measurements.csv"
"""Path of the file inside a measurements folder."""
TITLE = "# Measured with `memroof measure`\n"
COLUMNS = """
One row a case. `shape` holds the dimensions as `name=value`; `time_s` is the median over `repeats`, `min_s` their
smallest, `spread` their interquartile range over the median. `flops` and `bytes` count each operand once
(`memroof` counts a multiply-add as two); `kernel` says which library's kernel ran where there is a choice.
`peak_allocated` and `peak_reserved` are bytes, where they were watched. Operands are the same in each repeat, so
those that the last-level cache holds are warm. Kernels on GPUs are replayed from CUDA graphs; collectives are launched
from Python one after the other, so that short ones are bound by that, and steps run eagerly. A device that is measured
again replaces its rows of the same operators.
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the file; seconds, FLOP, bytes."""

    operator: str
    shape: str
    device: str
    format: str
    kernel: str
    time_s: float
    min_s: float
    spread: float
    repeats: int
    flops: float
    bytes: float
    peak_allocated: float | None
    peak_reserved: float | None


def rows_of(campaign: Campaign, device: str) -> list[Row]:
    """Return the rows of what was measured, sorted by operator, format, kernel and shape."""
    rows = [_row(case, timing, device) for case, timing in campaign.measured]
    return [row for _, row in sorted(((_order(r), r) for r in rows), key=lambda pair: pair[0])]


def write_record(folder: Path, campaign: Campaign, facts: Facts, command: str, date: str) -> list[Row]:
    """Write (or update) the CSV file and the README of a measurements folder, and return the new rows.

    Parameters
    ----------
    folder : Path
        Measurements folder; made if it is not there.
    campaign : Campaign
        What was measured.
    facts : Facts
        The device; its rows of the same operators and its chapter of the README are replaced.
    command, date : str
        For the README.

    Raises
    ------
    MemroofError
        If the folder cannot be written, or holds another kind of file under the name.
    """
    file = folder / MEASUREMENTS
    rows = rows_of(campaign, facts.device)
    replaced = {(row.device, row.operator) for row in rows}
    kept = (
        [row for row in read_rows(file) if (row.device, row.operator) not in replaced]
        if file.exists()
        else []
    )
    together = sorted(kept + rows, key=lambda row: (row.device, *_order(row)))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, [field.name for field in fields(Row)], lineterminator="\n")
            writer.writeheader()
            writer.writerows(_cells(row) for row in together)
        readme = file.with_name("README.md")
        chapters = _chapters(readme.read_text(encoding="utf-8")) if readme.exists() else {}
        chapters[facts.device] = _chapter(campaign, facts, command, date)
        text = "\n".join(chapters[name] for name in sorted(chapters))
        readme.write_text(f"{TITLE}{COLUMNS}\n{text}", encoding="utf-8", newline="\n")
    except OSError as error:
        raise MemroofError(f"{error.filename or file}: cannot be written: {error.strerror}") from None
    return rows


def read_rows(file: Path) -> list[Row]:
    """Read the file again; raises :class:`MemroofError` with file and line if it is no such table."""
    with file.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        names = [field.name for field in fields(Row)]
        if reader.fieldnames != names:
            raise MemroofError(f"{file}:1: expected the columns {', '.join(names)}; move the file away")
        rows = []
        for line, cells in enumerate(reader, start=2):
            try:
                rows.append(_parsed(cells))
            except (TypeError, ValueError):
                raise MemroofError(f"{file}:{line}: a figure is missing or no number") from None
    return rows


def parse_shape(text: str) -> dict[str, Any]:
    """Read ``name=value`` pairs; whole numbers become numbers, what has no value is left out.

    Examples
    --------
    >>> parse_shape("kernel=add rows=4096 columns=1024")
    {'kernel': 'add', 'rows': 4096, 'columns': 1024}
    """
    pairs = (pair.partition("=") for pair in text.split())
    return {name: int(value) if value.isdigit() else value for name, _, value in pairs if value}


def summary(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Return by operator, format and kernel: cases, the best rates with their shapes, and the median spread.

    ``flops_per_second`` and ``bytes_per_second`` are what the fastest case achieved, 0 where nothing is counted.
    """
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.operator, row.format, _variant(row)), []).append(row)
    return [
        {
            "operator": operator, "format": format, "kernel": kernel, "cases": len(members),
            **_best(members, "flops"), **_best(members, "bytes"),
            "shortest": min(row.time_s for row in members), "spread": statistics.median(row.spread for row in members),
            "peak_allocated": max((row.peak_allocated or 0.0 for row in members), default=0.0),
        }
        for (operator, format, kernel), members in groups.items()
    ]  # fmt: skip


def _variant(row: Row) -> str:
    """What a line of the summary is of, where an operator has several: the element-wise kernel, the direction, the kind."""
    shape = parse_shape(row.shape)
    named = [str(shape[key]) for key in ("kernel", "direction", "memory", "kind") if key in shape]
    return " ".join(named) or row.kernel


def _best(rows: Sequence[Row], quantity: str) -> dict[str, Any]:
    best = max(rows, key=lambda row: float(getattr(row, quantity)) / row.time_s)
    rate = float(getattr(best, quantity)) / best.time_s
    return {f"{quantity}_per_second": rate, f"{quantity}_shape": best.shape if rate else ""}


def _row(case: Case, timing: Timing, device: str) -> Row:
    times = sorted(timing.times)
    median = statistics.median(times)
    quarters = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else [median] * 3
    return Row(
        case.operator, " ".join(f"{name}={value}" for name, value in case.shape), device, case.format, timing.kernel,
        _figures(median), _figures(times[0]), _figures((quarters[2] - quarters[0]) / median), len(times),
        case.flops, case.bytes, timing.peak_allocated, timing.peak_reserved,
    )  # fmt: skip


def _figures(value: float) -> float:
    return float(f"{value:.6g}")


def _order(row: Row) -> tuple[Any, ...]:
    numbers = [value if isinstance(value, int) else 0 for value in parse_shape(row.shape).values()]
    texts = [value for value in parse_shape(row.shape).values() if isinstance(value, str)]
    return row.operator, row.format, row.kernel, texts, numbers


def _cells(row: Row) -> dict[str, str]:
    return {name: _cell(value) for name, value in asdict(row).items()}


def _cell(value: str | float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if isinstance(value, float) and value.is_integer() else str(value)


def _parsed(cells: Mapping[str, str]) -> Row:
    def figure(name: str) -> float | None:
        return float(cells[name]) if cells[name] else None

    return Row(
        cells["operator"], cells["shape"], cells["device"], cells["format"], cells["kernel"], float(cells["time_s"]),
        float(cells["min_s"]), float(cells["spread"]), int(cells["repeats"]), float(cells["flops"]), float(cells["bytes"]),
        figure("peak_allocated"), figure("peak_reserved"),
    )  # fmt: skip


def _chapters(text: str) -> dict[str, str]:
    """Split a README into its chapters by device."""
    parts = text.split("\n## ")[1:]
    return {part.partition("\n")[0].strip(): f"## {part.rstrip()}\n" for part in parts}


def _chapter(campaign: Campaign, facts: Facts, command: str, date: str) -> str:
    lines = [
        f"## {facts.device}", "",
        f"- reported as: {facts.reported}",
        *(f"- {name}: {value}" for name, value in facts.details.items()),
        f"- number formats: {', '.join(facts.target.formats)}",
        f"- date: {date}",
        f"- command: `{command}`",
        *(f"- doubt: {doubt}" for doubt in facts.doubts),
        f"- {len(campaign.measured)} cases measured in {campaign.seconds:.0f} s",
    ]  # fmt: skip
    reasons = Counter((skip.case.group, skip.reason) for skip in campaign.skipped)
    lines += [f"- {count} cases of {group} left out: {reason}" for (group, reason), count in reasons.items()]
    return "\n".join(lines) + "\n"
