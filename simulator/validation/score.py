"""How far predictions are off: errors of a data set, its worst rows, the coverage of the interval, its bound."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from simulator.cost import interval
from simulator.specs import Catalog
from simulator.specs.base import Fraction, Spec, validate
from simulator.specs.source import read_document
from simulator.validation.dataset import DataSet, FloatArray, Loaded, constants_for

WORST = 5


class Bound(Spec):
    """What a data set must stay below; relative errors as fractions."""

    median: Fraction | None = None
    mean: Fraction | None = None
    max: float | None = None
    coverage: tuple[float, float] | None = None
    """Lowest and highest share of rows inside the 80 % interval."""
    note: str = ""


class Bounds(Spec):
    """The committed bounds by data set."""

    kind: str
    bounds: dict[str, Bound]


@dataclass(frozen=True)
class Score:
    """Errors of one data set."""

    dataset: str
    rows: int
    skipped: Mapping[str, int]
    mean_ape: float
    median_ape: float
    p90_ape: float
    max_ape: float
    bias: float
    """exp(mean log(predicted/measured)) - 1: above 0 where predictions are too large."""
    coverage_80: float
    bound: Bound | None
    worst: tuple[dict[str, Any], ...]
    by_device: Mapping[str, dict[str, float]] = field(default_factory=dict)
    predicted: FloatArray = field(repr=False, default_factory=lambda: np.zeros(0))
    measured: FloatArray = field(repr=False, default_factory=lambda: np.zeros(0))

    @property
    def faults(self) -> tuple[str, ...]:
        """The bounds that are missed, one text each."""
        if self.bound is None or not self.rows:
            return ()
        limits = (
            ("median", self.median_ape, self.bound.median),
            ("mean", self.mean_ape, self.bound.mean),
            ("max", self.max_ape, self.bound.max),
        )
        found = [
            f"{name} {value:.1%} above {limit:.1%}"
            for name, value, limit in limits
            if limit is not None and value > limit
        ]
        if self.bound.coverage is not None:
            low, high = self.bound.coverage
            if not low <= self.coverage_80 <= high:
                found.append(f"coverage {self.coverage_80:.1%} outside {low:.0%} to {high:.0%}")
        return tuple(found)

    @property
    def ok(self) -> bool:
        """Whether all bounds hold."""
        return not self.faults

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able data; fractions, not per cent."""
        return {
            "dataset": self.dataset, "rows": self.rows, "skipped": dict(self.skipped), "mean_ape": self.mean_ape,
            "median_ape": self.median_ape, "p90_ape": self.p90_ape, "max_ape": self.max_ape, "bias": self.bias,
            "coverage_80": self.coverage_80,
            "bound": self.bound.model_dump(exclude_none=True) if self.bound else None, "ok": self.ok,
            "faults": list(self.faults), "by_device": dict(self.by_device), "worst": list(self.worst),
        }  # fmt: skip


def score(dataset: DataSet, file: Path, catalog: Catalog) -> Score:
    """Predict a data set with the catalog's constants and compare."""
    return score_loaded(dataset.name, dataset.load(file, catalog), catalog)


def score_loaded(name: str, loaded: Loaded, catalog: Catalog) -> Score:
    """Compare what was loaded."""
    predicted, measured, errors, devices = [], [], [], []
    for part in loaded.parts:
        cost = constants_for(catalog, part.device)
        predicted.append(np.asarray(part.predict(cost), float))
        measured.append(part.measured)
        errors.append(part.relative_errors(cost))
        devices.append(np.full(len(part.measured), part.device))
    if not measured:
        nothing = float("nan")
        return Score(
            name, 0, loaded.skipped, nothing, nothing, nothing, nothing, nothing, nothing, bound_of(name), ()
        )
    p, m, e, d = (np.concatenate(x) for x in (predicted, measured, errors, devices))
    ape = np.abs(p / m - 1.0)
    low, high = interval(p, e)
    inside = (m >= low) & (m <= high)
    doubtful = e > 0.0  # bytes and counts rest on no constant: they have no interval to be covered
    by_device = {
        name: _errors(p[d == name], m[d == name], inside[d == name]) for name in dict.fromkeys(d.tolist())
    }
    return Score(
        name, len(m), dict(loaded.skipped), float(ape.mean()), float(np.median(ape)), float(np.quantile(ape, 0.9)),
        float(ape.max()), _bias(p, m), _share(inside[doubtful]), bound_of(name), tuple(_worst(loaded, p, m)), by_device, p, m,
    )  # fmt: skip


@lru_cache(maxsize=1)
def committed_bounds() -> Mapping[str, Bound]:
    """Return the bounds that are committed with the project."""
    return validate(read_document(Path(__file__).parent / "bounds.yaml"), Bounds).bounds


def bound_of(name: str) -> Bound | None:
    """Return the bound of a data set, or None."""
    return committed_bounds().get(name)


def _share(inside: Any) -> float:
    return float(inside.mean()) if len(inside) else float("nan")


def _errors(predicted: FloatArray, measured: FloatArray, inside: Any) -> dict[str, float]:
    ape = np.abs(predicted / measured - 1.0)
    return {
        "rows": len(ape),
        "median_ape": float(np.median(ape)),
        "mean_ape": float(ape.mean()),
        "bias": _bias(predicted, measured),
        "coverage_80": float(inside.mean()),
    }


def _bias(predicted: FloatArray, measured: FloatArray) -> float:
    return float(np.exp(np.mean(np.log(predicted / measured))) - 1.0)


def _worst(loaded: Loaded, predicted: FloatArray, measured: FloatArray) -> Iterable[dict[str, Any]]:
    """The rows with the largest ratio either way, with their inputs."""
    order = np.argsort(-np.abs(np.log(predicted / measured)), kind="stable")[:WORST]
    starts = np.cumsum([0, *(len(part.measured) for part in loaded.parts)])
    for index in order.tolist():
        at = int(np.searchsorted(starts, index, side="right")) - 1
        part, row = loaded.parts[at], index - int(starts[at])
        inputs = {str(k): v for k, v in part.frame.iloc[row].items() if k != "line" and v == v}
        yield {
            "line": int(part.rows[row]), "device": part.device, "measured": float(measured[index]),
            "predicted": float(predicted[index]), "inputs": {k: v.item() if hasattr(v, "item") else v for k, v in inputs.items()},
        }  # fmt: skip
