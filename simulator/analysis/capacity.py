"""The largest load that a serving scenario holds, and how sure that is.

Random numbers are common to all loads: the same requests come, only closer together (Law 2015, Simulation Modeling and
Analysis, section 11.2), so that more load is hardly ever better. The search goes over a geometric grid of loads with
short runs, then over longer ones by bisection.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist, fmean, stdev
from typing import Any

from simulator.analysis.offered_load import Knob, at_load, knob_of, own_load, request_rate, serving
from simulator.analysis.result import LEVEL, Result
from simulator.analysis.run import answer, load
from simulator.analysis.slo import Goal, Sample, Verdict, goal_of, judge, sample, tightest
from simulator.specs import Catalog, MemroofError
from simulator.strategy import Setup

STEPS = 12
"""Loads of the grid in a doubling."""
OCTAVES = 16
"""Doublings from the scenario's own load in which the largest is looked for."""
LIVES = 10.0
"""Lifetimes of a request that a run must span at least."""
LEAST = 200
"""Requests of a replica in the shortest run."""
MOST = 20_000
"""Requests of a replica to which a run is lengthened."""
BEYOND = 20
"""Requests that a run should have beyond the percentile that it is judged by."""
DRAWS = 4
"""Further seeds, for the error of sampling."""
LONE = 0.02
"""Requests under way at which each is as good as alone."""
_GUESSES = 6
"""Loads that are guessed from margins, before the bracket is halved."""


@dataclass(frozen=True)
class LargestLoad:
    """The largest load that holds a scenario's objective and limits.

    Attributes
    ----------
    knob : str
        What was varied: ``rate`` [1/s] of all replicas, ``concurrency`` or ``speed``.
    value : float
        The largest value that holds; 0 where even requests that come alone miss.
    low, high : float
        Its 80 % interval by the error of the cost model: all iterations slower or faster, and times to the first token
        on top, combined as independent.
    sampling : float
        Relative standard error by what arrivals and lengths happened to be drawn; 0 for a recorded trace.
    misses : float
        The smallest value above it that was tried and misses.
    binding : str
        What is missed then: a latency of the objective, a limit, or ``queue``.
    requests : int
        How many were simulated.
    runs : int
        Runs of the event engine.
    goal : Goal
        What is held.
    result : Result
        The answer at that load.
    seen : Sample
        Its steady part.
    """

    knob: Knob
    value: float
    low: float
    high: float
    sampling: float
    misses: float
    binding: str
    requests: int
    runs: int
    goal: Goal
    result: Result
    seen: Sample

    @property
    def rate(self) -> float:
        """Requests per second that are offered, or that a closed loop gets through, of all replicas."""
        return request_rate(self.result) if self.value else 0.0

    @property
    def sampling_interval(self) -> tuple[float, float]:
        """80 % interval by sampling alone."""
        factor = math.exp(_Z * self.sampling)
        return self.value / factor, self.value * factor


_Z = NormalDist().inv_cdf(0.5 * (1.0 + LEVEL))


def largest_rate(
    scenario: str | Path | Mapping[str, Any],
    *,
    requests: int | None = None,
    tolerance: float = 0.01,
    draws: int = DRAWS,
    paths: Iterable[Path] = (),
    overrides: Mapping[str, str] | None = None,
) -> LargestLoad:
    """Find the largest request rate that holds a serving scenario's objective and limits.

    Where arrivals are a closed loop it is the largest number of clients, of a recorded trace the largest speed.

    Parameters
    ----------
    scenario : str, Path or mapping
        With ``slo``, ``limit`` or neither: then the queue must not grow.
    requests : int, optional
        Length of the runs. If absent, as many as the scenario says, and enough for ten lifetimes of a request and twenty
        requests beyond the percentile that is judged.
    tolerance : float
        Relative: a load larger by this was tried and misses.
    draws : int
        Further seeds that the error of sampling is found from; none if 0.
    paths, overrides
        Of the catalog.

    Raises
    ------
    MemroofError
        If the scenario is no serving, has no load to vary (offline, a list), or no load misses.
    """
    return largest_load(
        load(scenario, catalog=Catalog(paths, overrides)), requests=requests, tolerance=tolerance, draws=draws
    )


def largest_load(
    setup: Setup, *, requests: int | None = None, tolerance: float = 0.01, draws: int = DRAWS
) -> LargestLoad:
    """Do what :func:`largest_rate` does for a setup that is loaded."""
    if tolerance <= 0.0:
        raise MemroofError(f"tolerance must be above 0, found {tolerance:g}")
    return _Search(setup, requests, tolerance, draws).run()


class _Search:
    """Runs at one load after the other, kept by load, length and seed."""

    def __init__(self, setup: Setup, requests: int | None, tolerance: float, draws: int) -> None:
        self.setup, self.scenario, self.tolerance = setup, serving(setup), tolerance
        self.knob, self.start = knob_of(self.scenario), own_load(self.scenario)
        self.fixed = requests or (self.scenario.workload.requests if self.knob == "speed" else None)
        self.draws = 0 if self.knob == "speed" else draws
        self.seed = self.scenario.workload.seed
        self.seen: dict[tuple[float, int | None, int], tuple[Sample, Result]] = {}
        self.life = 0.0
        self.replicas = 1
        self.first = answer(at_load(setup, self.start, requests=self._length(LEAST)))
        self.goal = goal_of(self.scenario, self.first)
        if self.first.fits:
            found = sample(self.first)
            self.replicas, self.life = max(1, round(found.replicas)), found.life

    def run(self) -> LargestLoad:
        if not self.first.fits:
            return self._nothing(self.first, "memory")
        short = self.replicas * max(LEAST, math.ceil(BEYOND / 5 / (1.0 - min(self.goal.share, 0.999))))
        if self.fixed:
            short = min(self.fixed, max(self.fixed // 16, short))
        place = self._crossing(lambda k: self._margin(k, short), 0, first=STEPS // 3)
        if place == -math.inf:
            return self._nothing(self._at(self._load(self._lowest), short)[1], "")
        if place == math.inf:
            raise self._endless(short)
        long = self._long(short, place)
        holds, misses = self._refine(place, short, long)
        if not holds:
            return self._nothing(self._at(misses, long)[1], "")
        (seen, result), (missed, _) = self._at(holds, long), self._at(misses, long)
        low, high = self._model_interval(place, short)
        return LargestLoad(
            self.knob, holds, holds * low, holds * high, self._sampling(place, short, seen.count), misses,
             tightest(missed, self._judge(missed), self.goal), serving(result.setup).workload.requests or seen.count,
            len(self.seen), self.goal, result, seen,
        )  # fmt: skip

    def _nothing(self, result: Result, binding: str) -> LargestLoad:
        """Return a load of 0: what is asked for cannot be had."""
        empty = Sample({}, 0.0, 0, 0.0, 0.0, {}, (0.0, 0.0), 0.0, 0.0, 1.0)
        seen = sample(result) if result.fits else empty
        name = binding or tightest(seen, self._judge(seen), self.goal)
        value = 0.0
        return LargestLoad(
            self.knob,
            value,
            value,
            value,
            0.0,
            self.start,
            name,
            seen.count,
            len(self.seen) + 1,
            self.goal,
            result,
            seen,
        )

    def _endless(self, requests: int) -> MemroofError:
        largest = self._load(OCTAVES * STEPS)
        return MemroofError(
            f"no {self.knob} up to {largest:g} misses in runs of {self.fixed or requests} requests: {self.goal.text()}"
        )

    # --- runs ---

    def _at(self, value: float, requests: int, seed: int = 0) -> tuple[Sample, Result]:
        """Run a load, with more requests where they would not span enough lifetimes."""
        key = (value, requests, seed)
        if key not in self.seen:
            count = self._length(max(requests, self._needed(value)))
            while True:
                result = answer(at_load(self.setup, value, requests=count, seed=self.seed + seed))
                found = sample(result)
                missing = LIVES * found.life / max(found.span, 1e-9)
                longer = self._length(math.ceil(1.2 * missing * (count or 0)))
                if missing <= 1.0 or count is None or longer is None or longer <= count:
                    break
                count = longer
            self.life = found.life
            self.seen[key] = found, result
        return self.seen[key]

    def _needed(self, value: float) -> int:
        under_way = value * self.life if self.knob == "rate" else value
        return math.ceil(1.2 * LIVES * under_way)

    def _length(self, requests: int) -> int | None:
        """Return how many requests a run may have that should have so many; None for all of a trace."""
        return self.fixed if self.knob == "speed" else min(self.fixed or MOST * self.replicas, requests)

    def _long(self, short: int, place: float) -> int:
        if self.fixed or self.knob == "speed":
            return self.fixed or short
        own = self.scenario.workload.requests or 0
        beyond = self.replicas * math.ceil(BEYOND / (1.0 - min(self.goal.share, 0.999)))
        needed = max(beyond, 2 * self._needed(self._load(place)))
        return max(short, min(needed, MOST * self.replicas), own)

    def _judge(self, seen: Sample, slower: float = 1.0, later: float = 1.0) -> Verdict:
        return judge(seen, self.goal, slower, later)

    # --- the grid of loads ---

    def _load(self, place: float) -> float:
        value = self.start * 2.0 ** (place / STEPS)
        return float(max(1, round(value))) if self.knob == "concurrency" else value

    @property
    def _lowest(self) -> int:
        """Place at which requests come alone, as far as is known yet."""
        if self.knob == "concurrency":
            return math.floor(-STEPS * math.log2(self.start))
        alone = LONE / max(self.life, 1e-9) / self.start if self.knob == "rate" else 2.0**-OCTAVES
        return max(-OCTAVES * STEPS, min(0, math.floor(STEPS * math.log2(alone))))

    def _margin(
        self, place: int, requests: int, seed: int = 0, slower: float = 1.0, later: float = 1.0
    ) -> float:
        return self._judge(self._at(self._load(place), requests, seed)[0], slower, later).margin

    def _crossing(self, margin: Callable[[int], float], start: int, first: int = 1) -> float:
        """Return where the margin is used up, between two places of the grid; infinite if it never, or always, is."""
        low = high = None
        place, step = start, first
        while low is None or high is None:
            if margin(place) >= 0.0:
                low = place
                if place >= OCTAVES * STEPS:
                    return math.inf
                if high is None:
                    place = min(place + step, OCTAVES * STEPS)
            else:
                high = place
                if place <= self._lowest:
                    return -math.inf
                if low is None:
                    place = max(place - step, self._lowest)
            step *= 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if margin(middle) >= 0.0 else (low, middle)
        inside, outside = margin(low), margin(high)
        return low + inside / (inside - outside)

    # --- longer runs ---

    def _refine(self, place: float, short: int, requests: int) -> tuple[float, float]:
        """Return a load that holds and a larger one that misses, within the tolerance; (0, load) if none holds.

        The next load is where the margin should be used up, a little beyond, so that the two soon lie close together.
        """
        slope = self._slope(place, short)
        little = 0.45 * math.log1p(self.tolerance)
        low, high = (0.0, math.inf), (math.inf, -math.inf)
        value, step, tries = self._load(place), little, 0
        if requests == short:  # the grid has bracketed it already
            low, high = (
                (self._load(k), self._margin(k, short)) for k in (math.floor(place), math.floor(place) + 1)
            )
            value = self._between(low, high, little)
        while not self._close(low[0], high[0]):
            margin = self._judge(self._at(value, requests)[0]).margin
            if margin >= 0.0:
                low = (value, margin)
                if value > self._load(OCTAVES * STEPS):
                    raise self._endless(requests)
            else:
                high = (value, margin)
                if value <= self._load(self._lowest):
                    return 0.0, high[0]
            tries += 1
            if low[0] and math.isfinite(high[0]):
                value = self._between(low, high, little if tries <= _GUESSES else math.inf)
            else:
                step = min(0.5, max(2.0 * step, little + abs(margin / slope)))
                value = self._whole(value * math.exp(math.copysign(step, margin)), margin >= 0.0)
        return low[0], high[0]

    def _close(self, low: float, high: float) -> bool:
        whole = self.knob == "concurrency" and high - low <= 1.0
        return whole or (low > 0.0 and high / low <= 1.0 + self.tolerance)

    def _between(self, low: tuple[float, float], high: tuple[float, float], little: float) -> float:
        """Return a load inside a bracket: beside the crossing of the line through its ends, or (for an infinite step) halfway."""
        width = math.log(high[0] / low[0])
        crossing = low[1] / (low[1] - high[1]) * width
        moved = crossing + (little if width - crossing > crossing else -little)
        inside = 0.5 * width if math.isinf(little) else min(0.9 * width, max(0.1 * width, moved))
        value = low[0] * math.exp(inside)
        return (
            value
            if self.knob != "concurrency"
            else min(high[0] - 1.0, max(low[0] + 1.0, float(round(value))))
        )

    def _whole(self, value: float, up: bool) -> float:
        if self.knob != "concurrency":
            return value
        return float(max(1, math.ceil(value) if up else math.floor(value)))

    # --- how sure ---

    def _model_interval(self, place: float, requests: int) -> tuple[float, float]:
        """Return factors to the ends of the interval that the cost model's error leaves.

        A run whose iterations all take c times as long is the same run at 1/c of the rate on a slower clock: it holds
        its bounds where the plain one holds bounds / c.
        """
        run, first = self._at(self._load(round(place)), requests)[0].errors
        extra = math.sqrt(max(0.0, first**2 - run**2))
        ends = []
        for side in (1.0, -1.0):
            slower = math.exp(side * _Z * run)
            shift = 0.0 if self.knob == "concurrency" else math.log(slower)
            by_iteration = self._log_ratio(place, requests, slower, 1.0) - shift
            by_first = self._log_ratio(place, requests, 1.0, math.exp(side * _Z * extra)) if extra else 0.0
            ends.append(
                math.exp(-side * math.hypot(min(0.0, side * by_iteration), min(0.0, side * by_first)))
            )
        return ends[0], ends[1]

    def _log_ratio(self, place: float, requests: int, slower: float, later: float) -> float:
        moved = self._crossing(lambda k: self._margin(k, requests, slower=slower, later=later), round(place))
        return (moved - place) / STEPS * math.log(2.0)

    def _sampling(self, place: float, requests: int, counted: int) -> float:
        """Return the relative standard error of a load found with ``counted`` requests, from further draws.

        Each draw's own largest load follows from its margin at the load of the first by the slope of the first's margin.
        """
        if self.draws < 1:
            return 0.0
        centre = round(place)
        slope = self._slope(place, requests) / STEPS * math.log(2.0)
        found, counts = [place], []
        for seed in range(1, self.draws + 1):
            moved = -self._margin(centre, requests, seed) / slope
            found.append(centre + max(-float(STEPS), min(float(STEPS), moved)))
            counts.append(self._at(self._load(centre), requests, seed)[0].count)
        return stdev(found) / STEPS * math.log(2.0) * math.sqrt(min(1.0, fmean(counts) / counted))

    def _slope(self, place: float, requests: int) -> float:
        """Return the change of the margin with the logarithm of the load where it is used up."""
        below = math.floor(place)
        return (self._margin(below + 1, requests) - self._margin(below, requests)) * STEPS / math.log(2.0)
