"""Whether a run of a serving scenario holds what is asked of it: objective, limits, and a queue that stays short."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.analysis.result import Result, read_value
from simulator.serving.metrics import LATENCIES, served_well
from simulator.specs import MemroofError, ServiceObjective, ServingScenario

GROWTH = 0.02
"""Share of a run's requests that may wait when the last one arrives: more is a queue that grows. It bounds by how much a
rate that is called sustained can exceed what is served."""
QUEUE = "queue"
"""What binds where requests arrive faster than they are served."""
OBJECTIVE = "slo"
"""What binds where too few requests hold the objective."""
_CLAMP = 5.0


@dataclass(frozen=True, slots=True)
class Goal:
    """What a run must hold.

    Attributes
    ----------
    slo : ServiceObjective, or None
        Bounds by request, and the share that must hold them.
    limits : mapping of str to float
        Largest value of metrics by key [SI].
    """

    slo: ServiceObjective | None
    limits: Mapping[str, float]

    @property
    def share(self) -> float:
        """Largest share of requests that a bound speaks of: what sets how many must be seen."""
        named = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
        shares = [named.get(key.rpartition("_")[2], 0.5) for key in self.limits]
        return max([*shares, self.slo.share if self.slo else 0.5])

    def text(self) -> str:
        """What must hold in words."""
        from simulator.analysis.result import format_value

        parts = []
        if self.slo:
            bounds = [
                f"{LATENCIES[key]} {format_value(bound, 'seconds')}" for key, bound in self.slo.bounds.items()
            ]
            parts.append(f"{self.slo.share * 100:g} % of requests with {', '.join(bounds)}")
        for key, bound in self.limits.items():
            shown = format_value(bound, "seconds") if _latency(key) else f"{bound:g}"
            parts.append(f"{key.replace('_', ' ')} at most {shown}")
        return "; ".join(parts) or "a queue that does not grow"


@dataclass(frozen=True, slots=True)
class Sample:
    """What is kept of a run to judge it.

    Attributes
    ----------
    latencies : mapping of str to array, shape (n,)
        Of the requests that arrive in the steady part of the run, by key [s].
    waiting : float
        Share of all requests that wait when the last one arrives (0 where answers bring the requests).
    count : int
        Requests of the simulated replica, the unsteady ones among them.
    span : float
        From the first arrival to the last [s].
    life : float
        90th percentile of the time that a request is served in, its waiting left out [s].
    others : mapping of str to float
        Metrics that are no latency [SI].
    errors : (float, float)
        Relative standard errors of iteration times and of times to the first token.
    output_rate : float
        Tokens a second that all replicas generate once batches are filled, up to the last arrival [1/s].
    busy : float
        Share of that time in which a replica computes.
    replicas : float
        Equal replicas, of which one is simulated.
    """

    latencies: Mapping[str, npt.NDArray[np.float64]]
    waiting: float
    count: int
    span: float
    life: float
    others: Mapping[str, float]
    errors: tuple[float, float]
    output_rate: float
    busy: float
    replicas: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a sample compares with a goal.

    Attributes
    ----------
    margin : float
        Logarithm of bound over value of what is closest to its bound, or furthest beyond; at least 0 if all is held.
    binding : str
        What that is: :data:`OBJECTIVE`, :data:`QUEUE` or the key of a limit.
    """

    margin: float
    binding: str

    @property
    def holds(self) -> bool:
        """Whether all is held."""
        return self.margin >= 0.0


def goal_of(scenario: ServingScenario, result: Result) -> Goal:
    """Read the goal of a scenario; ``result`` is any answer to it, which knows its metrics.

    Raises
    ------
    MemroofError
        For a limit that asks for at least something, which more load may help, or that no metric is called.
    """
    limits = {}
    for key, text in scenario.limit.items():
        if text.lstrip().startswith(">"):
            raise MemroofError(
                f"limit.{key}: '{text}' asks for at least something; a search for the largest load needs upper limits"
            )
        limits[key] = read_value(text.lstrip(" <="), result.metric(key, "limit").dimension, f"limit.{key}")
    return Goal(scenario.slo, limits)


def sample(result: Result) -> Sample:
    """Keep of a serving run what judging it needs.

    The steady part leaves out who arrives in the first and the last lifetime of a request (at most a quarter of the run
    each): there batches are still filling, or emptying.
    """
    table: Mapping[str, Any] = result.outcome.tables["requests"]
    arrival, end = np.asarray(table["arrival"]), np.asarray(table["end"])
    life = float(np.percentile(end - np.asarray(table["admitted"]), 90))
    first, last = float(arrival.min()), float(arrival.max())
    edge = min(life, 0.25 * (last - first))
    steady = (arrival >= first + edge) & (arrival <= last - edge)
    if not steady.any():
        steady = np.ones(len(arrival), bool)
    scenario = result.setup.scenario
    closed = isinstance(scenario, ServingScenario) and scenario.workload.concurrency is not None
    waiting = 0.0 if closed else float((np.asarray(table["admitted"]) > last).sum())
    metrics = result.outcome.metrics
    replicas = metrics["request_throughput"].value * float(end.max() - first) / len(arrival)
    errors = (metrics["end_to_end_mean"].error, metrics["time_to_first_token_mean"].error)
    return Sample(
        {key: np.asarray(table[key])[steady] for key in LATENCIES}, max(0.0, waiting - 2.0) / len(arrival), len(arrival),
        last - first, life, {key: metric.value for key, metric in metrics.items() if not _latency(key)}, errors,
        *_throughput(result, first + edge, last, replicas), replicas,
    )  # fmt: skip


def _throughput(result: Result, start: float, stop: float, replicas: float) -> tuple[float, float]:
    """Return generated tokens a second of all replicas, and the share of time in which one is busy, over a window."""
    requests, log = result.outcome.tables["requests"], result.outcome.tables["iterations"]
    if stop <= start:
        stop = float(np.max(requests["end"]))
    begun, seconds = np.asarray(log["start"]), np.asarray(log["seconds"])
    inside = np.maximum(np.minimum(begun + seconds, stop) - np.maximum(begun, start), 0.0)
    first = np.asarray(requests["first_token"])
    decoded = np.asarray(log["decoding"]) * np.asarray(log["steps"])
    made = float(decoded @ (inside / seconds)) + float(((first > start) & (first <= stop)).sum())
    # of a static batch the slots that are done count as well, and what is computed again would count twice
    useful = float(np.sum(requests["output"])) / (float(decoded.sum()) + len(first))
    # iterations of several replicas do not say how busy one is
    busy = result.outcome.busy_fraction if overlapping(log) else float(inside.sum()) / (stop - start)
    return replicas * made * useful / (stop - start), min(1.0, busy)


def overlapping(log: Mapping[str, Any]) -> bool:
    """Whether a log's iterations run beside each other: those of several replicas, or of pipeline stages."""
    begun = np.asarray(log["start"])
    end = begun + np.asarray(log["seconds"])
    return bool((begun[1:] < end[:-1] * (1.0 - 1e-9) - 1e-9).any())


def judge(seen: Sample, goal: Goal, slower: float = 1.0, later: float = 1.0) -> Verdict:
    """Compare a sample with a goal.

    Parameters
    ----------
    seen : Sample
        A run.
    goal : Goal
        What must hold.
    slower : float
        All latencies are taken to be this many times as long.
    later : float
        Times to the first token on top of that.
    """
    factor = {key: slower * (later if key == "time_to_first_token" else 1.0) for key in LATENCIES}
    margins = {QUEUE: -_log(seen.waiting / GROWTH)}
    if goal.slo:
        moved = {key: bound / factor[key] for key, bound in goal.slo.bounds.items()}
        worst = np.quantile(served_well(seen.latencies, moved), goal.slo.share, method="inverted_cdf")
        margins[OBJECTIVE] = -_log(float(worst))
    for key, bound in goal.limits.items():
        value = _value(seen, key, factor)
        margins[key] = -_log(value / bound) if bound else -_log(math.inf if value > 0.0 else 0.0)
    binding = min(margins, key=lambda name: margins[name])
    return Verdict(margins[binding], binding)


def tightest(seen: Sample, verdict: Verdict, goal: Goal) -> str:
    """Name what binds: the bound of the objective that fewest requests hold, or the limit, or the queue."""
    if verdict.binding != OBJECTIVE or goal.slo is None:
        return verdict.binding
    bounds = goal.slo.bounds
    return min(bounds, key=lambda key: float((served_well(seen.latencies, {key: bounds[key]}) <= 1.0).mean()))


def attainment(seen: Sample, slo: ServiceObjective) -> float:
    """Share of the steady requests that hold all bounds of an objective."""
    return float((served_well(seen.latencies, slo.bounds) <= 1.0).mean())


def _value(seen: Sample, key: str, factor: Mapping[str, float]) -> float:
    if not _latency(key):
        return seen.others[key]
    name, _, statistic = key.rpartition("_")
    values = seen.latencies[name][~np.isnan(seen.latencies[name])]
    if not len(values):
        return 0.0
    value = values.mean() if statistic == "mean" else np.percentile(values, float(statistic[1:]))
    return float(value) * factor[name]


def _latency(key: str) -> bool:
    return key.rpartition("_")[0] in LATENCIES


def _log(ratio: float) -> float:
    return max(-_CLAMP, min(_CLAMP, math.log(ratio))) if ratio > 0.0 else -_CLAMP
