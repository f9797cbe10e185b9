"""What commands write: data on stdout, files on request, everything else on stderr."""

from __future__ import annotations

import csv
import json
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def print_lines(lines: Iterable[str]) -> None:
    """Print text lines on stdout, without trailing blanks."""
    _print("\n".join(line.rstrip() for line in lines))


def print_json(data: Any) -> None:
    """Print one JSON document on stdout: keys as they come, infinities and NaN as null."""
    _print(json.dumps(finite(data), indent=2, ensure_ascii=False, allow_nan=False))


def note(text: str) -> None:
    """Say something that is no data, on stderr."""
    click.echo(text, err=True)


def write_text(path: Path, text: str) -> None:
    """Write a file; errors as for :func:`writing`."""
    with writing(path) as stream:
        stream.write(text)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file of bytes; errors as for :func:`writing`."""
    with _told(path):
        path.write_bytes(data)


def drawing(file: Path | None, option: str = "--plot") -> None:
    """Refuse a name that no figure can be written under, before anything is computed."""
    if file is not None and file.suffix not in (".png", ".svg"):
        raise click.UsageError(f"{option} {file}: expected a name that ends in .png or .svg")


def write_figure(file: Path, figure: Figure) -> None:
    """Write a figure as PNG or SVG, as its name says, and note it."""
    from simulator.analysis.figures import png, svg

    if file.suffix == ".svg":
        write_text(file, svg(figure))
    else:
        write_bytes(file, png(figure))
    note(f"wrote {file}")


def write_rows(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write equal rows as CSV with a header, in SI units, and note it."""
    with writing(file) as stream:
        table = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
    note(f"wrote {file}")


@contextmanager
def writing(path: Path) -> Iterator[TextIO]:
    """Open a file for text; a folder that is missing or read-only is the user's to mend.

    Raises
    ------
    MemroofError
        If the file cannot be written.
    """
    with _told(path), path.open("w", encoding="utf-8", newline="\n") as stream:
        yield stream


@contextmanager
def _told(path: Path) -> Iterator[None]:
    from simulator.specs.errors import MemroofError

    try:
        yield
    except OSError as error:
        raise MemroofError(f"{path}: cannot be written: {error.strerror}") from None


def finite(data: Any) -> Any:
    """Return data that JSON can hold: plain containers and scalars, null for what is not finite."""
    if isinstance(data, Mapping):
        return {str(key): finite(value) for key, value in data.items()}
    if isinstance(data, Sequence) and not isinstance(data, str):
        return [finite(item) for item in data]
    if hasattr(data, "tolist"):
        return finite(data.tolist())
    if isinstance(data, float):
        return float(data) if math.isfinite(data) else None
    return data


def _print(text: str) -> None:
    try:
        click.echo(text)
    except BrokenPipeError:
        # the reader (head, less) went away: what is still buffered has nowhere to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise click.exceptions.Exit(0) from None
