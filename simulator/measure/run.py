"""Run a campaign: a backend times the cases, a budget decides how long each may take and what is left out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Protocol

from simulator.measure.campaign import GROUPS, Case, Target

SHORTEST_CASE, LONGEST_CASE = 0.05, 1.5
"""Seconds that one case may take, the preparation of its operands apart."""
FEWEST_REPEATS = 3
SLACK = 2.0
"""A case may be this much slower than the fastest rate seen so far before its estimate is wrong."""


Rates = dict[tuple[str, str], tuple[float, float]]
"""By operator and format: the highest FLOP/s and bytes/s seen."""


class UnmeasurableError(Exception):
    """A case that the library or the device cannot run; the text says why."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is measured on.

    Attributes
    ----------
    device : str
        Name in the catalog, or what the rows are recorded under.
    reported : str
        Name as the driver or the kernel says it.
    kind : str
        ``cuda`` or ``cpu``: the key of :data:`simulator.measure.campaign.GRIDS`.
    target : Target
        Number formats, free memory and GPUs.
    details : mapping of str to str
        Driver, library versions, clocks, power limit, threads: for the README.
    doubts : tuple of str
        What makes the times doubtful: a busy machine, another count of cores than the catalog's.
    """

    device: str
    reported: str
    kind: str
    target: Target
    details: Mapping[str, str] = field(default_factory=dict)
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Timing:
    """Times of the repeats of a case [s], the kernel that ran, and peaks of memory [B] where they were watched."""

    times: tuple[float, ...]
    kernel: str = ""
    peak_allocated: float | None = None
    peak_reserved: float | None = None


@dataclass(frozen=True, slots=True)
class Skipped:
    """A case that was not measured, and why."""

    case: Case
    reason: str


class Backend(Protocol):
    """What runs cases on a device."""

    def measure(self, case: Case, seconds: float) -> Timing:
        """Warm up and time a case for about so many seconds; raises :class:`UnmeasurableError`."""
        ...

    def measure_ranks(self, cases: Sequence[Case], seconds: float) -> Sequence[Timing | str]:
        """Time collectives of one count of ranks, one process a GPU; a text says why one was left out."""
        ...


@dataclass(frozen=True)
class Campaign:
    """What was measured, in the order of the plan, and what was left out."""

    measured: tuple[tuple[Case, Timing], ...]
    skipped: tuple[Skipped, ...]
    seconds: float


def run_campaign(
    cases: Sequence[Case],
    backend: Backend,
    free_memory: float,
    seconds: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    progress: Callable[[str], None] = lambda text: None,
) -> Campaign:
    """Measure the cases of a plan within a time.

    Parameters
    ----------
    cases : sequence of Case
        The plan, group after group.
    backend : Backend
        What runs them.
    free_memory : float
        Cases that need more than nine tenths of it are left out [B].
    seconds : float
        For all; a group gets what is left by its share among the groups that are still to come.
    clock : function
        Returns seconds.
    progress : function of str
        Told of each group when it begins.

    Returns
    -------
    Campaign
        Each case of the plan is measured or skipped with its reason.
    """
    start = clock()
    measured: list[tuple[Case, Timing]] = []
    skipped: list[Skipped] = []
    rates: Rates = {}
    groups = [(name, list(members)) for name, members in groupby(cases, key=lambda case: case.group)]
    for index, (name, members) in enumerate(groups):
        left = start + seconds - clock()
        share = GROUPS[name] / sum(GROUPS[later] for later, _ in groups[index:])
        progress(f"{name}: {len(members)} cases, {max(0.0, left * share):.0f} s")
        fitting = [case for case in members if case.footprint <= 0.9 * free_memory]
        skipped += [Skipped(case, _too_large(free_memory)) for case in members if case not in fitting]
        deadline = clock() + left * share
        outcomes = (
            _ranks(fitting, backend, deadline, clock)
            if name == "collective"
            else _one_by_one(fitting, backend, deadline, clock, rates)
        )
        for case, outcome in outcomes:
            if isinstance(outcome, Timing):
                measured.append((case, outcome))
            else:
                skipped.append(Skipped(case, outcome))
    return Campaign(tuple(measured), tuple(skipped), clock() - start)


def _too_large(free_memory: float) -> str:
    return f"does not fit in the {free_memory / 2**30:.3g} GiB that are free"


def _one_by_one(
    cases: Sequence[Case], backend: Backend, deadline: float, clock: Callable[[], float], rates: Rates
) -> Iterator[tuple[Case, Timing | str]]:
    for index, case in enumerate(cases):
        left = deadline - clock()
        if left <= 0.0:
            yield case, "the time of its group was spent"
            continue
        # what earlier cases did not use is spread over those to come
        limit = min(max(1.5 * left / (len(cases) - index), SHORTEST_CASE), LONGEST_CASE, left)
        key = (case.operator, case.format)
        if FEWEST_REPEATS * _estimate(case, rates) > SLACK * max(limit, left / 10.0):
            yield case, "would take too much of the time of its group"
            continue
        try:
            timing = backend.measure(case, limit)
        except UnmeasurableError as error:
            yield case, str(error)
            continue
        flops, traffic = rates.get(key, (0.0, 0.0))
        best = min(timing.times)
        rates[key] = (max(flops, case.flops / best), max(traffic, case.bytes / best))
        yield case, timing


def _estimate(case: Case, rates: Rates) -> float:
    """Return the least time of a case at the best rates that its operator (or a product) has shown; 0 if unknown [s]."""
    known = rates.get((case.operator, case.format))
    if known is None:
        known = (rates.get(("matmul", case.format), (0.0, 0.0))[0], 0.0)
    amounts = (case.flops, case.bytes)
    return max(amount / rate if rate else 0.0 for amount, rate in zip(amounts, known, strict=True))


def _ranks(
    cases: Sequence[Case], backend: Backend, deadline: float, clock: Callable[[], float]
) -> Iterator[tuple[Case, Timing | str]]:
    counts = list(dict.fromkeys(case.sizes["ranks"] for case in cases))
    for index, ranks in enumerate(counts):
        members = [case for case in cases if case.sizes["ranks"] == ranks]
        seconds = (deadline - clock()) / (len(counts) - index)
        if seconds <= 0.0:
            yield from ((case, "the time of its group was spent") for case in members)
            continue
        try:
            outcomes = backend.measure_ranks(members, seconds)
        except UnmeasurableError as error:
            outcomes = [str(error)] * len(members)
        yield from zip(members, outcomes, strict=True)
