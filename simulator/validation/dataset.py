"""A measured data set: rows of a file, what the model predicts for them, and why rows are left out.

A data set is one module in :mod:`simulator.validation.datasets` with a tuple ``DATASETS``; its name is the file's path
inside a measurements folder, with ``#column`` where a file holds several measured quantities.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from simulator.cost import CostModel
from simulator.specs import Calibration, Catalog, MemroofError, OperatorClass, Processor

if TYPE_CHECKING:
    import pandas as pd

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Part:
    """Rows of a data set that one device was measured on, and how to predict them.

    Attributes
    ----------
    device : str
        Name in the catalog.
    measured : array
        Measured values, all above 0 [SI].
    predict : function of CostModel
        Predicted values, in the order of ``measured``; it must not keep what depends on the cost model's constants.
    groups : array of str
        What must not be split between fitting and judging (a shape, a layout, a run), one label a row.
    rows : array of int
        Line of each row in the file, counted from 2 (the header is line 1).
    frame : DataFrame
        The inputs of the rows, for the list of the worst.
    operator_class : str
        Whose spread gives the interval of a row; None where ``errors`` gives it.
    errors : function of CostModel, optional
        Relative standard error of each row, where a row is more than one kernel.
    fitted : bool
        Whether constants are fitted on these rows; those of another kernel than the one that the constants stand for are
        only compared, with an error of their own.
    """

    device: str
    measured: FloatArray
    predict: Callable[[CostModel], FloatArray]
    groups: npt.NDArray[np.str_]
    rows: npt.NDArray[np.int64]
    frame: pd.DataFrame
    operator_class: OperatorClass | None
    errors: Callable[[CostModel], FloatArray] | None = None
    fitted: bool = True

    def relative_errors(self, cost: CostModel) -> FloatArray:
        """Relative standard error of each predicted value."""
        if self.errors is not None:
            return self.errors(cost)
        if self.operator_class is None:
            raise MemroofError("a part of a data set needs an operator class or its own errors")
        return np.full(len(self.measured), cost.calibration.error[self.operator_class])


@dataclass
class Loaded:
    """What a data set holds: parts by device, and how many rows are left out for which reason."""

    parts: list[Part] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


class DataSet(Protocol):
    """One measured quantity of one file."""

    @property
    def name(self) -> str:
        """Path inside the measurements folder, with ``#column`` where needed."""
        ...

    def load(self, file: Path, catalog: Catalog) -> Loaded:
        """Read the file; every row ends in a part or is counted in ``skipped``."""
        ...


@dataclass(frozen=True)
class TableDataSet:
    """A data set of a CSV table: a function turns the frame into parts.

    ``split`` gets the frame (with a column ``line``: the row's line in the file), the catalog and the counter of skipped
    rows, and returns the parts.
    """

    name: str
    split: Callable[[pd.DataFrame, Catalog, Counter[str]], Sequence[Part]]

    def load(self, file: Path, catalog: Catalog) -> Loaded:
        """Read the file; raises :class:`MemroofError` with the file's name if it is no such table."""
        frame = read_table(file)
        loaded = Loaded()
        try:
            loaded.parts = [part for part in self.split(frame, catalog, loaded.skipped) if len(part.measured)]
        except KeyError as error:
            raise MemroofError(
                f"{file}: no column {error}; it has {', '.join(map(str, frame.columns))}"
            ) from None
        return loaded


def read_table(file: Path) -> pd.DataFrame:
    """Read a CSV file with a column ``line`` added."""
    import pandas as pd

    try:
        frame = pd.read_csv(file, low_memory=False)
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise MemroofError(
            f"{file}: cannot be read as a CSV table: {str(error).strip().splitlines()[0]}"
        ) from None
    frame["line"] = np.arange(2, len(frame) + 2)
    return frame


def keep(frame: pd.DataFrame, condition: Any, reason: str, skipped: Counter[str]) -> pd.DataFrame:
    """Return the rows that hold a condition; the others are counted under a reason."""
    chosen = np.asarray(condition, dtype=bool)
    left_out = int((~chosen).sum())
    if left_out:
        skipped[reason] += left_out
    return frame[chosen]


def number_in(text: object, pattern: str) -> int:
    """Return the number that a pattern's group finds in a cell; raises :class:`MemroofError` where there is none."""
    found = re.search(pattern, str(text))
    if found is None:
        raise MemroofError(f"claim without a number like {pattern!r}")
    return int(found.group(1))


def labels(frame: pd.DataFrame, columns: Sequence[str]) -> npt.NDArray[np.str_]:
    """Return one group label a row from some columns."""
    parts = [frame[column].astype(str) for column in columns]
    joined = parts[0]
    for part in parts[1:]:
        joined = joined + "|" + part
    return joined.to_numpy(dtype=str)


def held_out(groups: npt.NDArray[np.str_], share: float, seed: int) -> npt.NDArray[np.bool_]:
    """Mark whole groups, about a ``share`` of them and one at least of several, by a hash of label and seed.

    The same on every machine.
    """
    import hashlib

    drawn: Mapping[str, float] = {
        label: int.from_bytes(hashlib.sha256(f"{seed}|{label}".encode()).digest()[:8], "big") / 2.0**64
        for label in np.unique(groups).tolist()
    }
    limit = max(share, min(drawn.values(), default=0.0) * (1.0 + 1e-9)) if len(drawn) > 1 else 0.0
    return np.array([drawn[label] < limit for label in groups.tolist()], dtype=bool)


def constants_for(catalog: Catalog, device: str, changed: Calibration | None = None) -> CostModel:
    """Return the cost model of a catalogued device as its kernels are measured: short runs at boost clock."""
    processor = catalog.processor(device)
    return CostModel(processor, changed or catalog.calibration(processor), dram_bandwidth(catalog, processor))


def dram_bandwidth(catalog: Catalog, processor: Processor) -> float | None:
    """Return the DRAM bandwidth that the first catalogued node with a CPU gives it [B/s]; None for what has its own memory.

    Raises
    ------
    MemroofError
        If no node has the CPU.
    """
    if processor.memory:
        return None
    for node in catalog.names("node"):
        if any(part.device == processor.name for part in catalog.node(node).components.values()):
            machine = catalog.machine(node)
            memory = next(engine.memory for engine in machine.engines if engine.device.name == processor.name)
            if memory is not None:
                return machine.store(memory).read.bandwidth
    raise MemroofError(f"{processor.name} has no memory of its own, and no node in the catalog gives it DRAM")
