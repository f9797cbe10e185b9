"""The scoreboard of published systems: each figure that a shipped scenario expects, against what memroof finds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from simulator.analysis import Result, run
from simulator.cost import CostModel
from simulator.specs import Catalog, MemroofError
from simulator.validation.dataset import FloatArray, Loaded, Part

FOLDER = "published/"


class ScenarioDataSet:
    """Scenarios with ``expect:``; they ship with memroof, so that no measurements folder holds them."""

    name = "scenarios/published"

    def load(self, file: Path, catalog: Catalog) -> Loaded:
        """Answer every scenario of the folder; what cannot run, or finds 0 or nothing, is counted with its reason."""
        import pandas as pd

        loaded = Loaded()
        found: dict[str, list[tuple[int, str, str, float, float, float]]] = {}
        for index, name in enumerate(name for name in catalog.names("scenario") if name.startswith(FOLDER)):
            try:
                result = run(name, catalog=catalog)
            except MemroofError as error:
                loaded.skipped[str(error).splitlines()[0]] += 1
                continue
            rows = list(_rows(result))
            if not rows:
                loaded.skipped["expects no figure above 0"] += 1
            device = result.setup.hardware.devices[0].name
            found.setdefault(device, []).extend((index + 2, name, *row) for row in rows)
        columns = ["line", "scenario", "figure", "expected", "found", "error"]
        for device, entries in found.items():
            frame = pd.DataFrame(entries, columns=columns)
            loaded.parts.append(
                Part(
                    device, frame["expected"].to_numpy(float), _given(frame["found"].to_numpy(float)),
                    frame["scenario"].to_numpy(str), frame["line"].to_numpy(np.int64), frame[["scenario", "figure"]], None,
                    _given(frame["error"].to_numpy(float)), fitted=False,
                )
            )  # fmt: skip
        return loaded


def _rows(result: Result) -> Iterator[tuple[str, float, float, float]]:
    for check in result.expectations:
        metric = result.outcome.metrics[check.key]
        if check.expected > 0.0 and metric.value > 0.0:
            yield check.key, check.expected, metric.value, metric.error


def _given(values: FloatArray) -> Callable[[CostModel], FloatArray]:
    """Return what the scenarios found with the catalog's constants, whatever cost model asks."""
    return lambda cost: values


DATASETS = (ScenarioDataSet(),)
