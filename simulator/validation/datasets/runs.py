"""Measured runs of servers and generators: each row a scenario, simulated once for each set of constants."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.analysis.run import cost_model, load
from simulator.analysis.strategies import strategy
from simulator.cost import CostModel
from simulator.offload.host_compute.run import fits as host_compute_fits
from simulator.offload.mixed_stream.run import fits as mixed_stream_fits
from simulator.offload.zigzag.plan import make_plan as plan_offload
from simulator.offload.zigzag.run import resident
from simulator.serving import make_plan as plan_serving
from simulator.serving.fleet_plan import make_fleet
from simulator.specs import (
    Calibration,
    Catalog,
    HostComputeScenario,
    MemroofError,
    MixedStreamScenario,
    ServingScenario,
    SpecError,
    ZigzagScenario,
)
from simulator.strategy import Metric, Setup
from simulator.validation.dataset import FloatArray, Part, labels

if TYPE_CHECKING:
    import pandas as pd

DISAGGREGATED = "prefill and decode on separate GPUs: a data set of their own"
PIPELINE_PARALLEL = "pipeline-parallel serving: one node's stages are not stated"
UNKNOWN_MODEL = "model is not in the zoo"
UNKNOWN_DEVICE = "device is not in the catalog"
TOO_LARGE = "predicted not to fit"
THINNED = "thinned for time"

Content = Mapping[str, Any]
"""A scenario as a file would hold it."""
Metrics = Mapping[str, Metric]
Quantity = Callable[[Metrics, Any], tuple[float, float]]
"""The measured quantity from the metrics of a run and the row: value [SI] and relative standard error."""


@dataclass(frozen=True)
class Case:
    """A distinct scenario: what is simulated once."""

    content: str
    """The scenario as JSON."""
    catalog: Catalog
    setup: Setup = field(compare=False, repr=False)

    @staticmethod
    def of(content: Content, catalog: Catalog) -> Case:
        """Load and check a scenario.

        Raises
        ------
        MemroofError
            If the strategy refuses it, or it is predicted not to fit.
        """
        text = json.dumps(content, sort_keys=True)
        case = _loaded(text, catalog)
        if isinstance(case, str):
            raise MemroofError(case)
        return case


@lru_cache(maxsize=8192)
def _loaded(text: str, catalog: Catalog) -> Case | str:
    try:
        setup = load(json.loads(text), catalog=catalog)
        fits = _fits(setup)
    except SpecError as error:
        return error.problems[0].message
    except MemroofError as error:
        return str(error).splitlines()[0]
    return Case(text, catalog, setup) if fits else TOO_LARGE


def _fits(setup: Setup) -> bool:
    if isinstance(setup.scenario, ZigzagScenario):
        return all(use.free >= 0 for use in resident(plan_offload(setup)))
    if isinstance(setup.scenario, HostComputeScenario):
        return host_compute_fits(setup)
    if isinstance(setup.scenario, MixedStreamScenario):
        return mixed_stream_fits(setup)
    if setup.scenario.kind == "offload":
        return True  # its strategy says in the metrics what does not fit
    if isinstance(setup.scenario, ServingScenario) and setup.scenario.fleet is not None:
        return make_fleet(setup, setup.scenario.fleet).fits
    plan = plan_serving(setup)
    return plan.needed <= plan.usable


@dataclass(frozen=True)
class _Constants:
    key: str
    calibration: Calibration = field(compare=False, repr=False)


@lru_cache(maxsize=8192)
def _outcome(case: Case, constants: _Constants) -> Metrics:
    """Metrics of a case; two quantities of one run share it."""
    setup = replace(case.setup, cost=cost_model(case.setup.hardware, constants.calibration))
    return strategy(setup.scenario.kind).simulate(setup).metrics


def metrics_of(cases: Sequence[Case], cost: CostModel) -> list[Metrics]:
    """Return the metrics of cases on one device with a cost model's constants."""
    constants = _Constants(cost.calibration.model_dump_json(), cost.calibration)
    return [_outcome(case, constants) for case in cases]


class Simulated:
    """Predictions of rows from the metrics of their cases."""

    def __init__(self, cases: Sequence[Case], rows: pd.DataFrame, quantity: Quantity) -> None:
        self._cases, self._quantity = cases, quantity
        self._rows = list(rows.itertuples(index=False))

    def predict(self, cost: CostModel) -> FloatArray:
        """Predicted quantity of each row."""
        return self._column(cost, 0)

    def errors(self, cost: CostModel) -> FloatArray:
        """Relative standard error of each row."""
        return self._column(cost, 1)

    def _column(self, cost: CostModel, which: int) -> FloatArray:
        found = metrics_of(self._cases, cost)
        return np.array(
            [self._quantity(metrics, row)[which] for metrics, row in zip(found, self._rows, strict=True)],
            float,
        )


def metric(name: str) -> Quantity:
    """Return a quantity that is a metric as it stands."""
    return lambda metrics, row: (metrics[name].value, metrics[name].error)


def run_parts(
    frame: pd.DataFrame,
    catalog: Catalog,
    skipped: Counter[str],
    *,
    content: Callable[[Any], Content],
    measured: Callable[[pd.DataFrame], FloatArray],
    quantity: Quantity,
    groups: Sequence[str],
) -> list[Part]:
    """Turn rows into parts, one for each device.

    Parameters
    ----------
    frame : DataFrame
        Rows with a column ``line``.
    content : function of a row
        The row (a named tuple) as a scenario; raises :class:`MemroofError` with the reason where it is none.
    measured : function of a frame
        Measured values [SI].
    quantity : function of metrics and a row
        The predicted value and its relative standard error.
    groups : sequence of str
        Columns whose values must not be split.

    Rows that the strategy refuses, or that are predicted not to fit, are counted under what it says.
    """
    by_device: dict[str, list[tuple[int, Case]]] = {}
    for position, row in enumerate(frame.itertuples(index=False)):
        try:
            case = Case.of(content(row), catalog)
        except MemroofError as error:
            skipped[str(error)] += 1
            continue
        by_device.setdefault(case.setup.hardware.device.name, []).append((position, case))
    parts = []
    for device, chosen in by_device.items():
        rows = frame.iloc[[position for position, _ in chosen]]
        model = Simulated([case for _, case in chosen], rows, quantity)
        parts.append(
            Part(
                device, measured(rows), model.predict, labels(rows, groups), rows["line"].to_numpy(np.int64), rows,
                None, model.errors,
            )
        )  # fmt: skip
    return parts


def thin(frame: pd.DataFrame, columns: Sequence[str], most: int, skipped: Counter[str]) -> pd.DataFrame:
    """Keep at most ``most`` rows, those whose labels hash lowest: the same ones on every machine and in every order."""
    if len(frame) <= most:
        return frame
    ranks = [hashlib.sha256(label.encode()).hexdigest() for label in labels(frame, columns).tolist()]
    order = np.argsort(np.array(ranks), kind="stable")[:most]
    skipped[THINNED] += len(frame) - most
    return frame.iloc[np.sort(order)]


def named(table: Mapping[str, str], name: Any, reason: str) -> str:
    """Look a name of a source up; raises :class:`MemroofError` with the reason if it is not known."""
    found = table.get(str(name))
    if found is None:
        raise MemroofError(reason)
    return found
