"""Lengths drawn from the distributions of a workload."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.specs.errors import MemroofError, Problem, SpecError, did_you_mean
from simulator.specs.serving_workload import Lengths

Integers = npt.NDArray[np.int64]


def draw_lengths(lengths: Lengths, count: int, generator: np.random.Generator) -> Integers:
    """Draw ``count`` lengths [tokens]: fixed, uniform over whole numbers with both ends, log-normal, or empirical.

    A log-normal of mean m and logarithmic deviation s has a logarithmic mean of ln m - s^2 / 2 (Johnson, Kotz and
    Balakrishnan 1994, chapter 14). ``maximum`` cuts what exceeds it.

    Raises
    ------
    SpecError
        If a file of an empirical distribution cannot be read, with each faulty line.
    """
    drawn: Any = lengths.fixed
    if lengths.uniform is not None:
        drawn = generator.integers(lengths.uniform[0], lengths.uniform[1], count, endpoint=True)
    elif lengths.mean is not None:
        center = np.log(lengths.mean) - lengths.sigma**2 / 2.0
        # a mean of 256 without spread comes back as 256.00000000000006, which is not 257 tokens
        drawn = np.ceil(generator.lognormal(center, lengths.sigma, count) * (1.0 - 1e-12))
    elif lengths.values is not None:
        drawn = _chosen(lengths.values, lengths.weights, count, generator)
    elif lengths.file is not None:
        drawn = _chosen(*_histogram(Path(lengths.file)), count, generator)
    longest = np.inf if lengths.maximum is None else lengths.maximum
    tokens: Integers = np.minimum(np.broadcast_to(drawn, count), longest).astype(np.int64)
    return tokens


def _chosen(
    values: Sequence[int], weights: Sequence[float] | None, count: int, generator: np.random.Generator
) -> Integers:
    share = None if weights is None else np.array(weights) / np.sum(weights)
    return generator.choice(np.array(values, np.int64), count, p=share)


def _histogram(file: Path) -> tuple[list[int], list[float]]:
    values, weights, problems = [], [], []
    for line, row in table_rows(file, ("tokens",)):
        try:
            tokens, weight = int(row["tokens"]), float(row.get("weight") or 1.0)
        except ValueError as error:
            problems.append(Problem(str(file), line, 1, "", str(error)))
            continue
        if tokens < 1 or not 0.0 <= weight < np.inf:
            problems.append(
                Problem(str(file), line, 1, "", "needs tokens of at least 1 and a weight of at least 0")
            )
        values.append(tokens)
        weights.append(weight)
    if problems:
        raise SpecError(problems)
    if not sum(weights) > 0.0:
        raise MemroofError(f"{file}: no length with a weight above 0")
    return values, weights


def table_rows(file: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield line numbers and rows of a CSV file that has certain columns; spaces around names and values do not count.

    Raises
    ------
    SpecError
        If it cannot be read or a column is missing.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream, skipinitialspace=True)
            header = [name.strip() for name in next(reader, [])]
            missing = [name for name in columns if name not in header]
            if missing:
                hints = "; ".join(f"no column {name!r}{did_you_mean(name, header)}" for name in missing)
                raise SpecError([Problem(str(file), 1, 1, "", hints)])
            for row in reader:
                if row:
                    yield reader.line_num, dict(zip(header, (cell.strip() for cell in row), strict=False))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise SpecError([Problem(str(file), 0, 0, "", f"cannot be read: {reason}")]) from None
