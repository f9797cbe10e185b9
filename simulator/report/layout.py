"""Plain text that reads without colour: aligned columns, wrapped lists, figures with units."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence

from simulator import units

WIDTH = 100
"""Widest line of prose; tables may be wider."""
_PLAIN = frozenset({"fraction", "ratio", "count"})
_NUMBER = re.compile(r"[-+$]?[\d.,]+")
_FIGURE = re.compile(r"(?<=[\d]) (?=[%A-Za-z])")
"""The blank between a number and its unit, where no line is broken."""


def quantity(value: float, dimension: str, digits: int = 3) -> str:
    """Print an SI number with its unit; fractions as per cent, counts and ratios bare.

    Parameters
    ----------
    value : float
        [SI of the dimension].
    dimension : str
        A key of :data:`simulator.units.DIMENSIONS`, or ``count``, ``fraction`` or ``ratio``.
    digits : int
        Significant digits.

    Examples
    --------
    >>> quantity(0.5231, "fraction"), quantity(13.75, "seconds"), quantity(3.0, "count")
    ('52.3 %', '13.8 s', '3')
    """
    if value != value:
        return "unknown"
    if dimension == "fraction":
        return f"{units.significant(value * 100.0, digits)} %"
    if dimension in _PLAIN:
        whole = float(value).is_integer() and abs(value) < 1e15
        return f"{value:,.0f}" if whole else units.significant(value, digits)
    return units.format_quantity(value, dimension, digits)


def between(low: float, high: float, dimension: str, digits: int = 3) -> str:
    """Print an interval; the unit stands once where both ends share it.

    Examples
    --------
    >>> between(12.1, 16.04, "seconds"), between(0.9e9, 1.2e9, "bytes"), between(9461, 12328, "1/s")
    ('12.1 to 16.0 s', '858 MiB to 1.12 GiB', '9,461 to 12,328/s')
    """
    first, last = quantity(low, dimension, digits), quantity(high, dimension, digits)
    match = _NUMBER.match(first)
    if match and match.end() < len(first) and last.endswith(first[match.end() :]):
        first = first[: match.end()]
    return f"{first} to {last}"


def percent(share: float) -> str:
    """Print a share in whole per cent, ``<1 %`` below; for lists where the largest matter."""
    return "<1 %" if 0.0 < share < 0.005 else f"{share * 100.0:.0f} %"


def signed_percent(change: float) -> str:
    """Print a relative change with its sign: ``+1.1 %``."""
    return f"{change * 100.0:+.1f} %"


def columns(rows: Iterable[Sequence[str]], right: Iterable[int] = (), indent: str = "") -> list[str]:
    """Align rows in columns two blanks apart.

    Parameters
    ----------
    rows : iterable of sequence of str
        Cells; rows may be of different lengths.
    right : iterable of int
        Columns that are aligned to the right.
    indent : str
        Put before each line.

    Examples
    --------
    >>> columns([("a", "1.5"), ("bcd", "20")], right=[1])
    ['a    1.5', 'bcd   20']
    """
    table = [tuple(row) for row in rows]
    count = max((len(row) for row in table), default=0)
    widths = [max((len(row[i]) for row in table if i < len(row)), default=0) for i in range(count)]
    rights = set(right)
    return [
        (
            indent
            + "  ".join(
                cell.rjust(widths[i]) if i in rights else cell.ljust(widths[i]) for i, cell in enumerate(row)
            )
        ).rstrip()
        for row in table
    ]


def labelled(label: str, text: str | Iterable[str], width: int = 16) -> list[str]:
    """Put a label in front of lines; further lines are indented below the first.

    A text is wrapped; lines that are given apart stay apart (each wrapped for itself, behind its dash if it has one).
    """
    lines: list[str] = []
    for item in (text,) if isinstance(text, str) else text:
        lines.extend(_wrap(item, WIDTH - width, "  " if item.startswith("- ") else ""))
    return [f"{label if i == 0 else '':<{width}}{line}".rstrip() for i, line in enumerate(lines or [""])]


def bullets(items: Iterable[str], indent: str = "  ") -> list[str]:
    """Wrap each item behind a dash."""
    return [indent + line for item in items for line in _wrap(f"- {item}", WIDTH - len(indent), "  ")]


def _wrap(text: str, width: int, indent: str) -> list[str]:
    """Wrap a text, never between a number and its unit or inside a word."""
    kept = _FIGURE.sub("\N{NO-BREAK SPACE}", text)
    lines = textwrap.wrap(
        kept, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines] or [""]


def bar(share: float, width: int = 24) -> str:
    """Draw a share as a bar of characters that every terminal has."""
    return "#" * max(1 if share > 0 else 0, round(min(1.0, share) * width))
