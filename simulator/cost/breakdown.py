"""Costs of one work and of many: seconds by operator class and by what binds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from simulator.cost.numeric import Parts
from simulator.graph.work import Numeric
from simulator.specs.calibration import OperatorClass

Bound = Literal["compute", "memory", "link", "latency"]
BOUNDS: tuple[Bound, ...] = ("compute", "memory", "link", "latency")


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of one work and their parts; ``error`` is the relative standard error of its class."""

    time: Numeric
    operator_class: OperatorClass
    compute: Numeric = 0.0
    memory: Numeric = 0.0
    link: Numeric = 0.0
    latency: Numeric = 0.0
    error: float = 0.0
    axis: str = ""
    """Of a collective: whose group communicates."""

    @staticmethod
    def of(parts: Parts, operator_class: OperatorClass, error: float, axis: str = "") -> Cost:
        """Label the parts of a formula."""
        time, compute, memory, link, latency = parts
        return Cost(time, operator_class, compute, memory, link, latency, error, axis)

    @property
    def bound(self) -> Any:
        """What binds: the longest part, of equal ones the first; an array where the time is one."""
        parts = (self.compute, self.memory, self.link, self.latency)
        if not isinstance(self.time, np.ndarray):
            return BOUNDS[parts.index(max(parts))]
        stacked = np.stack([np.broadcast_to(part, self.time.shape) for part in parts])
        return np.array(BOUNDS)[stacked.argmax(axis=0)]


@dataclass(frozen=True, slots=True)
class Breakdown:
    """Seconds by operator class and by bound; ``hidden`` ones ran beside others and count in neither.

    A collective that its link binds stands under its axis: ``tensor link``.
    """

    by_class: dict[OperatorClass, Numeric] = field(default_factory=dict)
    by_bound: dict[str, Numeric] = field(default_factory=dict)
    hidden: Numeric = 0.0
    squares: dict[OperatorClass, Numeric] = field(default_factory=dict)
    """Sum of squared seconds over different kernels of a class: how far their own errors average out [s²]."""

    @staticmethod
    def of(cost: Cost) -> Breakdown:
        """One cost, exposed."""
        name = cost.operator_class
        return Breakdown({name: cost.time}, _by_bound(cost), 0.0, {name: cost.time * cost.time})

    @property
    def time(self) -> Numeric:
        """Sum [s]."""
        return sum(self.by_class.values(), start=0.0)

    def __add__(self, other: Breakdown) -> Breakdown:
        return Breakdown(
            _merged(self.by_class, other.by_class),
            _merged(self.by_bound, other.by_bound),
            self.hidden + other.hidden,
            _merged(self.squares, other.squares),
        )

    def __mul__(self, factor: Numeric) -> Breakdown:
        """The same kernels ``factor`` times: their own errors are the same each time."""
        return Breakdown(
            {name: time * factor for name, time in self.by_class.items()},
            {name: time * factor for name, time in self.by_bound.items()},
            self.hidden * factor,
            {name: square * factor * factor for name, square in self.squares.items()},
        )

    __rmul__ = __mul__

    def beside(self, seconds: Numeric, occupancy: float = 0.0) -> Breakdown:
        """Return what this adds to work of ``seconds`` beside which it runs, shares unchanged.

        Meanwhile it takes the share ``occupancy`` of the units from that work. If it ends first, the work has
        lost occupancy·own seconds; if the work ends first, own - seconds are left: the larger is added.
        """
        own: Any = self.time
        exposed: Any = np.maximum(own - seconds, occupancy * own)
        share = np.divide(exposed, own, out=np.zeros(np.shape(exposed)), where=np.asarray(own) > 0.0)
        scaled = self * (float(share) if np.ndim(share) == 0 else share)
        hidden = own - exposed + self.hidden
        return Breakdown(
            scaled.by_class,
            scaled.by_bound,
            float(hidden) if np.ndim(hidden) == 0 else hidden,
            scaled.squares,
        )


@dataclass(frozen=True, slots=True)
class OperatorTime:
    """An operator's passes, collectives that run beside other work counted as far as they are exposed."""

    forward: Breakdown
    input_gradient: Breakdown
    weight_gradient: Breakdown

    @property
    def backward(self) -> Breakdown:
        """Input gradient and weight gradient."""
        return self.input_gradient + self.weight_gradient


def _by_bound(cost: Cost) -> dict[str, Numeric]:
    bound = cost.bound
    if isinstance(bound, str):
        return {_label(bound, cost.axis): cost.time}
    present = [name for name in BOUNDS if np.any(bound == name)]
    return {_label(name, cost.axis): np.where(bound == name, cost.time, 0.0) for name in present}


def _label(bound: str, axis: str) -> str:
    return f"{axis} link" if bound == "link" and axis else bound


def _merged(a: dict[Any, Numeric], b: dict[Any, Numeric]) -> dict[Any, Numeric]:
    merged = dict(a)
    for name, time in b.items():
        merged[name] = merged[name] + time if name in merged else time
    return merged
