"""How sure a sum of predicted times is: errors by operator class, and the interval that follows from them."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

import numpy as np

from simulator.cost.breakdown import Breakdown
from simulator.graph.work import Numeric
from simulator.specs.calibration import Calibration, OperatorClass


def relative_error(times_by_class: Mapping[Any, Numeric], errors: Mapping[Any, float]) -> Numeric:
    """Return the relative standard error of a sum of times.

    Parameters
    ----------
    times_by_class : mapping
        Seconds by operator class; arrays broadcast.
    errors : mapping
        Relative standard error of each class; a class that is missing counts as certain.

    Returns
    -------
    number or array
        sqrt(sum over classes of (e·t)²) / sum of t: the errors of one class are fully correlated (one
        constant is wrong for all of its operators), those of two classes independent (law of propagation:
        JCGM 100:2008, section 5.2). 0 where the sum is 0.
    """
    total: Any = 0.0
    variance: Any = 0.0
    for name, time in times_by_class.items():
        total = total + time
        variance = variance + (errors.get(name, 0.0) * time) ** 2
    if np.ndim(total) == 0:
        return float(variance**0.5 / total) if total > 0 else 0.0
    relative: Numeric = np.divide(np.sqrt(variance), total, out=np.zeros(np.shape(total)), where=total > 0)
    return relative


def class_errors(breakdown: Breakdown, calibration: Calibration) -> dict[OperatorClass, float]:
    """Return the relative standard error of each class's sum of times.

    Parameters
    ----------
    breakdown : Breakdown
        Scalars: seconds and squared seconds by class.
    calibration : Calibration
        Error of a single kernel by class; where it was fitted, the share of its variance that kernels have in common.

    Returns
    -------
    dict
        e·sqrt(rho + (1 - rho)·sum of t² / (sum of t)²): the common part stays, each kernel's own part averages out over
        different kernels. Constants of a whole class of devices count as common to all kernels (rho = 1).
    """
    found: dict[OperatorClass, float] = {}
    for name, time in breakdown.by_class.items():
        error = calibration.error.get(name, 0.0)
        shared = calibration.fits[name].shared if name in calibration.fits else 1.0
        alone = float(breakdown.squares.get(name, 0.0)) / float(time) ** 2 if float(time) > 0.0 else 1.0
        found[name] = error * (shared + (1.0 - shared) * min(1.0, alone)) ** 0.5
    return found


def interval(value: Numeric, relative_error: Numeric, level: float = 0.8) -> tuple[Numeric, Numeric]:
    """Return the bounds of a log-normal interval around a predicted value.

    Parameters
    ----------
    value, relative_error : number or array
        Prediction (its median) and relative standard error.
    level : float
        Probability that the truth lies inside, above 0 and below 1; 0.8 reaches from the 10th to the 90th
        percentile.

    Returns
    -------
    low, high : number or array
        value · exp(∓z·σ) with z the normal quantile of (1 + level)/2, 1.2816 for 80 %: symmetric in the
        logarithm, so that a time is never negative.
    """
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must lie between 0 and 1, found {level}")
    factor: Any = np.exp(NormalDist().inv_cdf(0.5 * (1.0 + level)) * relative_error)
    low, high = value / factor, value * factor
    return (float(low), float(high)) if np.ndim(low) == 0 else (low, high)
