"""Sweeps: one scenario with some keys varied, every combination answered."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulator.analysis.run import run
from simulator.specs import Catalog, MemroofError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Sweep:
    """The rows of a what-if: the varied keys, then what came out; a refused combination says why."""

    keys: tuple[str, ...]
    headline: str
    dimension: str
    rows: tuple[dict[str, Any], ...]

    def to_frame(self) -> pd.DataFrame:
        """One row a combination."""
        import pandas as pd

        return pd.DataFrame(list(self.rows))

    def plot(self) -> Figure:
        """The headline over the first varied key, a line for each combination of the others."""
        from simulator.analysis.figures import sweep_figure

        return sweep_figure(self)


def whatif(
    scenario: str | Path,
    vary: Mapping[str, Sequence[str]],
    *,
    paths: Iterable[Path] = (),
    overrides: Mapping[str, str] | None = None,
    jobs: int = 1,
) -> Sweep:
    """Answer a scenario for every combination of the varied keys.

    Parameters
    ----------
    scenario : str or Path
        Name or file.
    vary : mapping of str to sequence of str
        ``{"strategy.tensor_parallel": ["1", "2", "4"]}``; keys as for ``--set``.
    paths, overrides
        Of the catalog.
    jobs : int
        Processes; more than one uses joblib, and so its Dask or Ray backend where the caller chose one.

    Raises
    ------
    MemroofError
        If nothing is varied, or no combination can be run (with the first reason).
    """
    if not vary or not all(vary.values()):
        raise MemroofError("nothing to vary; give --vary key=value,value")
    keys = tuple(vary)
    combinations = [dict(zip(keys, values, strict=True)) for values in itertools.product(*vary.values())]
    # what is no scenario at all is an error of the whole sweep; a single illegal combination is a row that says so
    Catalog(paths, {**(overrides or {}), **combinations[0]}).scenario_document(str(scenario))
    arguments = [
        (str(scenario), tuple(paths), dict(overrides or {}), combination) for combination in combinations
    ]
    if jobs == 1:
        rows = [_row(*each) for each in arguments]
    else:
        from joblib import Parallel, delayed

        rows = list(Parallel(n_jobs=jobs)(delayed(_row)(*each) for each in arguments))
    good = next((row for row in rows if not row["problem"]), None)
    if good is None:
        raise MemroofError(rows[0]["problem"])
    return Sweep(keys, good["headline"], good["dimension"], tuple(rows))


def _row(
    scenario: str, paths: tuple[Path, ...], overrides: dict[str, str], combination: dict[str, str]
) -> dict[str, Any]:
    row: dict[str, Any] = dict(combination)
    empty = {
        "fits": False,
        "value": None,
        "low": None,
        "high": None,
        "bottleneck": "",
        "share": None,
        "free": None,
    }
    try:
        result = run(scenario, catalog=Catalog(paths, {**overrides, **combination}))
    except MemroofError as error:
        return {**row, **empty, "headline": "", "dimension": "", "problem": str(error)}
    value = result.headline
    fullest = min((use.free for use in result.memory), default=None)
    speed = {"value": value.value, "low": value.low, "high": value.high}
    row |= {
        "fits": result.fits,
        **speed,
        "bottleneck": result.bottleneck[0],
        "share": result.bottleneck[1],
        "free": fullest,
    }
    return {**row, "headline": value.key, "dimension": value.dimension, "problem": ""}
