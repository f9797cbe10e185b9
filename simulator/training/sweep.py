"""Sweeps in closed form: every legal combination of a grid of strategies for one model, machine and batch.

The grid is a product of axes, and most of what a configuration needs depends on a few of them: kernels on the tensor-parallel
degree and the micro-batch, states on how they are cut, the pipeline on stages and schedule. Each is priced once, by the same
functions that price a single step; what depends on all is array arithmetic (:mod:`closed_form`).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from simulator.specs import MemroofError, TrainingScenario, TrainingStrategy
from simulator.specs.errors import unknown
from simulator.strategy import Setup
from simulator.training.closed_form import Answers, answers
from simulator.training.groups import Groups
from simulator.training.layer_walk import Floats, Integers
from simulator.training.legal import faults
from simulator.training.plan import layer_count
from simulator.training.prices import NOT_PASSES, SHAPE, STATES, Prices
from simulator.training.schedules import SCHEDULES
from simulator.training.schedules import faults as schedule_faults

UNSWEPT: Mapping[str, Any] = {
    "recompute_micro_batches": None, "batch_split": None, "state_split": "even", "placement": "order",
}  # fmt: skip
"""Fields under which micro-batches, replicas or ranks differ, with the value under which they do not."""

Flags = npt.NDArray[np.bool_]
Grid = Mapping[str, Sequence[Any]]
Values = tuple[Any, ...]


@dataclass(frozen=True)
class Sweep:
    """The legal points of a grid in columns, and why the others are not."""

    axes: Mapping[str, tuple[Any, ...]]
    """Values of each field, in the order in which :attr:`point` counts (the last one fastest)."""
    point: Integers
    """Number of each legal point in the grid."""
    step_time: Floats
    """Seconds."""
    peak_memory: Floats
    """Bytes of the fullest GPU."""
    ranks: Integers
    """GPUs in use."""
    capacity: float
    """Usable bytes of a GPU."""
    illegal: Mapping[str, int] = field(default_factory=dict)
    """Points that break a rule, by the field (or group of fields) whose rule they break first."""

    @property
    def size(self) -> int:
        """Points of the grid, illegal ones among them."""
        return int(np.prod([len(values) for values in self.axes.values()], dtype=np.int64))

    @property
    def fits(self) -> Flags:
        """Whether the fullest GPU holds its peak."""
        return np.asarray(self.peak_memory <= self.capacity)

    def mfu(self, model_flops: float, peak_flops: float) -> Floats:
        """Return the share of the GPUs' peak that the model's own products use (``model_flops`` of a step [FLOP])."""
        return np.asarray(model_flops / (self.step_time * self.ranks * peak_flops))

    def strategy(self, row: int) -> dict[str, Any]:
        """Return the fields of a legal point."""
        index = np.unravel_index(int(self.point[row]), [len(values) for values in self.axes.values()])
        return {name: values[int(at)] for (name, values), at in zip(self.axes.items(), index, strict=True)}

    def columns(self) -> dict[str, Any]:
        """Return every field and figure as a column of legal points."""
        index = np.unravel_index(self.point, [len(values) for values in self.axes.values()])
        found: dict[str, Any] = {
            name: _column(values)[at] for (name, values), at in zip(self.axes.items(), index, strict=True)
        }
        figures = {
            "step_time": self.step_time,
            "peak_memory": self.peak_memory,
            "gpus": self.ranks,
            "fits": self.fits,
        }
        return found | figures


def sweep(setup: Setup, grid: Grid) -> Sweep:
    """Price every legal combination of a grid of strategy fields.

    Parameters
    ----------
    setup : Setup
        A training scenario; its strategy gives the fields that the grid leaves out.
    grid : mapping of str to sequence
        Values of fields of :class:`simulator.specs.TrainingStrategy`.

    Raises
    ------
    MemroofError
        If the scenario is no training, or a field is unknown, has no values, or cannot be swept.
    """
    scenario = setup.scenario
    if not isinstance(scenario, TrainingScenario):
        raise MemroofError(f"a sweep of training strategies cannot run a {scenario.kind} scenario")
    _check(scenario, grid)
    return _Sweeper(setup, scenario, {name: tuple(values) for name, values in grid.items()}).sweep()


def _check(scenario: TrainingScenario, grid: Grid) -> None:
    fields = TrainingStrategy.model_fields
    for name, values in grid.items():
        if name not in fields:
            raise MemroofError(f"strategy.{name}: {unknown('field', name, fields)}")
        if not len(values):
            raise MemroofError(f"strategy.{name}: give the values to sweep")
        if name in UNSWEPT:
            raise MemroofError(f"strategy.{name}: cannot be swept; vary it with memroof whatif")
    recompute = (scenario.strategy.recompute, *grid.get("recompute", ()))
    if "optimal" in recompute:
        raise MemroofError(
            "strategy.recompute: a sweep compares none, selective and full recomputation; leave out optimal"
        )
    for name, plain in UNSWEPT.items():
        if getattr(scenario.strategy, name) != plain:
            raise MemroofError(
                f"strategy.{name}: a sweep needs equal micro-batches, replicas and ranks in order; leave it out"
            )
    if "balanced" in (scenario.strategy.layer_split, *grid.get("layer_split", ())):
        raise MemroofError(
            "strategy.layer_split: a sweep takes given counts or an even split; leave out balanced"
        )


class _Sweeper:
    """Goes through the shapes of a grid; keeps what several of them need."""

    def __init__(self, setup: Setup, scenario: TrainingScenario, grid: Mapping[str, tuple[Any, ...]]) -> None:
        self.setup, self.scenario, self.grid = setup, scenario, grid
        self.shape_axes = [name for name in grid if name in SHAPE]
        self.option_axes = [name for name in grid if name not in SHAPE]
        self.prices = Prices(setup)
        self.illegal: Counter[str] = Counter()
        self.options = list(itertools.product(*(grid[name] for name in self.option_axes)))
        sizes = [len(values) for values in grid.values()]
        strides = dict(zip(grid, np.cumprod([1, *sizes[:0:-1]])[::-1].tolist(), strict=True))
        self.offsets = _offsets([(len(grid[name]), strides[name]) for name in self.option_axes])
        self.strides = strides
        self.bodies, self.body_of = self._projected([n for n in self.option_axes if n not in NOT_PASSES])
        self.tails, self.tail_of = self._projected([n for n in self.option_axes if n in STATES])

    def _projected(self, names: list[str]) -> tuple[list[dict[str, Any]], Integers]:
        """Return the distinct values of some option axes, and which of them each option has."""
        at = [self.option_axes.index(name) for name in names]
        found: dict[Values, int] = {}
        which = [found.setdefault(tuple(option[i] for i in at), len(found)) for option in self.options]
        return [dict(zip(names, values, strict=True)) for values in found], np.array(which, dtype=np.int64)

    def sweep(self) -> Sweep:
        points, times, peaks, ranks = [], [], [], []
        for values in itertools.product(*(self.grid[name] for name in self.shape_axes)):
            shape = dict(zip(self.shape_axes, values, strict=True))
            legal = self._legal(shape)
            if not legal.any():
                continue
            where = np.flatnonzero(legal)
            found, used = self._priced(shape, where)
            start = sum(self.grid[name].index(value) * self.strides[name] for name, value in shape.items())
            points.append(start + self.offsets[where])
            times.append(found.step_time)
            peaks.append(found.peak_memory)
            ranks.append(np.full(len(where), used))
        none = np.zeros(0)
        point = np.concatenate(points) if points else none.astype(np.int64)
        order = np.argsort(point, kind="stable")
        return Sweep(
            self.grid, point[order], np.concatenate(times or [none])[order], np.concatenate(peaks or [none])[order],
            np.concatenate(ranks or [none.astype(np.int64)])[order], self.setup.hardware.memory.capacity,
            dict(self.illegal.most_common()),
        )  # fmt: skip

    # --- legality ---------------------------------------------------------------------------------------------------

    def _scenario(self, fields: Mapping[str, Any]) -> TrainingScenario:
        strategy = self.scenario.strategy.model_copy(update=fields)
        return self.scenario.model_copy(update={"strategy": strategy})

    def _faults(self, shape: Mapping[str, Any], *options: Mapping[str, Any]) -> list[str]:
        fields = dict(shape)
        for option in options:
            fields |= option
        scenario = self._scenario(fields)
        return faults(
            scenario, self.setup.model, self.setup.hardware, Groups.of(scenario.strategy, self.setup.hardware)
        )

    def _legal(self, shape: Mapping[str, Any]) -> Flags:
        """Return which options are legal with a shape, and count the others by what they break.

        No rule joins an option of passes with one of states, so that these are asked for apart, each beside the mildest of the
        others.
        """
        legal = np.ones(len(self.options), dtype=np.bool_)
        body, tail = self.bodies[0], self.tails[0]
        if not self._counts_fit(shape):
            return self._refuse(legal, legal, self._faults(shape, tail, body))
        tail = self._mildest(self.tails, shape, body)
        by_body = [self._faults(shape, tail, one) for one in self.bodies]
        body = self.bodies[min(range(len(by_body)), key=lambda index: len(by_body[index]))]
        everywhere = self._faults(shape, tail, body)
        if everywhere:
            return self._refuse(legal, legal, everywhere)
        by_tail = [self._faults(shape, body, one) for one in self.tails]
        for which, found in ((self.body_of, by_body), (self.tail_of, by_tail)):
            for index, broken in enumerate(found):
                if broken:
                    legal = self._refuse(legal, which == index, broken)
        return legal

    def _mildest(
        self, tails: Sequence[dict[str, Any]], shape: Mapping[str, Any], body: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return the first of the states that break the fewest rules."""
        counts = []
        for tail in tails:
            counts.append(len(self._faults(shape, tail, body)))
            if not counts[-1]:
                break
        return tails[counts.index(min(counts))]

    def _counts_fit(self, shape: Mapping[str, Any]) -> bool:
        """Whether GPUs, sequences and layers go round and the schedule takes such counts: no option mends that."""
        strategy = self._scenario(shape).strategy
        groups = Groups.of(strategy, self.setup.hardware)
        micro_batches, rest = divmod(self.scenario.workload.global_batch, groups.data * strategy.micro_batch)
        if groups.ranks > self.setup.hardware.size or rest:
            return False
        counts = (groups.pipeline, micro_batches, strategy.virtual_stages)
        if schedule_faults(strategy.schedule, *counts, pair=strategy.overlap_expert_parallel):
            return False
        return SCHEDULES[strategy.schedule].places(groups.pipeline, strategy.virtual_stages) <= layer_count(
            self.setup.model
        )

    def _refuse(self, legal: Flags, which: Flags, broken: list[str]) -> Flags:
        """Take options out, counted under the field whose rule they break first."""
        self.illegal[broken[0].partition(":")[0]] += int((legal & which).sum())
        return np.asarray(legal & ~which)

    def _priced(self, shape: Mapping[str, Any], where: Integers) -> tuple[Answers, int]:
        """Return the answers of the legal options of a shape, and the GPUs in use."""
        bodies, body = np.unique(self.body_of[where], return_inverse=True)
        tails, tail = np.unique(self.tail_of[where], return_inverse=True)
        # options that stand for a body or a tail: what else they say is not looked at
        some = [self._fields(shape, where[np.argmax(body == index)]) for index in range(len(bodies))]
        plan, numbers = self.prices.bodies(some)
        works = [
            self.prices.works(plan, self._fields(shape, where[np.argmax(tail == index)]), STATES)
            for index in range(len(tails))
        ]
        pair = some[0].strategy.overlap_expert_parallel
        return answers(plan, numbers, works, body, tail, pair=pair), plan.ranks

    def _fields(self, shape: Mapping[str, Any], option: int) -> TrainingScenario:
        return self._scenario(
            {**shape, **dict(zip(self.option_axes, self.options[int(option)], strict=True))}
        )


def _offsets(axes: Sequence[tuple[int, int]]) -> Integers:
    """Return what each combination of some axes, given as (length, stride), adds to the number of a point."""
    found = np.zeros(1, dtype=np.int64)
    for length, stride in axes:
        found = (found[:, None] + np.arange(length) * stride).ravel()
    return found


def _column(values: tuple[Any, ...]) -> npt.NDArray[Any]:
    """Return values as an array; what is no number or text stays an object."""
    if (
        all(isinstance(value, (int, float, str)) for value in values)
        and len({type(value) for value in values}) == 1
    ):
        return np.array(values)
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column
