"""Where tensors should lie: a linear program over shares on tiers, and the simple rules that suit single questions.

The program is that of FlexGen (Sheng et al. 2023, arXiv:2303.06865, section 4.3), for any items, memories and lanes: shares of
each item on its possible places, such that no memory overflows and the time is least. A phase takes as long as its busiest lane
(links and processors work side by side), which enters the program as one variable that no lane may exceed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.specs.errors import MemroofError

TIE_BREAK = 1e-6
"""Weight of all lanes' seconds beside the busiest's: of placements that are equally fast, the one that moves least is chosen."""
EPSILON = 1e-9
"""Share, and dual price relative to the whole, below which a figure is rounding."""
Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Place:
    """One place that an item can be put, all of it.

    Attributes
    ----------
    tier : str
        Name of the place.
    holds : mapping of str to float
        Bytes that it takes of each memory: its own, and buffers elsewhere.
    uses : mapping of str to mapping of str to float
        By phase and lane, what one run of the phase puts on the lane, in the units of its rate (bytes for a link).
    """

    tier: str
    holds: Mapping[str, float]
    uses: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Item:
    """What is placed: its name and its possible places, over which shares of it may be spread."""

    name: str
    places: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class Phase:
    """What is repeated: how often, and what each run puts on lanes wherever things lie."""

    name: str
    runs: float
    uses: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Problem:
    """Items, phases, the capacity of memories less what they hold anyway [B], and the rate of lanes [units/s]."""

    items: tuple[Item, ...]
    phases: tuple[Phase, ...]
    capacity: Mapping[str, float]
    rate: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Placing:
    """A placement, its time, and what it is worth to have more of something.

    Attributes
    ----------
    shares : mapping of str to mapping of str to float
        By item and tier.
    time : float
        Seconds of all phases; infinite where nothing fits.
    phases : mapping of str to float
        Seconds of one run of each phase.
    busiest : mapping of str to tuple of str
        Lanes that each phase takes as long as.
    memory_price : mapping of str to float
        Seconds that one more byte of a memory saves (the dual of its row); 0 where it has room.
    lane_price : mapping of str to float
        Seconds that one more unit a second of a lane's rate saves, by its dual and its load.
    shortage : mapping of str to float
        Bytes that memories lack where nothing fits, as few as possible in all.
    """

    shares: Mapping[str, Mapping[str, float]]
    time: float
    phases: Mapping[str, float]
    busiest: Mapping[str, tuple[str, ...]]
    memory_price: Mapping[str, float]
    lane_price: Mapping[str, float]
    shortage: Mapping[str, float] = field(default_factory=dict)


def place(problem: Problem) -> Placing:
    """Return the placement that takes least time.

    Minimise the sum over phases of runs times T, where T is at least the seconds of every lane; shares of an item add up to 1;
    what a memory holds does not exceed its capacity (Sheng et al. 2023, section 4.3, with the maximum of equation 2 as an
    epigraph variable). Duals of the rows are the prices: the problem is linear, so that they hold until another row binds.

    Raises
    ------
    MemroofError
        If an item has no place, a memory or lane is named that has no capacity or rate, or the solver fails.
    """
    _check(problem)
    return _Program(problem).solve()


def with_more(
    problem: Problem, *, memory: str = "", lane: str = "", factor: float = 1.0, more: float = 0.0
) -> Problem:
    """Return the problem with ``factor`` times the capacity of a memory or the rate of a lane, and ``more`` of it."""
    grown = {
        "capacity": {
            name: value * factor + more if name == memory else value
            for name, value in problem.capacity.items()
        },
        "rate": {
            name: value * factor + more if name == lane else value for name, value in problem.rate.items()
        },
    }
    return Problem(problem.items, problem.phases, grown["capacity"], grown["rate"])


def _check(problem: Problem) -> None:
    for item in problem.items:
        if not item.places:
            raise MemroofError(f"{item.name} has no place that it could be put")
        for where in item.places:
            for memory in where.holds:
                if memory not in problem.capacity:
                    raise MemroofError(
                        f"{item.name} on {where.tier} takes room in {memory}, which has no capacity"
                    )
    uses = [phase.uses for phase in problem.phases]
    uses += [used for item in problem.items for where in item.places for used in where.uses.values()]
    unknown = sorted({lane for used in uses for lane in used} - set(problem.rate))
    if unknown:
        raise MemroofError(f"no rate is known of {', '.join(unknown)}")


class _Program:
    """The matrices: one column a share, one a phase; one row a lane of a phase, one a memory, one an item."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.columns = [(item, where) for item in problem.items for where in item.places]
        self.lanes = [(phase, lane) for phase in problem.phases for lane in problem.rate]
        self.load = np.array(
            [[where.uses.get(phase.name, {}).get(lane, 0.0) / problem.rate[lane] for _, where in self.columns]
             for phase, lane in self.lanes]
        ).reshape(len(self.lanes), len(self.columns))  # fmt: skip
        self.floor = np.array([phase.uses.get(lane, 0.0) / problem.rate[lane] for phase, lane in self.lanes])
        self.memories = list(problem.capacity)
        self.holds = np.array(
            [[where.holds.get(memory, 0.0) for _, where in self.columns] for memory in self.memories]
        ).reshape(len(self.memories), len(self.columns))  # fmt: skip
        self.capacity = np.array([problem.capacity[memory] for memory in self.memories])
        self.runs = np.array([phase.runs for phase in problem.phases])

    def solve(self) -> Placing:
        shares, duals = self._fastest()
        if shares is not None:
            return self._placing(shares, duals)
        shares, lacking = self._fullest()
        placed = self._placing(shares, np.zeros(len(self.lanes) + len(self.memories)))
        short = {
            name: float(size) for name, size in zip(self.memories, lacking, strict=True) if size > EPSILON
        }
        return Placing(placed.shares, float("inf"), placed.phases, {}, {}, {}, short)

    def _fastest(self) -> tuple[Array | None, Array]:
        phases, columns = len(self.runs), len(self.columns)
        # seconds in units of what everything would take at its worst, bytes in units of the capacity
        unit = float((self.load.max(axis=1, initial=0.0) * columns + self.floor).max(initial=0.0)) or 1.0
        size = np.maximum(self.capacity, self.holds.max(axis=1, initial=0.0)) + (self.capacity <= 0.0)
        epigraph = np.array(
            [[-(phase.name == other.name) for other in self.problem.phases] for phase, _ in self.lanes]
        )
        weight = np.array([phase.runs for phase, _ in self.lanes])
        upper = np.block([
            [self.load / unit, epigraph.reshape(len(self.lanes), phases)],
            [self.holds / size[:, None], np.zeros((len(self.memories), phases))],
        ])  # fmt: skip
        bound = np.concatenate([-self.floor / unit, self.capacity / size])
        objective = np.concatenate([TIE_BREAK * (weight @ self.load) / unit, self.runs])
        found = self._run(objective, upper, bound, phases)
        if found is None:
            return None, bound
        scale = np.concatenate([np.ones(len(self.lanes)), unit / size])
        return np.clip(found.x[:columns], 0.0, 1.0), -found.ineqlin.marginals * scale

    def _fullest(self) -> tuple[Array, Array]:
        """Return the shares that lack fewest bytes, and what each memory lacks."""
        columns, memories = len(self.columns), len(self.memories)
        unit = float(self.holds.max(initial=1.0))
        upper = np.hstack([self.holds / unit, -np.eye(memories)])
        # of equal shortages, that of the memory named last, which is the largest
        objective = np.concatenate([np.zeros(columns), 1.0 + 0.01 * np.arange(memories)[::-1]])
        found = self._run(objective, upper, self.capacity / unit, memories)
        if found is None:
            raise MemroofError("the linear program of a placement could not be solved")
        return np.clip(found.x[:columns], 0.0, 1.0), found.x[columns:] * unit

    def _run(self, objective: Array, upper: Array, bound: Array, others: int) -> Any:
        from scipy.optimize import linprog  # takes a tenth of a second to import, and most answers need none

        equal = np.array(
            [
                [float(owner is item) for owner, _ in self.columns] + [0.0] * others
                for item in self.problem.items
            ]
        )
        ones = np.ones(len(self.problem.items))
        found = linprog(objective, upper, bound, equal, ones, bounds=(0.0, None), method="highs-ds")
        if found.status not in (0, 2):
            raise MemroofError(f"the linear program of a placement could not be solved: {found.message}")
        return found if found.status == 0 else None

    def _placing(self, shares: Array, duals: Array) -> Placing:
        seconds = self.load @ shares + self.floor
        phases, busiest = {}, {}
        for phase in self.problem.phases:
            mine = {
                lane: float(time)
                for (other, lane), time in zip(self.lanes, seconds, strict=True)
                if other is phase
            }
            longest = max(mine.values(), default=0.0)
            phases[phase.name] = longest
            busiest[phase.name] = tuple(
                lane for lane, time in mine.items() if longest and time >= longest * (1.0 - 1e-6)
            )
        total = sum(phase.runs * phases[phase.name] for phase in self.problem.phases)
        by_lane = dict.fromkeys(self.problem.rate, 0.0)
        for (_, lane), dual, time in zip(self.lanes, duals, seconds, strict=False):
            # load over rate is what the row holds: its derivative by the rate is minus that over the rate
            by_lane[lane] += float(dual * time / self.problem.rate[lane])
        prices = dict(zip(self.memories, duals[len(self.lanes) :].tolist(), strict=True))
        found: dict[str, dict[str, float]] = {}
        for (item, where), share in zip(self.columns, shares.tolist(), strict=True):
            found.setdefault(item.name, {})[where.tier] = share if share > EPSILON else 0.0
        return Placing(found, total, phases, busiest, prices, by_lane)


# --- rules for single questions --------------------------------------------------------------------------------------


def latency_first(
    sizes: Sequence[float], accesses: Sequence[float], capacity: Sequence[float], latency: Sequence[float]
) -> list[int]:
    """Return the tier of each tensor: those that wait most often for a byte come first into the memory that answers fastest.

    Greedy by accesses a byte over tiers by latency, as CPU-offloaded fine-tuning places states that the optimizer touches in
    local DRAM and the rest on CXL memory. What fits nowhere goes to the last tier.

    Parameters
    ----------
    sizes, accesses : sequence of float
        Bytes of each tensor, and how often it is waited for.
    capacity, latency : sequence of float
        Of each tier [B] and [s].

    Returns
    -------
    list of int
        Index of the tier of each tensor.

    Examples
    --------
    >>> latency_first([4, 4, 2], [1, 8, 4], [6, 100], [1e-7, 3e-7])
    [1, 0, 0]
    """
    room, placed = list(capacity), [len(capacity) - 1] * len(sizes)
    tiers = sorted(range(len(capacity)), key=lambda tier: latency[tier])
    order = sorted(range(len(sizes)), key=lambda i: (-accesses[i] / max(sizes[i], 1e-30), i))
    for i in order:
        for tier in tiers:
            if sizes[i] <= room[tier]:
                placed[i] = tier
                room[tier] -= sizes[i]
                break
    return placed


def hot_set(scores: npt.ArrayLike, sizes: npt.ArrayLike, capacity: float) -> npt.NDArray[np.bool_]:
    """Return which items a fast tier holds: those of the highest score a byte, as long as they fit one after the other.

    Degree or PageRank rank nodes of a graph (Data Tiering), token counts experts (MoNDE). Equal scores go by number.

    Parameters
    ----------
    scores, sizes : array, shape (items,)
        What holding each is worth, and its bytes (one figure for all alike will do).
    capacity : float
        Of the fast tier [B].

    Examples
    --------
    >>> hot_set([1.0, 5.0, 3.0], 10.0, 20.0).tolist()
    [False, True, True]
    """
    worth = np.asarray(scores, float)
    each = np.broadcast_to(np.asarray(sizes, float), worth.shape)
    order = np.argsort(-worth / np.maximum(each, 1e-30), kind="stable")
    chosen = np.zeros(worth.shape, dtype=np.bool_)
    chosen[order] = np.cumsum(each[order]) <= capacity
    return chosen


def balanced(amount: float, first: float, second: float) -> float:
    """Return the part of an amount that the first of two paths takes, so that both end together.

    H* = E·B1 / (B1 + B2): of E experts, those moved over a link of bandwidth B1, the others computed where they lie at B2 (MoNDE,
    Kim et al. 2024, arXiv:2405.18832, solved from its statement that the two weight streams bound both paths).

    Raises
    ------
    MemroofError
        If neither path moves anything.

    Examples
    --------
    >>> balanced(128, 32e9, 512e9)
    7.529411764705882
    """
    if first < 0.0 or second < 0.0 or first + second <= 0.0:
        raise MemroofError(
            f"two paths at {first:g} and {second:g} share nothing: one rate at least must be above 0"
        )
    return amount * first / (first + second)
