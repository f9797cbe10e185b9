"""Tokens a second for a user against tokens a second of an accelerator: what can be had together."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from simulator.analysis.money import rent
from simulator.analysis.offered_load import serving
from simulator.analysis.run import answer, load
from simulator.analysis.slo import attainment, sample
from simulator.serving.plan import make_plan
from simulator.specs import Catalog, MemroofError
from simulator.strategy import Setup

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

TENSOR = "strategy.tensor_parallel"
LIVES = 6
"""Requests of a client in a run."""
LEAST = 24
"""Requests of a replica in a run."""
FULL = 0.7
"""Share of its clients that a replica must run together; more clients than that allows only wait."""


@dataclass(frozen=True, slots=True)
class ParetoPoint:
    """A strategy at a number of clients.

    Attributes
    ----------
    settings : mapping of str to str
        Varied keys and their values.
    concurrency : int
        Clients of a replica, each of which sends its next request when the one before is answered.
    replicas : int
        That the hardware holds.
    tokens_per_user : float
        One over the median time per output token [1/s].
    tokens_per_gpu : float
        Tokens a second that an accelerator generates [1/s].
    time_to_first_token : float
        Median [s].
    attainment : float, or None
        Share of requests that hold the scenario's objective.
    dollars_per_million_tokens : float, or None
        Of generated tokens.
    bottleneck : (str, float)
        What binds the most of the busy time, and its share.
    on_front : bool
        Whether no other point gives more of the one without giving less of the other.
    """

    settings: Mapping[str, str]
    concurrency: int
    replicas: int
    tokens_per_user: float
    tokens_per_gpu: float
    time_to_first_token: float
    attainment: float | None
    dollars_per_million_tokens: float | None
    bottleneck: tuple[str, float]
    on_front: bool = False

    def row(self) -> dict[str, Any]:
        """The point as flat columns."""
        return {
            **self.settings, "concurrency": self.concurrency, "replicas": self.replicas,
            "tokens_per_user": self.tokens_per_user, "tokens_per_gpu": self.tokens_per_gpu,
            "time_to_first_token_p50": self.time_to_first_token, "attainment": self.attainment,
            "dollars_per_million_tokens": self.dollars_per_million_tokens, "bottleneck": self.bottleneck[0],
            "bottleneck_share": self.bottleneck[1], "on_front": self.on_front,
        }  # fmt: skip


@dataclass(frozen=True)
class Pareto:
    """Every point that ran, and the combinations that cannot."""

    name: str
    keys: tuple[str, ...]
    points: tuple[ParetoPoint, ...]
    """By falling tokens a second for a user."""
    refused: tuple[tuple[Mapping[str, str], str], ...]
    """Settings and why they cannot run, or do not fit."""

    @property
    def front(self) -> tuple[ParetoPoint, ...]:
        """The points that no other beats in both."""
        return tuple(point for point in self.points if point.on_front)

    def to_frame(self) -> pd.DataFrame:
        """One row a point."""
        import pandas as pd

        return pd.DataFrame([point.row() for point in self.points])

    def plot(self) -> Figure:
        """The points and the front."""
        from simulator.analysis.serving_figures import pareto_figure

        return pareto_figure(self)


def pareto(
    scenario: str | Path,
    vary: Mapping[str, Sequence[str]] | None = None,
    *,
    concurrency: Sequence[int] | None = None,
    jobs: int = 1,
    paths: Iterable[Path] = (),
    overrides: Mapping[str, str] | None = None,
) -> Pareto:
    """Run a serving scenario's requests in closed loops over strategies and numbers of clients.

    Parameters
    ----------
    scenario : str or Path
        Of kind serving; its lengths are served, its own arrivals play no part.
    vary : mapping of str to sequence of str, optional
        Values of keys as for ``--set``; the tensor-parallel degrees that a node allows if absent. The hardware stays:
        fewer accelerators a replica are more replicas.
    concurrency : sequence of int, optional
        Clients of a replica; powers of two up to ``max_batch`` if absent. What cannot run together is left out.
    jobs : int
        Processes; more than one uses joblib, and so its Dask or Ray backend where the caller chose one.
    paths, overrides
        Of the catalog.

    Raises
    ------
    MemroofError
        If the scenario has no lengths to draw from, or nothing can run (with the first reason).
    """
    given = tuple(paths), dict(overrides or {})
    setup = load(scenario, catalog=Catalog(*given))
    _check(setup)
    if concurrency is not None and (not concurrency or min(concurrency) < 1):
        raise MemroofError("concurrency must be at least 1")
    varied = dict(vary or {TENSOR: _degrees(setup)})
    keys = tuple(varied)
    settings = [dict(zip(keys, values, strict=True)) for values in itertools.product(*varied.values())]
    work = [(str(scenario), *given, each, tuple(concurrency or ())) for each in settings]
    if jobs == 1:
        found = [_points(*each) for each in work]
    else:
        from joblib import Parallel, delayed

        found = list(Parallel(n_jobs=jobs)(delayed(_points)(*each) for each in work))
    points = [point for some, _ in found for point in some]
    refused = tuple((each, problem) for each, (_, problem) in zip(settings, found, strict=True) if problem)
    if not points:
        raise MemroofError(refused[0][1])
    user = np.array([point.tokens_per_user for point in points])
    best = pareto_front(user, np.array([point.tokens_per_gpu for point in points]))
    marked = [_marked(point, bool(on)) for point, on in zip(points, best, strict=True)]
    marked.sort(key=lambda point: (-point.tokens_per_user, -point.tokens_per_gpu))
    return Pareto(setup.scenario.name, keys, tuple(marked), refused)


def pareto_front(first: npt.NDArray[np.float64], second: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Mark the points that no other is at least as good as in both and better in one; more is better.

    Parameters
    ----------
    first, second : array, shape (n,)
        What a point gives.
    """
    order = np.lexsort((-second, -first))
    ranked = second[order]
    before = np.concatenate(([-np.inf], np.maximum.accumulate(ranked)[:-1]))
    twin = np.zeros(len(order), bool)
    twin[1:] = (np.diff(first[order]) == 0.0) & (np.diff(ranked) == 0.0)
    on = ranked > before
    # equal points stand or fall together
    for place in np.flatnonzero(twin):
        on[place] = on[place - 1]
    found = np.zeros(len(order), bool)
    found[order] = on
    return found


def _check(setup: Setup) -> None:
    workload = serving(setup).workload
    if serving(setup).fleet:
        raise MemroofError("fleet: a Pareto front compares equal replicas; leave 'fleet' out")
    if not workload.kinds:
        raise MemroofError(
            f"workload.arrival: clients of a closed loop need the lengths 'prompt' and 'output', which a {workload.arrival} "
            "does not give"
        )


def _degrees(setup: Setup) -> list[str]:
    return [
        str(2**k) for k in range(setup.hardware.ranks_per_node.bit_length()) if 2**k <= setup.hardware.size
    ]


def _points(
    scenario: str, paths: tuple[Path, ...], overrides: dict[str, str], settings: dict[str, str],
    clients: tuple[int, ...],
) -> tuple[list[ParetoPoint], str]:  # fmt: skip
    """Return the points of one strategy, and why it has none."""
    found: list[ParetoPoint] = []
    try:
        setup = load(scenario, catalog=Catalog(paths, {**overrides, **settings}))
        most = serving(setup).strategy.max_batch
        for count in clients or [2**k for k in range(most.bit_length())]:
            point, together = _point(setup, settings, count)
            if point is None or (found and together < FULL * count):
                break
            found.append(point)
    except MemroofError as error:
        return found, "; ".join(str(error).splitlines())
    return found, "" if found else "does not fit"


def _point(setup: Setup, settings: Mapping[str, str], clients: int) -> tuple[ParetoPoint | None, float]:
    """Run so many clients of each replica; also return the most requests that ran together."""
    replicas = make_plan(_closed(setup, clients, setup.hardware.size)).replicas
    result = answer(_closed(setup, clients, replicas))
    if not result.fits:
        return None, 0.0
    seen = sample(result)
    scenario = serving(setup)
    busy = {name: part for name, part in result.outcome.bottlenecks.items() if name != "waiting"}
    name = max(busy, key=lambda each: busy[each])
    dollars, _ = rent(result)
    gaps = seen.latencies["time_per_output_token"]
    gaps = gaps[~np.isnan(gaps)]
    if not len(gaps):
        raise MemroofError("answers of one token have no tokens per second of a user")
    point = ParetoPoint(
        dict(settings), clients, replicas, 1.0 / float(np.median(gaps)), seen.output_rate / result.outcome.devices,
        float(np.median(seen.latencies["time_to_first_token"])), attainment(seen, scenario.slo) if scenario.slo else None,
        dollars / seen.output_rate * 1e6 if dollars else None, (name, busy[name] / sum(busy.values())),
    )  # fmt: skip
    return point, result.values["largest_batch"].value


def _closed(setup: Setup, clients: int, replicas: int) -> Setup:
    scenario = serving(setup)
    changes = {
        "arrival": "closed", "rate": None, "coefficient_of_variation": None, "concurrency": clients * replicas,
        "requests": replicas * max(LEAST, LIVES * clients),
    }  # fmt: skip
    changed = scenario.model_copy(
        update={"workload": scenario.workload.model_copy(update=changes), "limit": {}}
    )
    return replace(setup, scenario=changed)


def _marked(point: ParetoPoint, on_front: bool) -> ParetoPoint:
    return replace(point, on_front=on_front)
