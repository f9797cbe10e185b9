"""Whole distributions of a serving answer: percentiles of latencies, the requests one by one, what was in the queue when."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from simulator.analysis.result import Result
from simulator.analysis.slo import overlapping
from simulator.serving.metrics import LATENCIES
from simulator.specs import MemroofError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PERCENTILES = (1.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9)
BETWEEN = "inter_token"
"""Gaps between tokens: each iteration's time, once for each sequence that it gives a token."""
LABELS: Mapping[str, str] = {**LATENCIES, BETWEEN: "gap between tokens"}


@dataclass(frozen=True, slots=True)
class Distribution:
    """A latency over all requests [s]."""

    key: str
    label: str
    count: int
    mean: float
    percentiles: Mapping[float, float]


@dataclass(frozen=True, slots=True)
class Series:
    """What a replica (all of them, where all are simulated) held over time; each entry holds from its moment to the next.

    Attributes
    ----------
    time : array, shape (n,)
        Starts of iterations [s].
    waiting, running : array, shape (n,)
        Requests in the queue as an iteration is put together, and sequences that prefill or decode in it.
    kv_share : array, shape (n,)
        Share of the KV cache in use; empty where several replicas are simulated.
    end : float
        Of the last iteration [s].
    """

    time: npt.NDArray[np.float64]
    waiting: npt.NDArray[np.float64]
    running: npt.NDArray[np.float64]
    kv_share: npt.NDArray[np.float64]
    end: float


def distributions(result: Result) -> tuple[Distribution, ...]:
    """Return the distribution of each latency.

    Raises
    ------
    MemroofError
        If no requests were served.
    """
    requests, log = tables_of(result)
    found = []
    for key in LATENCIES:
        seconds = np.asarray(requests[key])[~np.isnan(requests[key])]
        if len(seconds):
            shown = np.percentile(seconds, PERCENTILES).tolist()
            percentiles = dict(zip(PERCENTILES, shown, strict=True))
            found.append(Distribution(key, LABELS[key], len(seconds), float(seconds.mean()), percentiles))
    steps, decoding = np.asarray(log["steps"]), np.asarray(log["decoding"])
    gaps, weights = np.asarray(log["seconds"]) / steps, steps * decoding
    if weights.sum():
        order = np.argsort(gaps, kind="stable")
        reached = np.cumsum(weights[order]) / weights.sum()
        places = np.minimum(np.searchsorted(reached, np.array(PERCENTILES) / 100.0), len(order) - 1)
        percentiles = dict(zip(PERCENTILES, gaps[order][places].tolist(), strict=True))
        mean = float(gaps @ weights / weights.sum())
        found.append(Distribution(BETWEEN, LABELS[BETWEEN], int(weights.sum()), mean, percentiles))
    return tuple(found)


def requests_csv(result: Result) -> str:
    """Return one row a request as CSV: lengths, moments and latencies in seconds."""
    requests, _ = tables_of(result)
    columns = {name: np.asarray(column).tolist() for name, column in requests.items() if len(column)}
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("request", *columns))
    for number, row in enumerate(zip(*columns.values(), strict=True)):
        writer.writerow((number, *("" if value != value else value for value in row)))
    return buffer.getvalue()


def series(result: Result) -> Series:
    """Return the queue, the batch and the KV cache over time; of several replicas together, without their caches."""
    requests, log = tables_of(result)
    start = np.asarray(log["start"], float)
    end = float((start + np.asarray(log["seconds"])).max())
    arrived = np.searchsorted(np.sort(requests["arrival"]), start, side="right")
    admitted = np.searchsorted(np.sort(requests["admitted"]), start, side="left")
    # the log has who is left after admission; who is let in just then waited until then
    waiting = arrived - admitted
    if overlapping(log):
        entered = np.searchsorted(np.sort(requests["admitted"]), start, side="right")
        left = np.searchsorted(np.sort(requests["end"]), start, side="right")
        return Series(start, waiting.astype(float), (entered - left).astype(float), np.zeros(0), end)
    held = np.asarray(log["kv_bytes"], float)
    capacity = (
        held.max() / result.values["kv_peak_occupancy"].value if held.max() else result.memory[0].capacity
    )
    running = np.asarray(log["decoding"]) + np.asarray(log["prefilling"])
    queued = np.maximum(waiting, np.asarray(log["waiting"]))
    return Series(start, queued.astype(float), running.astype(float), held / capacity, end)


def plot_series(result: Result) -> Figure:
    """Draw the queue, the batch and the KV cache over time."""
    from simulator.analysis.serving_figures import series_figure

    return series_figure(series(result), title=f"{result.name}: what waits and what runs")


def plot_latencies(result: Result) -> Figure:
    """Draw the share of requests that are served within a time."""
    from simulator.analysis.serving_figures import latency_figure

    requests, _ = tables_of(result)
    shown = {LATENCIES[key]: np.asarray(requests[key]) for key in LATENCIES}
    return latency_figure(shown, title=f"{result.name}: latency by request")


def tables_of(
    result: Result,
) -> tuple[Mapping[str, npt.NDArray[np.float64]], Mapping[str, npt.NDArray[np.float64]]]:
    """Return a serving answer's columns by request and by iteration; MemroofError where nothing was served."""
    tables = result.outcome.tables
    if "requests" not in tables or "iterations" not in tables:
        what = "does not fit, so no request was served" if not result.fits else "serves no requests"
        raise MemroofError(f"{result.name} {what}")
    return tables["requests"], tables["iterations"]
