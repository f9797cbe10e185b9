"""Worker placement: which accelerator each logical rank runs on, by simulated annealing over the rates of pairs.

References: Kirkpatrick, Gelatt & Vecchi 1983, *Optimization by Simulated Annealing*; Hukushima & Iba 2003, *Population
Annealing*; Yim et al. 2024, *Pipette* (ranks moved over measured links); Yuan et al. 2022, *Decentralized Training of
Foundation Models in Heterogeneous Environments* (communication cost of groups over measured bandwidth and delay).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from simulator.specs import Hardware, MemroofError
from simulator.training.groups import Groups

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Exchange = Literal["tensor", "context", "data", "expert", "pipeline"]

MAXIMUM_RANKS = 2048
"""Beyond it the rates of all pairs do not fit a laptop's memory."""
CHAINS = 8
"""Orders that are annealed side by side."""
ROUNDS = 40
"""Times that temperatures fall."""
FIRST_TEMPERATURE = 0.1
"""Of the hottest chain, over the mean rise of the gentlest moves."""
LADDER = 0.1
"""Temperature of the coldest chain over that of the hottest."""
COOLING = 0.1
"""Temperature of the last round over that of the first."""
BLUR = 0.8
"""How much the mean of edges and groups counts against the slowest."""
BLURRED_ROUNDS = 32
"""Rounds after which only the slowest counts."""
LEAST_CHANCE = 0.02
"""Of a kind of move that was of little use in the round before."""


class Load(NamedTuple):
    """What one rank sends in a step for one kind of parallelism."""

    sent: float
    """Bytes: around the ring of its group, to its peers together (expert), or to the next stage (pipeline)."""
    hops: float = 0.0
    """Messages that wait for the latency of a link, one after the other."""


@dataclass(frozen=True)
class Placement:
    """Where ranks run, and what their communication takes in a step."""

    order: tuple[int, ...]
    """Accelerator of each rank."""
    hardware: Hardware
    """The hardware with its ranks placed; its spans are those of the placed groups."""
    seconds: float
    """Communication of a step, nothing of it hidden."""
    seconds_in_order: float
    """The same with rank i on accelerator i."""
    by_exchange: Mapping[Exchange, float]
    """Seconds of the slowest group of each kind of parallelism."""
    bandwidths: Mapping[Exchange, float]
    """Bytes sent by those seconds [B/s], latency included; infinite where nothing is sent."""


def place(
    groups: Groups,
    loads: Mapping[Exchange, Load],
    hardware: Hardware,
    *,
    seed: int = 0,
    steps: int = 6000,
    wraps: bool = False,
) -> Placement:
    """Place ranks on accelerators so that the groups of a step communicate in the least time.

    Parameters
    ----------
    groups : Groups
        Degrees of parallelism and rank order; ranks may be fewer than accelerators, of which the best are then used.
    loads : mapping
        What one rank sends for each kind of parallelism; what is absent sends nothing.
    hardware : Hardware
        Whose pair rates are used; an order that it has already is ignored.
    seed : int
        Of the random moves; the same seed gives the same placement.
    steps : int
        Moves that each of :data:`CHAINS` orders tries.
    wraps : bool
        Whether the last stage sends to the first (several model chunks a stage).

    Returns
    -------
    Placement
        Never slower than rank i on accelerator i.

    Raises
    ------
    MemroofError
        If there are more ranks than accelerators, or more accelerators than :data:`MAXIMUM_RANKS`.
    """
    if groups.ranks > hardware.size:
        raise MemroofError(
            f"{groups.ranks} ranks cannot be placed on {hardware.name}'s {hardware.size} accelerators"
        )
    if hardware.size > MAXIMUM_RANKS:
        raise MemroofError(
            f"strategy.placement: {hardware.name} has {hardware.size:,} accelerators; up to {MAXIMUM_RANKS:,} are placed"
        )
    problem = Problem(groups, loads, hardware, wraps=wraps)
    identity = np.arange(hardware.size)
    order = _anneal(problem, identity, np.random.default_rng(seed), steps)
    times = problem.times(order[None])
    by_exchange = {name: float(found.max()) for name, found in times.items()}
    bandwidths = {
        name: loads[name].sent / seconds if seconds > 0.0 else float("inf")
        for name, seconds in by_exchange.items()
    }
    ranks = tuple(int(place) for place in order)
    return Placement(
        ranks, hardware.placed(ranks), sum(by_exchange.values()), float(problem.seconds(identity[None])[0]),
        by_exchange, bandwidths,
    )  # fmt: skip


def rank_grid(groups: Groups) -> Integers:
    """Return the rank of each (stage, replica, context, tensor) coordinate."""
    inner = (groups.context, groups.tensor)
    if groups.stages_inside:
        return np.arange(groups.ranks).reshape(groups.data, groups.pipeline, *inner).swapaxes(0, 1)
    return np.arange(groups.ranks).reshape(groups.pipeline, groups.data, *inner)


class Problem:
    """The communication of a step as a function of the order of ranks: arrays in, arrays out."""

    def __init__(
        self, groups: Groups, loads: Mapping[Exchange, Load], hardware: Hardware, *, wraps: bool = False
    ) -> None:
        base = hardware.placed(range(hardware.size))
        bandwidth, self.latency = hardware.pair_rates()
        with np.errstate(divide="ignore"):
            self.inverse: Floats = 1.0 / bandwidth
        self.node = np.array([base.node_of(rank) for rank in range(hardware.size)])
        self.nodes = int(self.node[-1]) + 1
        self.grid = rank_grid(groups)
        self.members = {
            name: members
            for name, members in _members(groups, self.grid).items()
            if loads.get(name, Load(0.0)) != Load(0.0) and members.shape[1] > 1
        }
        self.loads = {name: loads[name] for name in self.members}
        self.wraps = wraps
        self.swaps = _swaps(self.grid, hardware.size)

    def seconds(self, orders: Integers) -> Floats:
        """Return the seconds of a step's communication for orders of shape (orders, accelerators)."""
        slowest = [found.max(axis=1) for found in self.times(orders).values()]
        return np.sum(slowest, axis=0) if slowest else np.zeros(len(orders))

    def energy(self, orders: Integers, blur: float) -> Floats:
        """Return what is annealed [s]: the slowest edge of the slowest group, blurred with the mean of all.

        A pure maximum says of most moves nothing.
        """
        found = [
            (1.0 - blur) * t.max(axis=1) + blur * t.mean(axis=1) for t in self.times(orders, blur).values()
        ]
        return np.sum(found, axis=0) if found else np.zeros(len(orders))

    def times(self, orders: Integers, blur: float = 0.0) -> dict[Exchange, Floats]:
        """Return the seconds of each group, of shape (orders, groups), for each kind of parallelism that sends."""
        found: dict[Exchange, Floats] = {}
        for name, members in self.members.items():
            places = orders[:, members]
            if name == "pipeline":
                found[name] = self._chain(places, self.loads[name])
            elif name == "expert":
                found[name] = self._all_to_all(places, self.loads[name], blur)
            else:
                found[name] = self._ring(places, self.loads[name], blur)
        return found

    def _ring(self, places: Integers, load: Load, blur: float) -> Floats:
        # a ring is as fast as its slowest edge; where it leaves a node, it uses the share of each of its members there
        following = np.roll(places, -1, axis=-1)
        inverse = self.inverse[places, following]
        if self.nodes < len(self.node):
            here = self.node[places]
            leaves = here != self.node[following]
            inside, leaving = self._counts(here, leaves)
            inverse = np.where(leaves, inverse * leaving / inside, inverse)
        edge = _blurred(inverse, blur)
        seconds: Floats = load.sent * edge + load.hops * _blurred(self.latency[places, following], blur)
        return seconds

    def _counts(self, here: Integers, leaves: npt.NDArray[np.bool_]) -> tuple[Floats, Floats]:
        """Return, for each member, how many of its group are in its node, and how many edges leave it."""
        groups = np.arange(here.shape[0] * here.shape[1]).reshape(*here.shape[:2], 1)
        key = groups * self.nodes + here
        size = groups.size * self.nodes
        inside = np.bincount(key.ravel(), minlength=size)[key]
        leaving = np.bincount(key.ravel(), weights=leaves.ravel(), minlength=size)[key]
        return inside.astype(np.float64), leaving.astype(np.float64)

    def _chain(self, places: Integers, load: Load) -> Floats:
        following = np.roll(places, -1, axis=-1)
        stop = places.shape[-1] if self.wraps else -1
        edge = load.sent * self.inverse[places, following] + load.hops * self.latency[places, following]
        found: Floats = edge[..., :stop].sum(axis=-1)
        return found

    def _all_to_all(self, places: Integers, load: Load, blur: float) -> Floats:
        pairs = places[..., :, None], places[..., None, :]
        sent = load.sent / places.shape[-1] * _blurred(self.inverse[pairs].sum(axis=-1), blur)
        seconds: Floats = sent + load.hops * _blurred(self.latency[pairs].max(axis=-1), blur)
        return seconds


def _blurred(edges: Floats, blur: float) -> Floats:
    slowest: Floats = edges.max(axis=-1)
    return (1.0 - blur) * slowest + blur * edges.mean(axis=-1) if blur else slowest


def _members(groups: Groups, grid: Integers) -> dict[Exchange, Integers]:
    """Return the ranks of the groups of each kind of parallelism, of shape (groups, members)."""
    stages, replicas, contexts, tensors = grid.shape
    width = groups.expert * groups.expert_tensor
    cells = grid.reshape(stages, replicas * contexts * tensors)
    experts = np.empty((0, 1), dtype=np.int64)
    if groups.expert > 1 and cells.shape[1] % width == 0:
        experts = (
            cells.reshape(-1, groups.expert, groups.expert_tensor).swapaxes(1, 2).reshape(-1, groups.expert)
        )
    return {
        "tensor": grid.reshape(-1, tensors),
        "context": grid.swapaxes(2, 3).reshape(-1, contexts),
        "data": grid.reshape(stages, replicas * contexts, tensors)
        .swapaxes(1, 2)
        .reshape(-1, replicas * contexts),
        "expert": experts,
        "pipeline": np.moveaxis(grid, 0, -1).reshape(-1, stages),
    }


def _swaps(grid: Integers, accelerators: int) -> list[Integers]:
    """Return what moves exchange: single ranks, tensor groups, cells of a stage and replica, stages, replicas."""
    stages, replicas, contexts, tensors = grid.shape
    found = [
        np.arange(accelerators)[:, None],
        grid.reshape(-1, tensors),
        grid.reshape(-1, contexts * tensors),
        grid.reshape(stages, -1),
        grid.swapaxes(0, 1).reshape(replicas, -1),
    ]
    kinds: dict[tuple[int, ...], Integers] = {}
    for rows in found:
        if len(rows) > 1:
            kinds.setdefault(rows.shape, rows)
    return list(kinds.values())


def _anneal(problem: Problem, start: Integers, random: np.random.Generator, steps: int) -> Integers:
    """Return the best order that was met, the start's own included.

    Half of the chains begin with the start, the others with each accelerator followed by the nearest that is left.

    All chains move at once, each at a temperature of its own. After each round temperatures and blur fall, kinds of moves
    are tried as often as they were of use, and the worst chains go on from the best (population annealing).
    """
    near = _nearest(problem.inverse)
    orders = np.stack([near if chain % 2 else start for chain in range(CHAINS)])
    if not problem.members or not problem.swaps:
        return start
    seconds = problem.seconds(orders)
    best: Integers = orders[seconds.argmin()].copy()
    least = float(seconds.min())
    ladder = LADDER ** (np.arange(CHAINS) / (CHAINS - 1))
    temperature = FIRST_TEMPERATURE * _first_temperature(problem, orders, random) * ladder
    cooling, quarter, per_round = COOLING ** (1.0 / (ROUNDS - 1)), CHAINS // 4, max(1, steps // ROUNDS)
    chances = np.ones(len(problem.swaps))
    for turn in range(ROUNDS):
        blur = BLUR if turn < BLURRED_ROUNDS else 0.0
        energy = problem.energy(orders, blur)
        useful, kinds = (
            np.ones(len(chances)),
            random.choice(len(chances), per_round, p=chances / chances.sum()),
        )
        for kind in kinds:
            tried = _moved(orders, problem.swaps[kind], random)
            new = problem.energy(tried, blur)
            accepted = random.random(CHAINS) < np.exp(-np.maximum(new - energy, 0.0) / temperature)
            useful[kind] += np.count_nonzero(accepted & (new != energy))
            orders[accepted], energy[accepted] = tried[accepted], new[accepted]
        chances = np.maximum(useful / (1 + np.bincount(kinds, minlength=len(chances))), LEAST_CHANCE)
        seconds = problem.seconds(orders)
        if seconds.min() < least:
            best, least = orders[seconds.argmin()].copy(), float(seconds.min())
        ranking = np.argsort(energy, kind="stable")
        orders[ranking[-quarter:]] = orders[ranking[:quarter]]
        temperature = temperature * cooling
    return best


def _nearest(inverse: Floats) -> Integers:
    """Return accelerators from the first on, each followed by the one that it reaches fastest; equal ones in order."""
    distance = inverse.copy()
    order: Integers = np.zeros(len(inverse), dtype=np.int64)
    for place in range(1, len(order)):
        here = int(order[place - 1])
        distance[:, here] = np.inf
        order[place] = int(distance[here].argmin())
    return order


def _first_temperature(problem: Problem, orders: Integers, random: np.random.Generator) -> float:
    """Return the mean rise in energy that the gentlest kind of move causes [s]."""
    energy = problem.energy(orders, BLUR)
    means = []
    for rows in problem.swaps:
        rises = np.concatenate(
            [problem.energy(_moved(orders, rows, random), BLUR) - energy for _ in range(4)]
        )
        if np.any(rises > 0.0):
            means.append(float(rises[rises > 0.0].mean()))
    return min(means) if means else max(1e-3 * float(energy.max()), 1e-30)


def _moved(orders: Integers, rows: Integers, random: np.random.Generator) -> Integers:
    chains = np.arange(len(orders))[:, None]
    first = random.integers(len(rows), size=len(orders))
    second = (first + random.integers(1, len(rows), size=len(orders))) % len(rows)
    moved = orders.copy()
    moved[chains, rows[first]] = orders[chains, rows[second]]
    moved[chains, rows[second]] = orders[chains, rows[first]]
    return moved
