"""Fitting constants: robust least squares in log space on named data sets, judged on groups held out.

What is fitted stands beside the data sets, in tuples ``FITS``: for an operator class the constants of its section, their
bounds, and the data sets. The result is a calibration file beside the device, with provenance and the spread of the residuals.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from simulator.cost import CostModel
from simulator.specs import Calibration, Catalog, MemroofError, OperatorClass
from simulator.specs.calibration import FitRecord
from simulator.validation.dataset import DataSet, FloatArray, Part, constants_for, held_out
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
    scan: int = 0
    """Points of its range, in equal ratios, from the best of which a search starts: where rows depend on it in part of its
    range alone, a search from the rest stays there, and one from far off may step over the best."""


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
    judged: tuple[str, ...] = ()
    """Data sets whose rows held out give the error; all if empty."""
    unseen: tuple[str, ...] = ()
    """Further data sets that only judge, with all their rows."""
    starts: tuple[Mapping[str, float], ...] = ({},)
    """Constants to start from, by name, where not from what the device inherits: several where the kernels' rules differ
    by kind, so that a search from one side would stay there. The best fit is kept."""
    whole: tuple[str, ...] = ()
    """Data sets of few rows that are fitted on with all of them, beside others of the same device, and judge nothing."""
    own: bool = False
    """Whether only parts of the fit's operator class are used, of data sets that hold others too."""
    choices: tuple[Mapping[tuple[str, str], float], ...] = ({},)
    """Sets of constants, by section and name, that are tried in turn and not searched: counts and rules of a kernel. The
    set whose fit is best is kept."""


def known_fits() -> tuple[Fit, ...]:
    """Return what can be fitted: the tuples ``FITS`` of the data set modules, in their order.

    A module whose rows belong to the fits of others names them by class in ``MORE_ROWS``.
    """
    modules = [importlib.import_module(f"{DATASETS_PACKAGE}.{name}") for name in MODULES]
    more: dict[OperatorClass, tuple[str, ...]] = {}
    for module in modules:
        for name, datasets in getattr(module, "MORE_ROWS", {}).items():
            more[name] = (*more.get(name, ()), *datasets)
    return tuple(
        _with_rows(fit, more.get(fit.operator_class, ()))
        for module in modules
        for fit in getattr(module, "FITS", ())
    )


def _with_rows(fit: Fit, datasets: tuple[str, ...]) -> Fit:
    # no name in ``judged`` means that all judge
    judged = (*fit.judged, *datasets) if fit.judged else ()
    return replace(fit, datasets=(*fit.datasets, *datasets), judged=judged)


@dataclass(frozen=True)
class Fitted:
    """The constants found for one class on one device, and how good they are on groups that were not used."""

    operator_class: OperatorClass
    device: str
    values: Mapping[tuple[str, str], float]
    record: FitRecord
    spread: float
    """Standard deviation of the log residuals of held-out rows: the class's error."""
    undetermined: tuple[tuple[str, str], ...] = ()
    """Constants of the fit that no row depends on: they stay as inherited."""

    @property
    def usable(self) -> bool:
        """Whether the constants say anything: the catalog refuses an error above 100 %."""
        return self.spread <= 1.0


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
    # a search starts from the class-wide constants, so that a second one finds the same
    start = catalog.calibration(processor.model_copy(update={"name": "", "architecture": ""}))
    results: list[Fitted] = []
    for fit in fits:
        parts = _parts(fit, device, folder, catalog)
        if not any(part.fitted for name, part in parts if name in fit.datasets):
            continue
        fitted = _fit(fit, parts, constants_for(catalog, device, calibration), start, seed, date)
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
    for name in (*fit.datasets, *fit.whole, *fit.unseen):
        file = folder / name.partition("#")[0]
        if file.is_file():
            loaded = datasets[name].load(file, catalog)
            found += [
                (name, part)
                for part in loaded.parts
                if part.device == device and (not fit.own or part.operator_class == fit.operator_class)
            ]
    return found


def _fit(
    fit: Fit,
    parts: Sequence[tuple[str, Part]],
    base: CostModel,
    start_from: Calibration,
    seed: int,
    date: str,
) -> Fitted:
    from scipy.optimize import least_squares

    parts = [(name, part) for name, part in parts if part.fitted]
    masks = [_judging(fit, name, part, seed) for name, part in parts]
    used = [_thinned(~mask, seed) for mask in masks]
    low, high = np.array([[c.low, c.high] for c in fit.constants]).T
    # the search goes over 1 + log(value / low): differences are taken in proportion to it, and must not vanish at a value of 1
    width = np.log(high / low)

    def residuals(point: FloatArray, choice: Mapping[tuple[str, str], float]) -> FloatArray:
        given = low * np.exp(point - 1.0)
        values = {(c.section, c.name): float(v) for c, v in zip(fit.constants, given, strict=True)}
        cost = CostModel(base.device, apply(base.calibration, {**values, **choice}), base.memory_bandwidth)
        found = [
            fit.weights.get(name, 1.0) * (np.log(part.predict(cost)) - np.log(part.measured))[chosen]
            for (name, part), chosen in zip(parts, used, strict=True)
            if len(chosen)
        ]
        return np.concatenate(found)

    def search(given: Mapping[str, float], choice: Mapping[tuple[str, str], float]) -> Any:
        inherited = [getattr(getattr(start_from, c.section), c.name) for c in fit.constants]
        start = np.array(
            [given.get(c.name, value) for c, value in zip(fit.constants, inherited, strict=True)], float
        )
        point = 1.0 + np.log(np.clip(start / low, 1.0001, 0.9999 * high / low))
        point = _scanned(fit.constants, point, width, lambda at: residuals(at, choice))
        return least_squares(
            residuals, point, bounds=(np.ones(len(low)), 1.0 + width),
            loss="soft_l1", f_scale=LOSS_SCALE, diff_step=[0.01], x_scale=0.3, max_nfev=40,
            args=(choice,),
        )  # fmt: skip

    searches = [(search(given, choice), choice) for choice in fit.choices for given in fit.starts]
    solution, choice = min(searches, key=lambda found: float(found[0].cost))
    found = low * np.exp(solution.x - 1.0)
    moves = [
        moved or _felt(residuals, solution.x, i, width, choice)
        for i, moved in enumerate(solution.jac.any(axis=0))
    ]
    values = {
        (c.section, c.name): float(f"{v:.4g}")
        for c, v, moved in zip(fit.constants, found.tolist(), moves, strict=True)
        if moved
    } | dict(choice)
    cost = CostModel(base.device, apply(base.calibration, values), base.memory_bandwidth)
    judging = [
        (np.log(part.predict(cost)) - np.log(part.measured), part.groups, mask)
        for (name, part), mask in zip(parts, masks, strict=True)
        if name in (*(fit.judged or fit.datasets), *fit.unseen)
    ]
    unseen = np.concatenate([errors[mask] for errors, _, mask in judging])
    groups = np.concatenate([labels[mask] for _, labels, mask in judging])
    spread, shared = spreads(unseen, groups)
    ape = np.abs(np.expm1(unseen))
    record = FitRecord(
        data=", ".join(dict.fromkeys(name for name, _ in parts)),
        rows=sum(len(chosen) for chosen in used), held_out=len(unseen), groups=fit.groups,
        median=_rounded(np.median(ape)), mean=_rounded(ape.mean()), shared=_rounded(shared), date=date,
    )  # fmt: skip
    undetermined = tuple((c.section, c.name) for c in fit.constants if (c.section, c.name) not in values)
    return Fitted(fit.operator_class, parts[0][1].device, values, record, _rounded(spread), undetermined)


def _scanned(
    constants: Sequence[Constant],
    point: FloatArray,
    width: FloatArray,
    residuals: Callable[[FloatArray], FloatArray],
) -> FloatArray:
    """The point, with each constant that is scanned where the loss is least; as it was where none is better."""

    def loss(at: FloatArray) -> float:
        return float(np.sum(np.hypot(1.0, residuals(at) / LOSS_SCALE) - 1.0))

    for index, constant in enumerate(constants):
        if constant.scan:
            places = 1.0 + width[index] * np.linspace(0.0, 1.0, constant.scan + 2)[1:-1]
            tried = [point, *(np.where(np.arange(len(point)) == index, place, point) for place in places)]
            point = tried[int(np.argmin([loss(at) for at in tried]))]
    return point


def _felt(
    residuals: Any, point: FloatArray, index: int, width: FloatArray, choice: Mapping[tuple[str, str], float]
) -> bool:
    """Whether a constant that nothing depends on near the solution does so elsewhere: a limit that another one sets there."""
    there = residuals(point, choice)
    for end in (1.0, 1.0 + width[index]):
        moved = point.copy()
        moved[index] = end
        if not np.array_equal(residuals(moved, choice), there):
            return True
    return False


def _judging(fit: Fit, name: str, part: Part, seed: int) -> Any:
    if name in (*fit.unseen, *fit.whole):
        return np.full(len(part.measured), name in fit.unseen)
    return held_out(part.groups, HELD_OUT, seed)


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
