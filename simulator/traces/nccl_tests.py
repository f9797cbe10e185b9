"""Output of nccl-tests (and rccl-tests): rows of size, count, type, operation, root, then time and bandwidths."""

from __future__ import annotations

import re
from pathlib import Path

from simulator.traces.trace import CollectiveTime, Trace, fault, number, read_text, whole

NAMES = {
    "all_reduce": "all-reduce", "all_gather": "all-gather", "reduce_scatter": "reduce-scatter",
    "alltoall": "all-to-all", "sendrecv": "send",
}  # fmt: skip
"""Test programs (``all_reduce_perf``) to kinds of collectives."""
_PROGRAM = re.compile(r"(all_reduce|all_gather|reduce_scatter|alltoall|sendrecv)", re.IGNORECASE)
_RANK = re.compile(r"#\s+Rank\s+(\d+)\s")
_HEADER = re.compile(r"#\s+size\s+count\s+type")
_MICRO = 1e-6


def matches(head: str) -> bool:
    """Whether the header of the rows, or what stands above it, is there."""
    return bool(_HEADER.search(head)) or ("# nThread" in head and "# Using devices" in head)


def read(file: Path) -> Trace:
    """Read the out-of-place times; what the collective is comes from the program's name, else from the bandwidths."""
    lines = read_text(file).splitlines()
    ranks, header, kind = 0, False, ""
    rows: list[tuple[int, list[str]]] = []
    for line, text in enumerate(lines, 1):
        named = _PROGRAM.search(text)
        if named and not rows:
            kind = NAMES[named[1].lower()]
        if match := _RANK.match(text.strip()):
            ranks = max(ranks, int(match[1]) + 1)
        if _HEADER.search(text):
            header = True
        cells = text.split()
        if header and cells and cells[0].isdecimal():
            if len(cells) < 8:
                raise fault(
                    file,
                    f"a row of {len(cells)} cells; size, count, type, redop, root, time, ... are due",
                    line,
                )
            rows.append((line, cells))
    if not header:
        raise fault(file, "has no header 'size count type redop root time algbw busbw'")
    if not rows:
        raise fault(file, "holds no measured sizes")
    notes: tuple[str, ...] = ()
    if not kind:
        by_name = _PROGRAM.search(file.name)
        kind, notes = (NAMES[by_name[1].lower()], ()) if by_name else _guessed(file, rows)
    ranks = ranks or _ranks(file, kind, rows)
    found = [
        CollectiveTime(
            kind,
            float(whole(cells[0], file, "size", line)),
            ranks,
            number(cells[5], file, "time", line) * _MICRO,
        )
        for line, cells in rows
    ]
    return Trace(
        str(file), "nccl-tests", collectives=tuple(row for row in found if row.size > 0), notes=notes
    )


def _guessed(file: Path, rows: list[tuple[int, list[str]]]) -> tuple[str, tuple[str, ...]]:
    """An operation that reduces is an all-reduce if its bus bandwidth exceeds the algorithm's (nccl-tests, PERFORMANCE.md)."""
    if rows[0][1][3] != "none":
        return ("all-reduce" if _ratio(file, rows) > 1.0 else "reduce-scatter"), ()
    return "all-gather", ("the output does not say which collective it is: an all-gather is assumed",)


def _ranks(file: Path, kind: str, rows: list[tuple[int, list[str]]]) -> int:
    """Ranks from the ratio of the bandwidths: (n-1)/n, twice that for an all-reduce."""
    ratio = _ratio(file, rows) / (2.0 if kind == "all-reduce" else 1.0)
    if not 0.0 < ratio < 0.999 or kind == "send":
        raise fault(file, "does not say how many ranks took part: no lines '# Rank ...'")
    return round(1.0 / (1.0 - ratio))


def _ratio(file: Path, rows: list[tuple[int, list[str]]]) -> float:
    """Bus over algorithm bandwidth of the fastest row, where rounding matters least."""
    line, cells = max(rows, key=lambda row: number(row[1][6], file, "algbw", row[0]))
    algorithm = number(cells[6], file, "algbw", line)
    return number(cells[7], file, "busbw", line) / algorithm if algorithm else 0.0
