"""Sizing reports as Markdown for people and CSV for spreadsheets."""

from __future__ import annotations

import csv as csv_module
import io
from collections.abc import Iterable
from typing import TYPE_CHECKING

from simulator.report.content import Table, content

if TYPE_CHECKING:
    from simulator.analysis import Result


def markdown(result: Result) -> str:
    """Return the report as Markdown: the tables of the HTML page without its figures."""
    page = content(result)
    tiles = [f"- **{tile.label}**: {tile.figure} ({tile.note})" for tile in page.tiles]
    lines = [f"# {page.name}", "", page.question, ""]
    lines += [page.description, ""] if page.description else []
    lines += [f"**{page.verdict}**", "", *tiles, ""]
    tables = (
        page.figures,
        page.checks,
        page.remedies,
        *page.ledger,
        page.bottleneck,
        page.classes,
        page.sensitivity,
    )
    for table in tables:
        if table is not None:
            lines += _table(table)
    lines += ["## Assumptions", "", *(f"- {item}" for item in page.assumptions), ""]
    lines += ["## Sources", "", *(f"- {item}" for item in page.sources)]
    return "\n".join(lines) + "\n"


def csv(result: Result) -> str:
    """Return metrics, ledger and shares as CSV: section, name, part, value, low, high, dimension; SI units."""
    buffer = io.StringIO()
    writer = csv_module.writer(buffer, lineterminator="\n")
    writer.writerow(("section", "name", "part", "value", "low", "high", "dimension"))
    for value in result.values.values():
        writer.writerow(("metric", value.key, "", value.value, value.low, value.high, value.dimension))
    for use in result.memory:
        writer.writerow(("memory", use.memory, "capacity", use.capacity, "", "", "bytes"))
        writer.writerow(("memory", use.memory, "peak", use.peak, "", "", "bytes"))
        for category, size in use.by_category.items():
            writer.writerow(("memory", use.memory, category, size, "", "", "bytes"))
    for name, share in result.shares.items():
        writer.writerow(("bottleneck", name, "", share, "", "", "fraction"))
    for key, amount in (*result.money.items(), *result.energy.items()):
        writer.writerow(("cost", key, "", amount, "", "", ""))
    return buffer.getvalue()


def _table(table: Table) -> list[str]:
    rule = ["---:" if column in table.right else "---" for column in range(len(table.header))]
    rows = [_row(table.header), _row(rule), *(_row(row) for row in table.rows)]
    note = [*table.note.splitlines(), ""] if table.note else []
    return [f"## {table.title}", "", *rows, "", *note]


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
