"""What a measured file holds, whatever its format: kernels, collectives, or figures of a benchmark; SI units.

Reading a file is in two steps: :func:`opened` gives its bytes, unpacked, and every fault of its content is a
:class:`MemroofError` with the file and, where there is one, the line.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

from simulator.specs.errors import MemroofError

GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel (or copy) of a device, or a sum of equal ones.

    Attributes
    ----------
    name : str
        As the profiler prints it.
    duration : float
        Of all ``count`` of them [s].
    start : float, optional
        On the trace's own clock [s]; absent where the export holds sums.
    stream : str
        What it ran on.
    category : str
        What the file says that it is, where its name alone does not tell.
    operator : str
        The framework's operator that launched it (``aten::mm``), where known.
    shape : tuple of int
        Dimensions (m, n, k) of a product, where known.
    count : int
        How many kernels these are.
    correlation : int, optional
        Joins it with the call that launched it.
    """

    name: str
    duration: float
    start: float | None = None
    stream: str = ""
    category: str = ""
    operator: str = ""
    shape: tuple[int, ...] = ()
    count: int = 1
    correlation: int | None = None

    @property
    def end(self) -> float | None:
        """When it ends [s]."""
        return None if self.start is None else self.start + self.duration


@dataclass(frozen=True, slots=True)
class CollectiveTime:
    """A measured collective: its kind, bytes as :class:`simulator.graph.Collective` counts them, ranks and time [s]."""

    kind: str
    size: float
    ranks: int
    time: float


@dataclass(frozen=True, slots=True)
class PhaseRate:
    """Tokens per second of one sequence: ``prompt`` tokens read, then ``output`` generated, after ``depth`` cached ones."""

    prompt: int
    output: int
    depth: int
    rate: float
    label: str = ""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Figures of a serving benchmark under the names of memroof's metrics [SI], and how it was run."""

    label: str
    metrics: Mapping[str, float]
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Trace:
    """A measured file; one of the four lists holds something."""

    file: str
    format: str
    kernels: tuple[Kernel, ...] = ()
    collectives: tuple[CollectiveTime, ...] = ()
    benchmarks: tuple[Benchmark, ...] = ()
    rates: tuple[PhaseRate, ...] = ()
    steps: int | None = None
    """Steps or iterations that the trace marks."""
    notes: tuple[str, ...] = ()
    """What was left out or assumed while reading."""


def fault(file: Path, message: str, line: int | None = None) -> MemroofError:
    """Return the error of a file, with the line where there is one."""
    return MemroofError(f"{file}:{line}: {message}" if line else f"{file}: {message}")


@contextmanager
def opened(file: Path) -> Iterator[IO[bytes]]:
    """Open a file for bytes, unpacked if it is gzip (by content, not by name).

    Raises
    ------
    MemroofError
        If it cannot be read, or the packed data are broken (also while reading inside the context).
    """
    try:
        with file.open("rb") as raw:
            magic = raw.read(2)
            raw.seek(0)
            if magic == GZIP_MAGIC:
                with gzip.GzipFile(fileobj=raw) as unpacked:
                    yield cast(IO[bytes], unpacked)
            else:
                yield raw
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise fault(file, f"broken gzip data: {error}") from None
    except OSError as error:
        raise fault(file, f"cannot be read: {error.strerror or error}") from None


def read_text(file: Path) -> str:
    """Read a whole file as UTF-8 text (UTF-16 with its mark, which PowerShell writes, too)."""
    with opened(file) as stream:
        content = stream.read()
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise fault(file, f"not UTF-8 text (byte {error.start})", line) from None


def read_documents(file: Path) -> list[tuple[int, Any]]:
    """Read a JSON document, or one a line (JSON lines); returns (line, content) pairs."""
    text = read_text(file)
    try:
        return [(1, json.loads(text))]
    except json.JSONDecodeError as whole:
        found = []
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip():
                continue
            try:
                found.append((number, json.loads(line)))
            except json.JSONDecodeError as error:
                if found:
                    raise fault(file, f"not valid JSON: {error.msg}", number) from None
                raise fault(file, f"not valid JSON: {whole.msg}", whole.lineno) from None
        if not found:
            raise fault(file, "holds nothing") from None
        return found
    except RecursionError:
        raise fault(file, "not valid JSON: nested too deeply") from None


def read_rows(file: Path, header: Iterable[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Read a CSV table as (line, row) pairs; lines before the header (messages of the exporting tool) are passed over.

    Parameters
    ----------
    file : Path
        The table.
    header : iterable of str
        Columns that the header must have, in lower case; keys of the rows are in lower case.
    """
    needed = set(header)
    reader = csv.reader(io.StringIO(read_text(file), newline=""))
    names: list[str] | None = None
    try:
        for cells in reader:
            if names is None:
                lowered = [cell.strip().lower() for cell in cells]
                names = lowered if needed <= set(lowered) else None
            elif any(cell.strip() for cell in cells):
                if len(cells) != len(names):
                    raise fault(
                        file, f"{len(cells)} cells where the header has {len(names)} columns", reader.line_num
                    )
                yield reader.line_num, dict(zip(names, (cell.strip() for cell in cells), strict=True))
    except csv.Error as error:
        raise fault(file, f"not a CSV table: {error}", reader.line_num) from None
    if names is None:
        raise fault(file, f"has no header with the columns {', '.join(sorted(needed))}")


def number(value: Any, file: Path, name: str, line: int | None = None, *, least: float = 0.0) -> float:
    """Return a finite number of at least ``least``; anything else is a fault of the file."""
    try:
        found = float(value.replace(",", "") if isinstance(value, str) else value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found) or isinstance(value, bool):
        raise fault(file, f"{name} is no number: {value!r}", line)
    if found < least:
        raise fault(file, f"{name} is below {least:g}: {value!r}", line)
    return found


def whole(value: Any, file: Path, name: str, line: int | None = None) -> int:
    """Return a whole number of 0 or more."""
    found = number(value, file, name, line)
    if not found.is_integer():
        raise fault(file, f"{name} is no whole number: {value!r}", line)
    return int(found)
