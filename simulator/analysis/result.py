"""The answer: an outcome with intervals, checks, money, energy, and what would change it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from simulator import units
from simulator.cost import interval
from simulator.specs import MemroofError, OperatorClass
from simulator.specs.errors import did_you_mean
from simulator.strategy import Bottleneck, MemoryUse, Metric, Outcome, Setup

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from simulator.analysis.change import RemedyTried, Sensitivity
    from simulator.engine import Timeline

LEVEL = 0.8
"""Probability that the printed interval is meant to hold."""
_PLAIN = {"count", "fraction", "ratio"}


@dataclass(frozen=True, slots=True)
class Value:
    """A metric with its 80 % interval [SI]."""

    key: str
    label: str
    value: float
    low: float
    high: float
    dimension: str
    better: str

    def text(self) -> str:
        """Value with its unit."""
        return format_value(self.value, self.dimension)


@dataclass(frozen=True, slots=True)
class Check:
    """A figure against what was published, or against a limit."""

    key: str
    expected: float
    found: Value
    relative_error: float
    ok: bool
    source: str = ""
    text: str = ""


@dataclass(frozen=True)
class Result:
    """Everything that was computed for a scenario; it explains itself.

    Attributes
    ----------
    setup : Setup
        Scenario, model, hardware and cost model that it rests on.
    outcome : Outcome
        What the strategy found.
    """

    setup: Setup
    outcome: Outcome

    @property
    def name(self) -> str:
        """The scenario's name."""
        return self.setup.scenario.name

    @property
    def kind(self) -> str:
        """training, serving or offload."""
        return self.setup.scenario.kind

    @property
    def fits(self) -> bool:
        """Whether every memory holds its peak."""
        return self.outcome.fits

    @property
    def ok(self) -> bool:
        """Whether it fits and holds its limits."""
        return self.fits and all(check.ok for check in self.limits)

    @cached_property
    def values(self) -> dict[str, Value]:
        """All metrics by key, with intervals."""
        return {key: _value(key, metric) for key, metric in self.outcome.metrics.items()}

    @cached_property
    def further(self) -> dict[str, Value]:
        """Metrics that take longer to find, computed when asked."""
        found = self.outcome.further() if self.outcome.further else {}
        return {key: _value(key, metric) for key, metric in found.items()}

    @property
    def headline(self) -> Value:
        """How fast."""
        return self.values[self.outcome.headline]

    @cached_property
    def shares(self) -> dict[Bottleneck, float]:
        """Share of the time by what binds it, largest first."""
        return _shares(self.outcome.bottlenecks)

    @property
    def bottleneck(self) -> tuple[str, float]:
        """The largest share and its name; ``("nothing", 0.0)`` where nothing ran."""
        return next(iter(self.shares.items()), ("nothing", 0.0))

    @cached_property
    def phases(self) -> dict[str, dict[Bottleneck, float]]:
        """Shares of each phase's time by what binds it, largest first; empty where the work has one phase."""
        return {
            name: _shares(seconds) for name, seconds in self.outcome.phases.items() if any(seconds.values())
        }

    @property
    def memory(self) -> tuple[MemoryUse, ...]:
        """The footprint ledger."""
        return self.outcome.memory

    @property
    def shortfalls(self) -> tuple[str, ...]:
        """One line for each memory that does not hold its peak."""
        return tuple(
            f"{use.memory}: needs {format_value(use.peak, 'bytes')}, has {format_value(use.capacity, 'bytes')}: "
            f"{format_value(-use.free, 'bytes')} ({-use.free:,.0f} bytes) short"
            for use in self.memory
            if use.free < 0
        )

    @cached_property
    def expectations(self) -> tuple[Check, ...]:
        """What was measured or published, against what was found."""
        return tuple(
            self._check(key, str(expected.value), expected.source, expected.tolerance, place="expect")
            for key, expected in self.setup.scenario.expect.items()
        )

    @cached_property
    def limits(self) -> tuple[Check, ...]:
        """The scenario's limits and its service-level objective, held or missed."""
        return tuple(self._limit(key, text) for key, text in self.setup.scenario.all_limits.items())

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What the answer takes for granted."""
        table = self.setup.cost.measured
        if table is None:
            return self.outcome.assumptions
        return (
            f"{table.size} measured products of {table.file} replace predicted times",
            *self.outcome.assumptions,
        )

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """Data sheets, configurations, papers and constants that the answer rests on."""
        setup = self.setup
        described = [item.source for item in (setup.described, setup.layers, setup.graph) if item]
        network = [link.source for _, link in setup.hardware.network] if setup.hardware.nodes > 1 else []
        node = setup.hardware.machine.node
        found = [
            setup.scenario.source, *described, *(device.source for device in setup.hardware.devices),
            node.source if node else "", *network, setup.cost.calibration.source,
            *(cost.calibration.source for cost in setup.others.values()), *self.outcome.sources,
            *(e.source for e in setup.scenario.expect.values()),
        ]  # fmt: skip
        return tuple(dict.fromkeys(source for source in found if source))

    @cached_property
    def money(self) -> dict[str, float]:
        """Dollars: rent per second of the hardware in use, and per unit of what it yields, where a price is known."""
        from simulator.analysis.money import money

        return money(self)

    @cached_property
    def energy(self) -> dict[str, float]:
        """Watts of the accelerators in use, and joules per unit of what they yield."""
        from simulator.analysis.money import energy

        return energy(self)

    @property
    def timeline(self) -> Timeline | None:
        """What ran when."""
        return self.outcome.timeline

    @property
    def class_errors(self) -> dict[OperatorClass, float]:
        """Relative standard error of each operator class's seconds."""
        return {**self.setup.cost.calibration.error, **self.outcome.class_errors}

    def doubt(self) -> dict[str, float]:
        """Share of the headline's variance by operator class, largest first; classes are independent.

        ``composition`` is what the whole is uncertain by on top of its kernels.
        """
        errors = self.class_errors
        times = self.outcome.class_times
        parts: dict[str, float] = {
            name: (errors.get(name, 0.0) * seconds) ** 2 for name, seconds in times.items()
        }
        if self.outcome.composition_error:
            parts["composition"] = (self.outcome.composition_error * sum(times.values())) ** 2
        total = sum(parts.values()) or 1.0
        return dict(sorted(((k, v / total) for k, v in parts.items()), key=lambda item: (-item[1], item[0])))

    def remedies(self, *, most: int = 4) -> tuple[RemedyTried, ...]:
        """Changes of the scenario that make it fit, tried out, the mildest first."""
        from simulator.analysis.change import try_remedies

        return try_remedies(self.setup, most=most)

    def sensitivity(self) -> tuple[Sensitivity, ...]:
        """Effect on the headline of 10 % more of each hardware figure."""
        from simulator.analysis.change import sensitivity

        return sensitivity(self)

    def plot_footprint(self, memory: str | None = None) -> Figure:
        """Resident bytes over time by category, of the fullest memory or a named one."""
        from simulator.analysis.plots import plot_footprint

        return plot_footprint(self, memory)

    def plot_timeline(self, window: tuple[float, float] | None = None) -> Figure:
        """What ran on each stream, in a window of seconds or in all."""
        from simulator.analysis.plots import plot_timeline

        return plot_timeline(self, window)

    def plot_roofline(self) -> Figure:
        """The operators on the device's roofline."""
        from simulator.analysis.plots import plot_roofline

        return plot_roofline(self)

    def plot_bottlenecks(self) -> Figure:
        """Shares of the time by what binds it."""
        from simulator.analysis.plots import plot_bottlenecks

        return plot_bottlenecks(self)

    def to_dict(self) -> dict[str, Any]:
        """The whole answer as JSON-able data in SI units; same input, same bytes."""
        from simulator.analysis.export import to_dict

        return to_dict(self)

    def to_frame(self) -> pd.DataFrame:
        """Metrics as a pandas frame, one row a metric."""
        import pandas as pd

        rows = [
            {"metric": v.key, "value": v.value, "low": v.low, "high": v.high, "dimension": v.dimension}
            for v in self.values.values()
        ]
        return pd.DataFrame(rows).set_index("metric")

    def metric(self, key: str, place: str) -> Value:
        """Return a metric; MemroofError with the nearest names if there is none, ``place`` being where it was asked for."""
        if key not in self.values:
            raise MemroofError(
                f"{place}.{key}: {self.kind} has no such metric{did_you_mean(key, self.values)}"
            )
        return self.values[key]

    def _check(self, key: str, text: str, source: str, tolerance: float | None, *, place: str) -> Check:
        found = self.metric(key, place)
        expected = read_value(text, found.dimension, f"{place}.{key}")
        error = found.value / expected - 1.0 if expected else float("inf")
        return Check(key, expected, found, error, tolerance is None or abs(error) <= tolerance, source, text)

    def _limit(self, key: str, text: str) -> Check:
        found = self.metric(key, "limit")
        at_least = text.lstrip().startswith(">")
        bound = read_value(text.lstrip(" ><="), found.dimension, f"limit.{key}")
        ok = found.value >= bound if at_least else found.value <= bound
        return Check(key, bound, found, found.value / bound - 1.0 if bound else 0.0, ok, text=text)


def format_value(value: float, dimension: str) -> str:
    """Print a metric's value with its unit."""
    if dimension == "fraction":
        return f"{100 * value:.1f} %"
    if dimension == "ratio":
        return units.significant(value)
    if dimension == "count":
        return f"{value:,.0f}"
    return units.format_quantity(value, dimension)


def read_value(text: str, dimension: str, place: str) -> float:
    """Read an expected value or limit in the metric's dimension; ``54.1 %`` is a fraction."""
    try:
        if dimension == "fraction" and text.strip().endswith("%"):
            return float(text.strip()[:-1]) / 100.0
        if dimension in _PLAIN:
            return float(text.replace(",", ""))
        try:
            return float(text) if dimension in ("1/s", "tokens") else units.parse(text, dimension)
        except ValueError:
            return units.parse(text, dimension)
    except ValueError as error:
        message = str(error) if isinstance(error, units.UnitError) else f"{text!r} is not a {dimension}"
        raise MemroofError(f"{place}: {message}") from None


def _shares(seconds: Mapping[Bottleneck, float]) -> dict[Bottleneck, float]:
    total = sum(seconds.values()) or 1.0
    ordered = sorted(seconds.items(), key=lambda item: (-item[1], item[0]))
    return {name: part / total for name, part in ordered if part > 0.0}


def _value(key: str, metric: Metric) -> Value:
    low, high = metric.span or interval(metric.value, metric.error, LEVEL)
    return Value(key, metric.label, metric.value, float(low), float(high), metric.dimension, metric.better)
