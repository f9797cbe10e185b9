"""Fitting constants: robust least squares in log space on named data sets, judged on groups held out.

What is fitted stands beside the data sets, in tuples ``FITS``: for an operator class the constants of its section, their
bounds, and the data sets. The result is a calibration file beside the device, with provenance and the spread of the residuals.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from simulator.cost import CostModel
from simulator.specs import Calibration, Catalog, MemroofError, OperatorClass
from simulator.specs.calibration import FitRecord
from simulator.validation.dataset import DataSet, FloatArray, Part, held_out
from simulator.validation.datasets import MODULES, known

DATASETS_PACKAGE = "simulator.validation.datasets"
HELD_OUT = 0.2
"""Share of groups that judge a fit."""
MAXIMUM_ROWS = 6000
"""Rows of one data set and device that a fit uses; more are thinned with the seed."""
LOSS_SCALE = 0.1
"""Log residual at which the soft-L1 loss turns from squared to linear: 10 %."""


@dataclass(frozen=True, slots=True)
class Constant:
    """One constant to fit: where it stands in a calibration, and its bounds; fitted in log space."""

    section: str
    name: str
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Fit:
    """What is fitted together for an operator class."""

    operator_class: OperatorClass
    constants: tuple[Constant, ...]
    datasets: tuple[str, ...]
    """Names of the data sets whose rows are used."""
    groups: str
    """What is held out together, in words."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Weight of a data set's residuals where it is not 1."""


def known_fits() -> tuple[Fit, ...]:
    """Return what can be fitted: the tuples ``FITS`` of the data set modules, in their order."""
    found: list[Fit] = []
    for module in MODULES:
        found.extend(getattr(importlib.import_module(f"{DATASETS_PACKAGE}.{module}"), "FITS", ()))
    return tuple(found)


@dataclass(frozen=True)
class Fitted:
    """The constants found for one class on one device, and how good they are on groups that were not used."""

    operator_class: OperatorClass
    device: str
    values: Mapping[tuple[str, str], float]
    record: FitRecord
    spread: float
    """Standard deviation of the log residuals of held-out rows: the class's error."""


def fit_device(
    device: str, fits: Sequence[Fit], folder: Path, catalog: Catalog, *, seed: int = 0, date: str = ""
) -> tuple[Fitted, ...]:
    """Fit every class that has rows on a device, one after the other; later classes see the earlier ones' constants.

    Raises
    ------
    MemroofError
        If the folder holds no rows of the device.
    """
    processor = catalog.processor(device)
    calibration = catalog.calibration(processor)
    results: list[Fitted] = []
    for fit in fits:
        parts = _parts(fit, device, folder, catalog)
        if not parts:
            continue
        fitted = _fit(fit, parts, CostModel(processor, calibration), seed, date)
        results.append(fitted)
        calibration = apply(calibration, fitted.values)
    if not results:
        raise MemroofError(f"{folder}: no rows of {device} for {', '.join(f.operator_class for f in fits)}")
    return tuple(results)


def devices_with_rows(fits: Sequence[Fit], folder: Path, catalog: Catalog) -> tuple[str, ...]:
    """Return the devices that a folder has rows of, sorted."""
    datasets: Mapping[str, DataSet] = {dataset.name: dataset for dataset in known()}
    found: set[str] = set()
    for name in {name for fit in fits for name in fit.datasets}:
        file = folder / name.partition("#")[0]
        if file.is_file():
            found |= {part.device for part in datasets[name].load(file, catalog).parts}
    return tuple(sorted(found))


def apply(calibration: Calibration, values: Mapping[tuple[str, str], float]) -> Calibration:
    """Return a calibration with some constants replaced."""
    sections: dict[str, dict[str, float]] = {}
    for (section, name), value in values.items():
        sections.setdefault(section, {})[name] = value
    update = {
        section: getattr(calibration, section).model_copy(update=given) for section, given in sections.items()
    }
    return calibration.model_copy(update=update)


def _parts(fit: Fit, device: str, folder: Path, catalog: Catalog) -> list[tuple[str, Part]]:
    found: list[tuple[str, Part]] = []
    datasets: Mapping[str, DataSet] = {dataset.name: dataset for dataset in known()}
    for name in fit.datasets:
        file = folder / name.partition("#")[0]
        if file.is_file():
            loaded = datasets[name].load(file, catalog)
            found += [(name, part) for part in loaded.parts if part.device == device]
    return found


def _fit(fit: Fit, parts: Sequence[tuple[str, Part]], base: CostModel, seed: int, date: str) -> Fitted:
    from scipy.optimize import least_squares

    masks = [held_out(part.groups, HELD_OUT, seed) for _, part in parts]
    used = [_thinned(~mask, seed) for mask in masks]
    start = np.array([getattr(getattr(base.calibration, c.section), c.name) for c in fit.constants], float)
    low, high = np.array([[c.low, c.high] for c in fit.constants]).T
    start = np.log(np.clip(start, low * 1.0001, high * 0.9999))

    def residuals(point: FloatArray) -> FloatArray:
        values = {(c.section, c.name): float(v) for c, v in zip(fit.constants, np.exp(point), strict=True)}
        cost = CostModel(base.device, apply(base.calibration, values), base.memory_bandwidth)
        found = [
            fit.weights.get(name, 1.0) * (np.log(part.predict(cost)) - np.log(part.measured))[chosen]
            for (name, part), chosen in zip(parts, used, strict=True)
        ]
        return np.concatenate(found)

    solution = least_squares(
        residuals, start, bounds=(np.log(low), np.log(high)), loss="soft_l1", f_scale=LOSS_SCALE, diff_step=[0.02],
        x_scale=0.3, max_nfev=40,
    )  # fmt: skip
    values = {
        (c.section, c.name): float(f"{v:.4g}")
        for c, v in zip(fit.constants, np.exp(solution.x).tolist(), strict=True)
    }
    cost = CostModel(base.device, apply(base.calibration, values), base.memory_bandwidth)
    errors = [np.log(part.predict(cost)) - np.log(part.measured) for _, part in parts]
    unseen = np.concatenate([e[m] for e, m in zip(errors, masks, strict=True)])
    groups = np.concatenate([part.groups[m] for (_, part), m in zip(parts, masks, strict=True)])
    spread, shared = spreads(unseen, groups)
    ape = np.abs(np.expm1(unseen))
    record = FitRecord(
        data=", ".join(dict.fromkeys(name for name, _ in parts)),
        rows=sum(len(chosen) for chosen in used), held_out=len(unseen), groups=fit.groups,
        median=_rounded(np.median(ape)), mean=_rounded(ape.mean()), shared=_rounded(shared), date=date,
    )  # fmt: skip
    return Fitted(fit.operator_class, parts[0][1].device, values, record, _rounded(spread))


def _thinned(mask: Any, seed: int) -> Any:
    rows = np.flatnonzero(mask)
    if len(rows) <= MAXIMUM_ROWS:
        return rows
    return np.sort(np.random.default_rng(seed).choice(rows, MAXIMUM_ROWS, replace=False))


def spreads(residuals: FloatArray, groups: Any) -> tuple[float, float]:
    """Return the spread of log residuals that covers 80 % of them, and the share of its variance that groups have in common.

    The spread is that of a normal distribution with the same central 80 % (robust against outliers); the shared part
    is the variance of group means beyond what the scatter within groups explains (one-way random effects).
    """
    if len(residuals) < 2:
        return float(np.abs(residuals).max(initial=0.0)) or 0.5, 1.0
    spread = float(np.quantile(np.abs(residuals), 0.8) / 1.2816)
    labels, index = np.unique(groups, return_inverse=True)
    counts = np.bincount(index)
    means = np.bincount(index, residuals) / counts
    within = float(np.sum((residuals - means[index]) ** 2) / max(1, len(residuals) - len(labels)))
    between = float(np.var(means)) - within / float(np.mean(counts))
    common = max(0.0, between) + float(np.mean(residuals)) ** 2
    shared = common / max(1e-12, common + within)
    return max(spread, 1e-3), shared


def _rounded(value: Any) -> float:
    return float(f"{float(value):.3g}")
