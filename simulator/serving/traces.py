"""Recorded traces of requests: Azure's CSV (Patel et al. 2024), Mooncake's JSON lines (Qin et al. 2025), and plain CSV."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.serving.lengths import table_rows
from simulator.specs.errors import MemroofError, Problem, SpecError
from simulator.specs.serving_workload import Trace

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

MOONCAKE_BLOCK = 512
"""Tokens of a block of Mooncake's traces."""
PLAIN_BLOCK = 16
_AZURE = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_PLAIN = ("arrival", "prompt", "output")


@dataclass(frozen=True)
class Recorded:
    """Rows of a trace in order of arrival.

    Attributes
    ----------
    arrival : array, shape (n,)
        From the first row that is replayed, as fast as asked for [s].
    prompt, output, priority, kind : array of int, shape (n,)
        Tokens, priority and index into ``names``.
    names : tuple of str
        Classes of requests.
    blocks : list of tuple of int, or None
        Identifiers of prompt blocks, where the trace has them.
    block_tokens : int
        Tokens of each of them.
    """

    arrival: Floats
    prompt: Integers
    output: Integers
    priority: Integers
    kind: Integers
    names: tuple[str, ...]
    blocks: list[tuple[int, ...]] | None
    block_tokens: int


def read_trace(trace: Trace, most: int | None = None) -> Recorded:
    """Read a recorded trace.

    Parameters
    ----------
    trace : Trace
        File, layout, speed and cut.
    most : int, optional
        Rows that are replayed; all if absent.

    Raises
    ------
    SpecError
        If the file cannot be read, or with every faulty row.
    MemroofError
        If its layout is not known or no row is left.
    """
    file = Path(trace.file)
    layout = trace.layout or _layout(file)
    columns = _Columns()
    for line, read in _ROWS[layout](file):
        try:
            columns.add(read)
        except (KeyError, TypeError, ValueError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else str(error)
            columns.problems.append(Problem(str(file), line, 1, "", what))
    if columns.problems:
        raise SpecError(columns.problems)
    if not columns.arrival:
        raise MemroofError(f"{file}: no requests")
    recorded = columns.done(trace.block_tokens or (MOONCAKE_BLOCK if layout == "mooncake" else PLAIN_BLOCK))
    return _cut(recorded, trace, most)


@dataclass
class _Columns:
    arrival: list[float] = field(default_factory=list)
    prompt: list[int] = field(default_factory=list)
    output: list[int] = field(default_factory=list)
    priority: list[int] = field(default_factory=list)
    kind: list[int] = field(default_factory=list)
    names: dict[str, int] = field(default_factory=dict)
    blocks: list[tuple[int, ...]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def add(self, read: Callable[[], tuple[float, int, int, int, str, tuple[int, ...]]]) -> None:
        arrival, prompt, output, priority, name, blocks = read()
        if prompt < 1 or output < 1 or not 0.0 <= arrival < np.inf:
            raise ValueError(
                f"needs an arrival of at least 0 s and tokens of at least 1; found {arrival}, {prompt}, {output}"
            )
        self.arrival.append(arrival)
        self.prompt.append(prompt)
        self.output.append(output)
        self.priority.append(priority)
        self.kind.append(self.names.setdefault(name, len(self.names)))
        self.blocks.append(blocks)

    def done(self, block_tokens: int) -> Recorded:
        shared = any(self.blocks)
        prompt, output, priority, kind = (
            np.array(column, np.int64) for column in (self.prompt, self.output, self.priority, self.kind)
        )
        return Recorded(
            np.array(self.arrival), prompt, output, priority, kind, tuple(self.names), self.blocks if shared else None,
            block_tokens,
        )  # fmt: skip


def _cut(recorded: Recorded, trace: Trace, most: int | None) -> Recorded:
    order = np.argsort(recorded.arrival, kind="stable")
    arrival = recorded.arrival[order] - recorded.arrival[order[0]]
    start = float(trace.start)
    inside = (arrival >= start) & (arrival < start + float(trace.duration or np.inf))
    chosen = order[inside][:most]
    if not len(chosen):
        raise MemroofError(f"{trace.file}: no request between {start:g} s and the end of what is replayed")
    begin = start if trace.start else 0.0
    blocks = None if recorded.blocks is None else [recorded.blocks[i] for i in chosen.tolist()]
    return Recorded(
        (arrival[inside][:most] - begin) / trace.speed, recorded.prompt[chosen], recorded.output[chosen],
        recorded.priority[chosen], recorded.kind[chosen], recorded.names, blocks, recorded.block_tokens,
    )  # fmt: skip


def _layout(file: Path) -> str:
    try:
        with file.open(encoding="utf-8-sig") as stream:
            first = stream.readline()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise SpecError([Problem(str(file), 0, 0, "", f"cannot be read: {reason}")]) from None
    if first.lstrip().startswith("{"):
        return "mooncake"
    header = [name.strip() for name in first.split(",")]
    for layout, columns in (("azure", _AZURE), ("csv", _PLAIN)):
        if all(name in header for name in columns):
            return layout
    raise MemroofError(
        f"{file}: unknown layout; a trace is a CSV file with the columns {', '.join(_PLAIN)} or {', '.join(_AZURE)}, "
        "or lines of JSON with timestamp, input_length, output_length, hash_ids"
    )


_Read = Callable[[], tuple[float, int, int, int, str, tuple[int, ...]]]


def _azure_rows(file: Path) -> Iterator[tuple[int, _Read]]:
    first: list[np.datetime64] = []
    for line, row in table_rows(file, _AZURE):

        def read(row: dict[str, str] = row) -> tuple[float, int, int, int, str, tuple[int, ...]]:
            time = np.datetime64(row["TIMESTAMP"], "ns")
            if not first:
                first.append(time)
            # an instant before the first row is out of order, not a negative arrival
            return (
                max(0.0, float((time - first[0]) / np.timedelta64(1, "ns")) * 1e-9),
                int(row["ContextTokens"]), int(row["GeneratedTokens"]), 0, "", (),
            )  # fmt: skip

        yield line, read


def _mooncake_rows(file: Path) -> Iterator[tuple[int, _Read]]:
    try:
        with file.open(encoding="utf-8") as stream:
            for line, text in enumerate(stream, start=1):
                if not text.strip():
                    continue

                def read(text: str = text) -> tuple[float, int, int, int, str, tuple[int, ...]]:
                    row: dict[str, Any] = json.loads(text)
                    return (
                        float(row["timestamp"]) * 1e-3, int(row["input_length"]), int(row["output_length"]), 0, "",
                        tuple(int(i) for i in row.get("hash_ids") or ()),
                    )  # fmt: skip

                yield line, read
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise SpecError([Problem(str(file), 0, 0, "", f"cannot be read: {reason}")]) from None


def _plain_rows(file: Path) -> Iterator[tuple[int, _Read]]:
    for line, row in table_rows(file, _PLAIN):

        def read(row: dict[str, str] = row) -> tuple[float, int, int, int, str, tuple[int, ...]]:
            return (
                float(row["arrival"]), int(row["prompt"]), int(row["output"]), int(row.get("priority") or 0),
                row.get("class") or "", tuple(int(i) for i in (row.get("prefix") or "").split()),
            )  # fmt: skip

        yield line, read


_ROWS: dict[str, Callable[[Path], Iterator[tuple[int, _Read]]]] = {
    "azure": _azure_rows, "mooncake": _mooncake_rows, "csv": _plain_rows,
}  # fmt: skip
