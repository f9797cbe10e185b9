"""Latency, goodput, dollars and joules of a serving scenario against its load."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.analysis.capacity import BEYOND, LIVES, largest_load
from simulator.analysis.money import power, rent
from simulator.analysis.offered_load import Knob, at_load, knob_of, own_load, request_rate, serving
from simulator.analysis.result import Result
from simulator.analysis.run import answer, load
from simulator.analysis.slo import Goal, attainment, goal_of, judge, sample, tightest
from simulator.specs import Catalog, MemroofError
from simulator.strategy import Setup

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

SHARES = (0.1, 0.25, 0.5, 0.7, 0.85, 1.0, 1.15, 1.3)
"""Loads of a curve where none are given, relative to the largest that holds."""
LATENCY = (
    "time_to_first_token_p50",
    "time_to_first_token_p99",
    "time_per_output_token_p50",
    "time_per_output_token_p99",
)
REQUESTS = 1000


@dataclass(frozen=True, slots=True)
class LoadPoint:
    """What a serving scenario does at one load, in the steady part of its run [SI].

    Attributes
    ----------
    load : float
        Of the scenario's kind: arrivals a second, clients, or speed.
    rate : float
        Requests a second that are offered, or that clients get through.
    holds : bool
        Whether objective, limits and queue are held.
    attainment : float, or None
        Share of requests that hold the objective; None without one.
    goodput : float, or None
        Requests a second that hold it.
    latencies : mapping of str to float
        Medians and 99th percentiles [s].
    output_rate : float
        Tokens a second that all replicas generate.
    busy : float
        Share of the time in which accelerators compute.
    watts : float
        Of the accelerators.
    dollars_per_million_tokens : float, or None
        Of generated tokens; None where no price is known.
    joules_per_token : float
        Of the accelerators, a generated token.
    bottleneck : (str, float)
        What binds the most of the busy time, and its share of it.
    misses : str
        What is missed, if anything.
    """

    load: float
    rate: float
    holds: bool
    attainment: float | None
    goodput: float | None
    latencies: Mapping[str, float]
    output_rate: float
    busy: float
    watts: float
    dollars_per_million_tokens: float | None
    joules_per_token: float
    bottleneck: tuple[str, float]
    misses: str = ""

    def row(self) -> dict[str, Any]:
        """The point as flat columns."""
        found = {
            "load": self.load, "rate": self.rate, "holds": self.holds, "attainment": self.attainment, "goodput": self.goodput,
            **self.latencies, "output_throughput": self.output_rate, "busy": self.busy, "watts": self.watts,
            "dollars_per_million_tokens": self.dollars_per_million_tokens, "joules_per_token": self.joules_per_token,
            "bottleneck": self.bottleneck[0], "bottleneck_share": self.bottleneck[1], "misses": self.misses,
        }  # fmt: skip
        return found


@dataclass(frozen=True)
class LoadCurve:
    """Points by rising load."""

    name: str
    knob: Knob
    points: tuple[LoadPoint, ...]
    goal: Goal
    requests: int
    """Simulated at each load."""
    priced_by: str
    """Where dollars come from; empty where no price is known."""
    devices: int

    def to_frame(self) -> pd.DataFrame:
        """One row a load."""
        import pandas as pd

        return pd.DataFrame([point.row() for point in self.points])

    def plot(self) -> Figure:
        """Latency, goodput, dollars and joules over the load."""
        from simulator.analysis.serving_figures import curve_figure

        return curve_figure(self)


def load_curve(
    scenario: str | Path | Mapping[str, Any],
    loads: Sequence[float] | None = None,
    *,
    requests: int | None = None,
    paths: Iterable[Path] = (),
    overrides: Mapping[str, str] | None = None,
) -> LoadCurve:
    """Run a serving scenario at several loads.

    Parameters
    ----------
    scenario : str, Path or mapping
        Of kind serving, with arrivals that have a load: a rate, clients, or a trace.
    loads : sequence of float, optional
        Arrivals a second, numbers of clients, or speeds; :data:`SHARES` of the largest load that holds if absent.
    requests : int, optional
        Simulated at each load; enough for ten lifetimes of a request at the largest load if absent.
    paths, overrides
        Of the catalog.

    Raises
    ------
    MemroofError
        If the scenario has no load to vary, does not fit, or (without ``loads``) no load holds.
    """
    setup = load(scenario, catalog=Catalog(paths, overrides))
    knob = knob_of(serving(setup))
    if loads is None:
        largest = largest_load(setup, tolerance=0.03, draws=0, requests=requests)
        if not largest.value:
            raise MemroofError(
                f"no {knob} holds {largest.goal.text()}, so a curve has no scale: name the loads that it shall have"
            )
        loads, requests = [share * largest.value for share in SHARES], requests or largest.requests
    if not len(loads) or min(loads) <= 0.0:
        raise MemroofError("loads must be above 0")
    values = sorted(
        {float(max(1, round(value))) if knob == "concurrency" else float(value) for value in loads}
    )
    count = requests or _enough(setup, values[-1])
    results = [answer(at_load(setup, value, requests=count)) for value in values]
    if not results[0].fits:
        raise MemroofError(f"{results[0].name} does not fit: {'; '.join(results[0].shortfalls)}")
    goal = goal_of(serving(setup), results[0])
    points = tuple(load_point(value, result, goal) for value, result in zip(values, results, strict=True))
    return LoadCurve(
        results[0].name, knob, points, goal, count or len(results[0].outcome.tables["requests"]["end"]),
        rent(results[0])[1], results[0].outcome.devices,
    )  # fmt: skip


def load_point(value: float, result: Result, goal: Goal, devices: float | None = None) -> LoadPoint:
    """Return what a run shows at a load; ``devices`` are paid for where they are more than those that run."""
    seen = sample(result)
    verdict = judge(seen, goal)
    share = attainment(seen, goal.slo) if goal.slo else None
    rate = request_rate(result)
    served = min(rate, seen.output_rate / _mean_output(result)) if seen.output_rate else rate
    paid = (devices or result.outcome.devices) / result.outcome.devices
    watts = power(result, seen.busy) + (paid - 1.0) * power(result, 0.0)
    dollars, _ = rent(result)
    busy = {name: part for name, part in result.outcome.bottlenecks.items() if name != "waiting"}
    name = max(busy, key=lambda each: busy[each])
    latencies = {}
    for key in LATENCY:
        stem, _, statistic = key.rpartition("_")
        seconds = seen.latencies[stem][~np.isnan(seen.latencies[stem])]
        latencies[key] = float(np.percentile(seconds, float(statistic[1:]))) if len(seconds) else float("nan")
    tokens = seen.output_rate or float("nan")
    return LoadPoint(
        value, rate, verdict.holds, share, None if share is None else share * served, latencies, seen.output_rate, seen.busy,
        watts, dollars * paid / tokens * 1e6 if dollars else None, watts / tokens, (name, busy[name] / sum(busy.values())),
        "" if verdict.holds else tightest(seen, verdict, goal),
    )  # fmt: skip


def _mean_output(result: Result) -> float:
    return float(np.mean(result.outcome.tables["requests"]["output"]))


def _enough(setup: Setup, largest: float) -> int | None:
    """Return how many requests span enough lifetimes at the largest of some loads."""
    scenario = serving(setup)
    knob, own = knob_of(scenario), scenario.workload.requests
    if knob == "speed":
        return own
    seen = sample(answer(at_load(setup, min(largest, own_load(scenario)), requests=200)))
    under_way = largest * seen.life if knob == "rate" else largest
    least = max(own or 0, REQUESTS, BEYOND * 10)
    return min(20_000, max(least, int(1.2 * LIVES * under_way)))
