"""Validate: every known data set of a folder against its bound."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from simulator.specs import Catalog, MemroofError
from simulator.specs.errors import unknown
from simulator.validation.datasets import known
from simulator.validation.datasets.scenarios import ScenarioDataSet
from simulator.validation.score import Score, score

SHIPPED = Path(__file__).parent / "measurements"
"""Condensed rows that the project ships, laid out like any measurements folder."""


def validate(
    folder: Path | None = None, *, catalog: Catalog | None = None, only: str | None = None
) -> Iterator[Score]:
    """Score the known data sets that a folder holds, one after the other.

    Parameters
    ----------
    folder : Path, optional
        Laid out as ``source/file.csv``; the shipped rows if absent.
    catalog : Catalog, optional
        Whose devices and constants predict.
    only : str, optional
        Data sets whose name contains this text.

    Raises
    ------
    MemroofError
        If the folder does not exist, holds no known data set, or no name contains ``only``.
    """
    folder = folder or SHIPPED
    if not folder.is_dir():
        raise MemroofError(f"{folder}: no such folder")
    datasets = [dataset for dataset in known() if only is None or only in dataset.name]
    if not datasets:
        raise MemroofError(unknown("data set", only or "", [dataset.name for dataset in known()]))
    # the scoreboard of scenarios needs no file; in a folder of rows it comes when it is asked for
    present = [
        dataset
        for dataset in datasets
        if (folder / dataset.name.partition("#")[0]).is_file()
        or (isinstance(dataset, ScenarioDataSet) and (folder == SHIPPED or only is not None))
    ]
    if not present:
        raise MemroofError(
            f"{folder}: none of {', '.join(dataset.name for dataset in datasets[:8])} is there"
        )
    catalog = catalog or Catalog()
    for dataset in present:
        yield score(dataset, folder / dataset.name.partition("#")[0], catalog)
